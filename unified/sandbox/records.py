"""What a process may still do once it is confined, and what the kernel offers to hold it to that."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

#: ``"off"``: no ring; ``"auto"``: what the system offers; ``"required"``: all of it, or an error.
Mode = Literal["off", "auto", "required"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Confinement:
    """What a process may use from now on, beside what Python and torch themselves need.

    Attributes:
        mode: What to do where the system offers less.
        readable: Files, and folders with all below.
        writable: Folders in which it may also make, change and remove files; temporary ones go to the first.
        devices: Device files that it may use, such as those of GPUs.
        network: Whether it may open sockets.
    """

    mode: Mode
    readable: tuple[Path, ...] = ()
    writable: tuple[Path, ...] = ()
    devices: tuple[Path, ...] = ()
    network: bool = False

    def to_json(self) -> str:
        """Return the record as text, for :meth:`from_json` in another process."""
        paths = {name: [str(path) for path in getattr(self, name)] for name in ("readable", "writable", "devices")}
        return json.dumps({"mode": self.mode, "network": self.network, **paths})

    @classmethod
    def from_json(cls, text: str) -> Confinement:
        """Return the record that :meth:`to_json` wrote.

        Example:
            >>> confinement = Confinement(mode="auto", readable=(Path("/data"),))
            >>> Confinement.from_json(confinement.to_json()) == confinement
            True
        """
        said = json.loads(text)
        paths = {name: tuple(map(Path, said[name])) for name in ("readable", "writable", "devices")}
        return cls(mode=said["mode"], network=said["network"], **paths)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mechanism:
    """One part of the ring.

    Attributes:
        name: What the kernel calls it.
        guards: What it keeps a process from.
        detail: Which version there is, or why there is none.
    """

    name: Literal["landlock", "seccomp"]
    guards: str
    is_available: bool
    detail: str
