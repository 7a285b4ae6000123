"""Which names a pickled model would import, found without unpickling it; free of torch.

A pickle is a program. What it can call is what it imports by name, so all these names are looked at; where one cannot be told
for sure, the file is refused.
"""

from __future__ import annotations

import pickletools
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

MAX_PICKLE_BYTES = 32 << 20  #: of the structure alone: tensors are beside it

_ZIP_START = b"PK\x03\x04"
_PICKLE_START = b"\x80"
_DAMAGED = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, RuntimeError, OverflowError)

_STRINGS = {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE"}
_PUTS = {"MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"}
_GETS = {"GET", "BINGET", "LONG_BINGET"}
_EXTENSIONS = {"EXT1", "EXT2", "EXT4"}
_NOTHING = {"PROTO", "FRAME"}  #: these leave the stack as it is

_CLASS = r"[A-Z]\w*"
_ACTIVATIONS = "relu|relu6|gelu|silu|mish|tanh|sigmoid|elu|selu|celu|leaky_relu|softplus|softmax|log_softmax|hardswish|hardtanh"
_BUILTINS = "list|dict|set|frozenset|tuple|int|float|bool|complex|str|bytes|bytearray|slice|range|object"
_FORMATS = "strided|contiguous_format|preserve_format|channels_last|channels_last_3d"
_TYPES = r"bool|b?float\d+|float8_\w+|u?int\d+|complex\d+"

#: What PyTorch's own modules and tensors need: classes, and functions that call nothing but what they are given. Not all of
#: torch: torch.load, torch.hub or torch._utils._import_dotted_name would run anything.
_SAFE = {
    "torch": rf"[A-Z]\w*Storage|Size|device|Tensor|{_FORMATS}|{_TYPES}",
    "torch._utils": r"_rebuild_\w+",
    "torch._tensor": r"_rebuild_from_type_v2",
    "torch.storage": r"UntypedStorage|TypedStorage",
    "torch.serialization": r"_get_layout",
    "torch.nn.parameter": _CLASS,
    "torch.nn.functional": _ACTIVATIONS,
    "torch._C._nn": _ACTIVATIONS,
    "collections": r"OrderedDict|defaultdict|deque|Counter",
    "builtins": _BUILTINS,
    "__builtin__": _BUILTINS,
    "copyreg": r"_reconstructor",
    "copy_reg": r"_reconstructor",
    "_codecs": r"encode",
}
_TORCH_MODULES = "torch.nn.modules."


class UndeterminedError(ValueError):
    """What a pickle would import cannot be told; the message says why."""


def foreign_names(path: Path, modules: Sequence[str]) -> list[str]:
    """Return what a model's file would import that is neither PyTorch's own nor in one of these modules, or below it.

    Nothing is returned for files that are not unpickled by name: data, TorchScript, archives of ``torch.export``.

    Raises:
        UndeterminedError: If it cannot be told for sure.
        OSError: If the file cannot be read.
    """
    found = {name for content in _pickles(path) for name in _imported(content)}
    return sorted(f"{module}.{name}" for module, name in found if not _is_accepted(module, name, modules))


def _is_accepted(module: str, name: str, modules: Sequence[str]) -> bool:
    if not name.isidentifier():
        return False  # a dotted name may lead anywhere: what a module imports is among its attributes
    if any(module == prefix or module.startswith(f"{prefix}.") for prefix in modules):
        return True
    pattern = _CLASS if module.startswith(_TORCH_MODULES) else _SAFE.get(module)
    return pattern is not None and re.fullmatch(pattern, name) is not None


def _pickles(path: Path) -> Iterator[bytes]:
    """Yield the pickles in a file that ``torch.load`` would read."""
    with path.open("rb") as file:
        start = file.read(len(_ZIP_START))
        if start.startswith(_PICKLE_START):
            raise UndeterminedError("it is in the form of PyTorch before 1.6, which can hide what it imports")
        if start != _ZIP_START and not zipfile.is_zipfile(file):
            return
        file.seek(0)
        try:
            with zipfile.ZipFile(file) as archive:
                yield from _pickles_in(archive, path, start)
        except _DAMAGED as error:
            raise UndeterminedError(f"its archive is damaged: {error}") from error


def _pickles_in(archive: zipfile.ZipFile, path: Path, start: bytes) -> Iterator[bytes]:
    infos = archive.infolist()
    names = [info.filename for info in infos]
    # Readers of archives differ where one is not plain, and might then see another pickle than the one looked at here.
    is_plain = start == _ZIP_START and min((info.header_offset for info in infos), default=0) == 0
    if not is_plain or archive.comment or len({name.lower() for name in names}) < len(names):  # PyTorch's ignores the case
        raise UndeterminedError("its archive is not as torch.save writes it")
    if _is_loaded_otherwise(path, names):
        return
    for info in infos:
        if info.filename.lower().endswith(".pkl"):
            with archive.open(info) as entry:
                content = entry.read(MAX_PICKLE_BYTES + 1)
            if len(content) > MAX_PICKLE_BYTES:
                raise UndeterminedError(f"{info.filename} is larger than {MAX_PICKLE_BYTES} bytes")
            yield content


def _is_loaded_otherwise(path: Path, names: Sequence[str]) -> bool:
    """Whether it is TorchScript, or an archive of ``torch.export``, by the marks that ``recognise`` goes by."""
    inner = {name.partition("/")[2] or name for name in names}
    return "constants.pkl" in inner or path.suffix == ".pt2" or not inner.isdisjoint(_EXPORTED)


_EXPORTED = {"archive_format", "serialized_exported_program.json"}


def _imported(content: bytes) -> Iterator[tuple[str, str]]:
    """Yield module and name of all that a pickle imports."""
    texts: list[str | None] = []  # what lies on top of the stack, as far as it is known to be text
    memo: dict[int, str | None] = {}
    for operation, argument in _operations(content):
        if operation in {"GLOBAL", "INST"}:
            module, separator, name = str(argument).partition(" ")
            if not separator or " " in name:
                raise UndeterminedError(f"it imports by a name with blanks: {argument!r:.200}")
            yield module, name
        elif operation == "STACK_GLOBAL":
            if len(texts) < 2 or texts[-1] is None or texts[-2] is None:
                raise UndeterminedError("it imports by names that it computes")
            yield texts[-2], texts[-1]
        elif operation in _EXTENSIONS:
            raise UndeterminedError("it imports by numbers of an extension registry")
        _follow(operation, argument, texts, memo)


def _follow(operation: str, argument: object, texts: list[str | None], memo: dict[int, str | None]) -> None:
    """Keep track of texts on top of the stack and in the memo; whatever is not a text makes the stack unknown."""
    if operation in _STRINGS:
        texts.append(str(argument))
    elif operation in _GETS:
        assert isinstance(argument, int), "genops gives the memo's index"
        texts.append(memo.get(argument))
    elif operation in _PUTS:
        index = len(memo) if operation == "MEMOIZE" else argument
        assert isinstance(index, int), "genops gives the memo's index"
        memo[index] = texts[-1] if texts else None
    elif operation not in _NOTHING:
        texts.clear()
    del texts[:-2]


def _operations(content: bytes) -> Iterator[tuple[str, object]]:
    try:
        for operation, argument, _ in pickletools.genops(content):
            yield operation.name, argument
    except UndeterminedError:
        raise
    except Exception as error:  # whatever the bytes make the parser raise, they are no sound pickle
        raise UndeterminedError(f"its pickle is damaged: {type(error).__name__}: {error}") from error
