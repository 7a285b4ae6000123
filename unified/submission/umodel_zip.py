"""The container of an archive: a zip in the one layout that :mod:`unified.submission.umodel_write` writes.

It is read here byte by byte and not by ``zipfile``, which is made to get something out of whatever it is given: it searches
for a directory, reads one of any length whole, and leaves bytes alone that belong to no part. Here every byte belongs to a
part or to the frame around it, or the file is refused.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from unified.submission.umodel_faults import MalformedError, malformed
from unified.submission.umodel_format import PARTS, WEIGHTS
from unified.submission.umodel_json import MAX_JSON_BYTES

_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR64 = struct.Struct("<4sIQI")
_MAX16, _MAX32 = 0xFFFF, 0xFFFFFFFF
_MAX_DIRECTORY_BYTES = 4096  # of four entries; none is longer than 300 bytes
_MAX_EXTRA_BYTES = 64
_VERSION = 45  # of the format of zips, 4.5, which has archives over 4 GiB
_WHERE = "the archive"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    name: str
    start: int
    size: int
    crc: int


def find_parts(content: memoryview) -> dict[str, memoryview]:
    """Return where each part lies in an archive's bytes. Raises MalformedError unless it is laid out as ours are."""
    begin, stop, count = _directory(content)
    if count != len(PARTS):
        raise _fault(f"{len(PARTS)} parts", f"{count}")
    entries = _entries(content, begin, stop)
    if sorted(entry.name for entry in entries) != sorted(PARTS):
        raise _fault(f"the parts {sorted(PARTS)}, each once", repr([entry.name for entry in entries]))
    parts: dict[str, memoryview] = {}
    position = 0
    for entry in sorted(entries, key=lambda entry: entry.start):
        if entry.start != position:
            raise _fault(f"the part {entry.name} at byte {position}, where the one before ends", f"byte {entry.start}")
        start = _content_start(content, entry)
        position = start + entry.size
        if position > begin:
            raise _fault(f"the part {entry.name} before the directory", "one that reaches into it")
        if entry.name != WEIGHTS and entry.size > MAX_JSON_BYTES:
            raise malformed("E-SIZE", entry.name, f"at most {MAX_JSON_BYTES} bytes", f"{entry.size} bytes")
        parts[entry.name] = content[start:position]
        if zlib.crc32(parts[entry.name]) != entry.crc:  # no hash covers the manifest, and other readers of zips look at it
            raise _fault(f"the part {entry.name} with the checksum {entry.crc:08x}", "another one: it is damaged")
    if position != begin:
        raise _fault("nothing between the parts and the directory", f"{begin - position} bytes")
    return parts


def _directory(content: memoryview) -> tuple[int, int, int]:
    """Return where the directory begins and stops, and how many entries it says it has."""
    place = len(content) - _END.size
    if place < 0 or content[place : place + 4] != b"PK\x05\x06":
        raise _fault("a zip archive without a comment", "a file that does not end as one")
    _, disk, first, here, count, size, begin, comment = _END.unpack_from(content, place)
    if disk or first or here != count or comment:
        raise _fault("a zip archive in one file, without a comment", "another one")
    stop = place
    if content[max(place - _LOCATOR64.size, 0) : place][:4] == b"PK\x06\x07":
        stop, *wide = _directory64(content, place)
        narrow = [min(value, limit) for value, limit in zip(wide, (_MAX32, _MAX32, _MAX16), strict=True)]
        if [size, begin, count] != narrow:
            raise _fault("an end that agrees with the directory's longer form", "another one")
        size, begin, count = wide
    if size > _MAX_DIRECTORY_BYTES or begin + size != stop:
        raise _fault("a directory right before the end of the archive", f"{size} bytes at byte {begin}")
    return begin, stop, count


def _directory64(content: memoryview, end: int) -> tuple[int, int, int, int]:
    """Read the directory's place from the longer form that archives over 2 GiB have."""
    locator = end - _LOCATOR64.size
    place = locator - _END64.size
    if place < 0:
        raise _fault("a zip archive", "one cut short")
    mark, disk, offset, disks = _LOCATOR64.unpack_from(content, locator)
    sign, length, _, _, this, first, here, count, size, begin = _END64.unpack_from(content, place)
    whole = mark == b"PK\x06\x07" and sign == b"PK\x06\x06" and length == _END64.size - 12 and offset == place
    if not whole or disk or disks != 1 or this or first or here != count:
        raise _fault("a directory in its longer form", "a malformed one")
    return place, size, begin, count


def _entries(content: memoryview, begin: int, stop: int) -> list[_Entry]:
    entries = []
    position = begin
    for _ in PARTS:
        if position + _CENTRAL.size > stop:
            raise _fault("a directory of the length it says", "one cut short")
        sign, _, version, flags, method, _, _, crc, packed, size, *lengths, disk, _, _, start = _CENTRAL.unpack_from(
            content, position
        )
        name_at, extra_at = position + _CENTRAL.size, position + _CENTRAL.size + lengths[0]
        position = extra_at + lengths[1] + lengths[2]
        if (
            sign != b"PK\x01\x02"
            or version > _VERSION
            or disk
            or lengths[1] > _MAX_EXTRA_BYTES
            or lengths[2]
            or position > stop
        ):
            raise _fault("an entry of a zip's directory without a comment", "a malformed one")
        name = bytes(content[name_at:extra_at]).decode("ascii", "backslashreplace")
        size, packed, start = _sizes(bytes(content[extra_at : extra_at + lengths[1]]), size, packed, start)
        if method or flags or packed != size:
            raise _fault(f"the part {name} stored as it is", "a compressed or encrypted one")
        entries.append(_Entry(name=name, start=start, size=size, crc=crc))
    if position != stop:
        raise _fault("nothing in the directory but the parts", f"{stop - position} bytes")
    return entries


def _sizes(extra: bytes, *values: int) -> tuple[int, ...]:
    """Replace those of (size, packed size, start) that do not fit into 32 bits by what the extra field says."""
    wide = [value == _MAX32 for value in values]
    if not any(wide):
        return values
    needed = 8 * sum(wide)
    if len(extra) < 4 + needed or struct.unpack_from("<2H", extra) != (1, needed):
        raise _fault("the sizes of a part over 4 GiB", "none")
    found = iter(struct.unpack_from(f"<{sum(wide)}Q", extra, 4))
    return tuple(next(found) if is_wide else value for value, is_wide in zip(values, wide, strict=True))


def _content_start(content: memoryview, entry: _Entry) -> int:
    """Return where a part's bytes start: behind a local header of the same name."""
    header_stop = entry.start + _LOCAL.size
    if header_stop > len(content):
        raise _fault(f"a local header of {entry.name}", "none")
    sign, version, flags, method, *_, name_length, extra_length = _LOCAL.unpack_from(content, entry.start)
    name = bytes(content[header_stop : header_stop + name_length])
    plain = sign == b"PK\x03\x04" and version <= _VERSION and not flags and not method
    if not plain or name != entry.name.encode() or extra_length > _MAX_EXTRA_BYTES:
        raise _fault(f"a local header of {entry.name} that agrees with the directory", "another one")
    return header_stop + name_length + extra_length


def _fault(expected: str, given: str) -> MalformedError:
    return malformed("E-ZIP", _WHERE, expected, given)
