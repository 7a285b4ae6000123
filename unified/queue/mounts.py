"""Which file system a path is on, to refuse those that a database must not be on."""

from __future__ import annotations

import re
from pathlib import Path

_MOUNTS = Path("/proc/self/mounts")

#: Shared memory or locks are missing or unreliable between hosts here, and SQLite's write-ahead log needs both.
NETWORK_FILE_SYSTEMS = frozenset(
    {"afs", "beegfs", "ceph", "cifs", "fhgfs", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "ocfs2"}
    | {"orangefs", "pvfs2", "smb3", "smbfs", "fuse.ceph", "fuse.ceph-fuse", "fuse.gcsfuse", "fuse.glusterfs", "fuse.goofys"}
    | {"fuse.juicefs", "fuse.mount-s3", "fuse.rclone", "fuse.s3fs", "fuse.seaweedfs", "fuse.sshfs", "fuse.JuiceFS"}
)


def network_file_system(path: Path, mounts: Path = _MOUNTS) -> str | None:
    """Return the kind of network file system that ``path`` is on; None for a local one, and where nobody can tell.

    Args:
        path: Absolute, links resolved; need not exist.
        mounts: The kernel's list: device, folder and kind of each mounted file system, one per line.
    """
    kind = file_system(path, mounts)
    return kind if kind in NETWORK_FILE_SYSTEMS else None


def file_system(path: Path, mounts: Path = _MOUNTS) -> str | None:
    """Return the kind of file system that ``path`` is on, e.g. ``"ext4"``; arguments as above."""
    try:
        lines = mounts.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return None
    best, depth = None, -1
    for fields in (line.split(" ") for line in lines):
        if len(fields) < 3:
            continue
        folder = Path(_unescape(fields[1]))
        # Of two on the same folder, the one mounted later is in sight.
        if path.is_relative_to(folder) and len(folder.parts) >= depth:
            best, depth = fields[2], len(folder.parts)
    return best


def _unescape(name: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), name)
