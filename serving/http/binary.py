"""Triton's binary tensor data extension: raw bytes of tensors behind the JSON of a request or an answer.

Source: triton-inference-server, ``docs/protocol/extension_binary_data.md``. BYTES is not among our datatypes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from serving.http.problems import bad_request, shown

EXTENSION = "binary_tensor_data"
HEADER = "Inference-Header-Content-Length"
_SIZE = "binary_data_size"


@dataclass(slots=True)
class RawTensors:
    """The bytes behind a request's JSON, which its inputs take one after another."""

    content: memoryview
    taken: int = 0

    def take(self, name: str, size: object, expected: int) -> memoryview:
        """Return the bytes of the next input.

        Args:
            name: Of the input.
            size: What it says of itself, its ``binary_data_size``.
            expected: What its shape and datatype take.

        Raises:
            Refused: If these differ, or so many bytes are not there.
        """
        if type(size) is not int or size != expected:
            raise bad_request("data", f"input {name!r}: expected {_SIZE} {expected} by shape and datatype, got {shown(size)}")
        if self.taken + size > len(self.content):
            raise bad_request(
                "data",
                f"input {name!r}: expected {size} bytes behind the JSON, got {len(self.content) - self.taken}; is {HEADER} the "
                f"length of the JSON alone?",
            )
        self.taken += size
        return self.content[self.taken - size : self.taken]

    def check_all_taken(self) -> None:
        """Refuse bytes that belong to no input; raises Refused."""
        left = len(self.content) - self.taken
        if left:
            raise bad_request("data", f"expected only the bytes of the inputs behind the JSON, got {left} more")


def split(body: bytearray, header: str | None) -> tuple[bytes | bytearray, RawTensors]:
    """Return the JSON of a request and what is behind it.

    Args:
        body: The whole body.
        header: What the request says the length of its JSON is; None: all of the body.

    Raises:
        Refused: If that is no length, or more than there is.
    """
    view = memoryview(body)
    if header is None:
        return body, RawTensors(view[:0])
    if not (header.isascii() and header.isdigit() and len(header) < 16 and 0 < int(header) <= len(body)):
        raise bad_request("header", f"expected {HEADER} from 1 to {len(body)}, the length of the body; got {shown(header)}")
    length = int(header)
    return bytes(view[:length]), RawTensors(view[length:])


def joined(content: bytes, tensors: Sequence[bytes]) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """Return body and headers of an answer: its JSON, and behind it tensors as bytes if there are any."""
    if not tensors:
        return content, [(b"content-type", b"application/json")]
    headers = [(b"content-type", b"application/octet-stream"), (HEADER.lower().encode(), str(len(content)).encode())]
    return b"".join((content, *tensors)), headers
