"""Load on a server of variants from another process: so many clients, each with one request under way at a time.

``python -m benchmarks.serving_load HOST PORT PATH REQUESTS CONCURRENCY SECONDS`` prints one line of JSON. REQUESTS holds a
line of JSON for each request that is sent in turn: ``body``, base64, and ``json_bytes``, the length of its JSON where binary
tensors follow, else null. The clients speak
HTTP/1.1 over sockets of their own and read no more of an answer than they must: on two cores a comfortable client would
take the time that is to be measured.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(slots=True, kw_only=True)
class Seen:
    """What the clients saw.

    Attributes:
        seconds: From sending a request to its whole answer, of those answered 200.
        statuses: How often each status came.
        late: Answers that say that they are late.
        predicted_ms: Of answers, as the server said.
        measured_ms: Likewise, as it measured.
        batch_rows: Rows of the batch that an answer was in.
        closed: Connections closed between two requests, just as the second was sent: by RFC 9112, section 9.3.1, the client
            sends it again.
        lost: Other requests without an answer.
        elapsed: Seconds of the whole.
    """

    seconds: list[float] = field(default_factory=list)
    statuses: dict[str, int] = field(default_factory=dict)
    late: int = 0
    predicted_ms: list[float] = field(default_factory=list)
    measured_ms: list[float] = field(default_factory=list)
    batch_rows: list[float] = field(default_factory=list)
    closed: int = 0
    lost: int = 0
    elapsed: float = 0.0


async def load(
    requests: Sequence[bytes], address: tuple[str, int], *, concurrency: int, seconds: float, until_refused: bool = False
) -> Seen:
    """Send requests for some seconds.

    Args:
        requests: Whole requests of HTTP, sent in turn; each client begins with another one.
        address: Of the server.
        concurrency: Clients.
        seconds: How long new requests begin.
        until_refused: Stop at the first 503 or refused connection of each client: it drains.
    """
    seen = Seen()
    began = time.perf_counter()
    clients = []
    for number in range(concurrency):
        start = number % len(requests)
        own = [*requests[start:], *requests[:start]]
        clients.append(_client(own, address, began + seconds, seen, until_refused=until_refused))
    await asyncio.gather(*clients)
    seen.elapsed = time.perf_counter() - began
    return seen


async def _client(requests: Sequence[bytes], address: tuple[str, int], end: float, seen: Seen, *, until_refused: bool) -> None:
    try:
        reader, writer = await asyncio.open_connection(*address)
    except OSError:
        seen.lost += not until_refused  # what was never taken was not lost
        return
    number = 0
    try:
        while time.perf_counter() < end:
            began = time.perf_counter()
            writer.write(requests[number % len(requests)])
            number += 1
            try:
                status, answer, closes = await _answer(reader)
            except (OSError, asyncio.IncompleteReadError) as error:
                is_between = number > 1 and isinstance(error, asyncio.IncompleteReadError) and not error.partial
                seen.closed, seen.lost = seen.closed + is_between, seen.lost + (not is_between)
                return
            seen.statuses[str(status)] = seen.statuses.get(str(status), 0) + 1
            if status == 200:
                _note(seen, answer, time.perf_counter() - began)
            if closes or (status == 503 and until_refused):
                return
    finally:
        writer.close()


def read_requests(file: Path, path: str, address: tuple[str, int]) -> list[bytes]:
    """Return the requests of a file, ready to be sent."""
    found = []
    for line in file.read_text().splitlines():
        entry = json.loads(line)
        body = base64.b64decode(entry["body"])
        lines = [f"POST {path} HTTP/1.1", f"Host: {address[0]}:{address[1]}", f"Content-Length: {len(body)}"]
        if entry["json_bytes"] is None:
            lines.append("Content-Type: application/json")
        else:
            lines += ["Content-Type: application/octet-stream", f"Inference-Header-Content-Length: {entry['json_bytes']}"]
        found.append(("\r\n".join(lines) + "\r\n\r\n").encode() + body)
    return found


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bytes, bool]:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    status = int(head.split(b" ", 2)[1])
    size = int(head.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
    return status, await reader.readexactly(size), b"connection: close" in head


def _note(seen: Seen, answer: bytes, seconds: float) -> None:
    parameters: dict[str, Any] = json.loads(answer)["parameters"]
    seen.seconds.append(seconds)
    seen.late += bool(parameters["late"])
    seen.predicted_ms.append(parameters["predicted_latency_ms"])
    seen.measured_ms.append(parameters["measured_latency_ms"])
    seen.batch_rows.append(parameters["batch_rows"])


def main() -> int:
    """Run the load of the command line."""
    host, port, path, file, concurrency, seconds = sys.argv[1:7]
    address = (host, int(port))
    work = load(
        read_requests(Path(file), path, address),
        address,
        concurrency=int(concurrency),
        seconds=float(seconds),
        until_refused="--until-refused" in sys.argv,
    )
    seen = asyncio.run(work)
    sys.stdout.write(json.dumps(asdict(seen)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
