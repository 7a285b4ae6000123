"""Malformed requests by the thousand: a server must answer each with a 4xx or close, and not grow.

``python -m benchmarks.serving_fuzz http://127.0.0.1:8090 100000 --pid PID`` prints what came back.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import random
import socket
import struct
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

import psutil

_PARTS = 20  #: of the requests; memory is looked at after each
_SECONDS = 20.0  #: for an answer
_CLOSED = "closed"  #: what counts where a connection ends without an answer


@dataclass(frozen=True, slots=True)
class Shot:
    """The bytes of one request; ``is_open``: it does not end, so the connection has to."""

    content: bytes
    is_open: bool = False


def run_fuzz(address: str, count: int, *, pid: int | None = None, seed: int = 0, num_threads: int = 4) -> dict[str, Any]:
    """Send malformed requests to a server of variants.

    Args:
        address: Of the server, ``http://HOST:PORT``.
        count: How many.
        pid: Of its process, whose memory is watched; None: it is not.
        seed: Of what is sent.
        num_threads: How many connections send at a time.

    Returns:
        ``statuses``: how many answers had which status, ``"closed"`` among them; ``status_5xx``; ``growth_mib``: by
        how much the peak of the second half is above that of the first, of ``memory_bytes``, which has a value for each
        twentieth (0 without ``pid``); ``is_ready`` at the end; ``requests`` and ``seconds``.
    """
    begin = time.monotonic()
    model = _ask(f"{address}/v2/models")["models"][0]
    maker = _Maker(model, _ask(f"{address}/v2/models/{model}")["inputs"], urlsplit(address).netloc)
    statuses, memory = Counter[str](), []
    for part in range(_PARTS):
        share = count // _PARTS + (part < count % _PARTS)
        statuses += _send(address, maker, share, [f"{seed}-{part}-{number}" for number in range(num_threads)])
        memory.append(0 if pid is None else psutil.Process(pid).memory_info().rss)
    return {
        "requests": statuses.total(),
        "statuses": dict(sorted(statuses.items())),
        "status_5xx": sum(number for status, number in statuses.items() if status.startswith("5")),
        # By peaks: between requests the allocator gives back some MiB or not, as it happens.
        "growth_mib": (max(memory[_PARTS // 2 :]) - max(memory[: _PARTS // 2])) / (1 << 20),
        "memory_bytes": memory,
        "is_ready": bool(_ask(f"{address}/v2/health/ready")["ready"]),
        "seconds": time.monotonic() - begin,
    }


def _ask(url: str) -> dict[str, Any]:
    with urlopen(url, timeout=_SECONDS) as answer:
        return json.loads(answer.read())


def _send(address: str, maker: _Maker, count: int, seeds: list[str]) -> Counter[str]:
    """Send so many requests, a share of them for each seed at the same time."""
    shares = [count // len(seeds) + (place < count % len(seeds)) for place in range(len(seeds))]
    with ThreadPoolExecutor(len(seeds)) as threads:
        parts = threads.map(partial(_send_share, address, maker), shares, seeds)
        return sum(parts, Counter[str]())


def _send_share(address: str, maker: _Maker, count: int, seed: str) -> Counter[str]:
    """Send one request after another, on one connection for as long as the server keeps it."""
    dice, statuses = random.Random(seed), Counter[str]()
    connection = _Connection(address)
    for _ in range(count):
        statuses[connection.shoot(maker.make(dice))] += 1
    connection.close()
    return statuses


class _Connection:
    """A connection that is made anew when the server has closed it."""

    def __init__(self, address: str) -> None:
        place = urlsplit(address)
        self._place = (place.hostname, place.port)
        self._socket: socket.socket | None = None

    def shoot(self, shot: Shot) -> str:
        """Send a request and return the status of its answer."""
        fresh = self._socket is None
        status = self._once(shot)
        if status == _CLOSED and not fresh:  # perhaps only because the last answer had ended the connection
            status = self._once(shot)
        return status

    def close(self) -> None:
        """End the connection."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _once(self, shot: Shot) -> str:
        if self._socket is None:
            self._socket = socket.create_connection(self._place, timeout=_SECONDS)
        try:
            with contextlib.suppress(OSError):  # it may have answered what it did not read
                self._socket.sendall(shot.content)
                if shot.is_open:
                    self._socket.shutdown(socket.SHUT_WR)
            status, is_kept = _read_answer(self._socket)
        except ConnectionError:
            status, is_kept = _CLOSED, False
        if shot.is_open or not is_kept:
            self.close()
        return status


def _read_answer(connection: socket.socket) -> tuple[str, bool]:
    """Return the status of an answer, with a remark if a refusal says no reason, and whether the connection stays."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += _received(connection)
    head, _, body = received.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    while len(body) < int(headers.get("content-length", 0)):
        body += _received(connection)
    status = first.split(" ")[1]
    if status[0] != "2" and not body.startswith(b'{"error": "'):
        status += " without a reason"
    return status, headers.get("connection") != "close"


def _received(connection: socket.socket) -> bytes:
    chunk = connection.recv(1 << 16)
    if not chunk:
        raise ConnectionResetError
    return chunk


class _Maker:
    """Makes requests with one thing wrong with each."""

    def __init__(self, model: str, inputs: list[dict[str, Any]], host: str) -> None:
        self._model = model
        self._inputs = inputs
        self._host = host

    def make(self, dice: random.Random) -> Shot:
        """Return one."""
        kind = dice.choice((_break_text, _break_fields, _break_input, _break_parameters, _break_bytes, self._break_http))
        if kind == self._break_http:
            return self._break_http(dice)
        headers, body = kind(dice, self._request(dice))
        return Shot(self._post(body, headers, dice))

    def _request(self, dice: random.Random) -> dict[str, Any]:
        rows = dice.choice((1, 1, 2))
        inputs = []
        for spec in self._inputs:
            shape = [rows, *spec["shape"][1:]]
            inputs.append({"name": spec["name"], "datatype": spec["datatype"], "shape": shape, "data": [1] * math.prod(shape)})
        return {"id": str(dice.random()), "inputs": inputs}

    def _post(self, body: bytes, headers: dict[str, str], dice: random.Random) -> bytes:
        where = dice.choice(("", "", "", "/versions/none", f"/versions/{dice.getrandbits(64):016x}"))
        path = f"/v2/models/{self._model}{where}/infer"
        given = {"Host": self._host, "Content-Length": str(len(body)), "Content-Type": "application/json"} | headers
        head = "".join(f"{name}: {value}\r\n" for name, value in given.items())
        return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body

    def _break_http(self, dice: random.Random) -> Shot:
        body = json.dumps(self._request(dice)).encode()
        path = f"/v2/models/{self._model}/infer"
        host = f"Host: {self._host}\r\n"
        length = f"Content-Length: {len(body)}\r\n"
        choices: tuple[tuple[str, bytes, bool], ...] = (
            (
                f"POST {path} HTTP/1.1\r\n{host}Content-Length: {dice.choice(('x', '-1', '1e3', '', '9' * 40))}\r\n\r\n",
                b"",
                True,
            ),
            (f"POST {path} HTTP/1.1\r\n{host}Content-Length: {len(body) + 9}\r\n\r\n", body, True),
            (f"POST {path} HTTP/1.1\r\n{host}Content-Length: {10**12}\r\n\r\n", b"", True),
            (f"POST {path} HTTP/1.1\r\n{host}Content-Length: 3\r\nContent-Length: 4\r\n\r\n", b"{}", True),
            (f"POST {path} HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\n\r\n", b"zz\r\n{}\r\n0\r\n\r\n", True),
            (f"POST {path} HTTP/1.1\r\n{host}Transfer-Encoding: gzip\r\n\r\n", body, True),
            (f"POST {path} HTTP/1.1\r\nHost: example.org\r\n{length}\r\n", body, False),
            (f"POST {path} HTTP/1.1\r\n{host}Origin: https://example.org\r\n{length}\r\n", body, False),
            (f"POST {path} HTTP/1.1\r\n{length}\r\n", body, True),
            (f"{dice.choice(('PUT', 'GET', 'PATCH', 'BREW'))} {path} HTTP/1.1\r\n{host}{length}\r\n", body, False),
            (f"POST /{'a' * 70_000} HTTP/1.1\r\n{host}\r\n", b"", True),
            (f"POST {path} HTTP/1.1\r\n{host}X: {'y' * 70_000}\r\n\r\n", b"", True),
            (
                f"GET /v2/models/{dice.choice(('%ff%00', '..%2f..', '%', 'none', '%F0%9F%92%A9'))} HTTP/1.1\r\n{host}\r\n",
                b"",
                False,
            ),
            (
                f"GET /v2/{dice.choice(('health', 'models/none/variants', 'nothing', '?a=b'))} HTTP/1.1\r\n{host}\r\n",
                b"",
                False,
            ),
            (f"POST {path} HTTP/3.7\r\n{host}\r\n", b"", True),
            ("", dice.randbytes(200) + b"\r\n\r\n", True),
        )
        head, behind, is_open = dice.choice(choices)
        return Shot(head.encode("latin-1") + behind, is_open)


Broken = tuple[dict[str, str], bytes]


def _break_text(dice: random.Random, request: dict[str, Any]) -> Broken:
    """What is no JSON, or not in UTF-8, or has what JSON has not."""
    body = json.dumps(request).encode()
    at = dice.randrange(len(body))
    return {}, dice.choice(
        (
            body[:at],
            b"",
            body[:at] + dice.choice((b"\xff\xfe", b"\x00", b"\xc3", b'"', b"}", b",,")) + body[at:],
            b"[" * dice.choice((10, 2000, 50_000)),
            b'{"a":' * 3000,
            body.decode().encode("utf-16"),
            b"\xef\xbb\xbf" + body,
            body.replace(b"[1,", b"[NaN,", 1),
            body.replace(b"[1,", b"[-Infinity,", 1),
            body.replace(b"[1,", b"[" + b"9" * 5000 + b",", 1),
            json.dumps(dice.choice(([], 3, "text", None, [request]))).encode(),
            b'{"id":"' + b"\\ud800" * 2000 + b'"}',
        )
    )


def _junk(dice: random.Random) -> Any:
    return dice.choice((None, True, -1, 0, 1.5, 1e308, 10**30, "", "x", "\ud800", "é" * 2000, [], [[]], [1], {}, {"a": 1}))


def _break_fields(dice: random.Random, request: dict[str, Any]) -> Broken:
    name = dice.choice(("inputs", "outputs", "parameters", "id", "extra"))
    if name == "outputs":
        request[name] = dice.choice(([{"name": "none"}], [{"name": _junk(dice)}], [_junk(dice)], "x", {"name": 1}))
    else:
        request[name] = dice.choice((["x"], [None], 7, {"a": 1}, [request["inputs"][0]] * 2)) if name == "inputs" else [1]
    return {}, json.dumps(request).encode()


def _break_input(dice: random.Random, request: dict[str, Any]) -> Broken:
    entry = dice.choice(request["inputs"])
    count = len(entry["data"])
    name, value = dice.choice(
        (
            ("name", _junk(dice)),
            ("datatype", dice.choice(("FP31", "BYTES", "fp32", "UINT64", 3, None, ["FP32"]))),
            ("shape", dice.choice(([], [0], [-1], [10**30], [1.0], [True], ["1"], "1", None, [*entry["shape"][::-1], 1]))),
            ("shape", [dice.choice((0, -1, 10**9, 10**40)), *entry["shape"][1:]]),
            ("data", dice.choice(([1] * (count + 1), [1] * (count - 1), [], [[1] * count, [1]], "x", {}, 3))),
            ("data", [dice.choice(("1", None, [1], {}, True, 1e400, 10**400))] * count),
            ("data", dice.choice(([[[[[1]]]]], [[1], [1, 2]], [*[1] * (count - 1), [1]]))),
            ("parameters", dice.choice(({"binary_data_size": dice.choice((1, -1, 10**20, "4", True))}, {"x": 1}, [], "x"))),
            ("dtype", "FP32"),
        )
    )
    entry[name] = value
    return {}, json.dumps(request).encode()


def _break_parameters(dice: random.Random, request: dict[str, Any]) -> Broken:
    names = (
        "tasks",
        "latency_ms",
        "min_accuracy",
        "min_accuracy.none",
        "accuracy_mode",
        "budget",
        "on_mishit",
        "query_priority",
    )
    others = ("binary_data_output", "priority", "timeout", "sequence_id", "triton_x", "latency", "\ud800", "x" * 5000)
    wrong = (None, -1, 0, 1e400, 10**400, "none", "", ",", [1], {}, "\x00", 2**70)
    request["parameters"] = {dice.choice(names + others): dice.choice(wrong) for _ in range(dice.choice((1, 1, 3)))}
    if set(request["parameters"]) == {"query_priority"}:
        request["parameters"]["query_priority"] = 0.5
    return {}, json.dumps(request).encode()


def _break_bytes(dice: random.Random, request: dict[str, Any]) -> Broken:
    """Tensors as bytes behind the JSON, with something wrong about them."""
    raw = b""
    for entry in request["inputs"]:
        part = b"".join(struct.pack("<f", value) for value in entry.pop("data"))
        entry["parameters"] = {"binary_data_size": len(part)}
        raw += part
    content = json.dumps(request).encode()
    length = str(len(content))
    nan = struct.pack("<f", dice.choice((math.nan, math.inf, -math.inf)))
    far = struct.pack("<f", dice.choice((3e38, -3e38))) * (len(raw) // 4)
    length, raw = dice.choice(
        (
            (length, raw[:-1]),
            (length, raw + b"x"),
            (length, b""),
            (length, nan + raw[4:]),
            (length, far),
            (dice.choice(("", "x", "-1", "0", "1e2", "9" * 30, "²")), raw),
            (str(len(content) + 1), raw),
            (str(len(content) - 1), raw),
            (str(len(content) + len(raw) + 1), raw),
        )
    )
    headers = {"Inference-Header-Content-Length": length}
    if dice.random() < 0.1:
        headers["Content-Encoding"] = dice.choice(("gzip", "deflate", "x"))
    return headers, content + raw


def main() -> int:
    """Fuzz the server that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address")
    parser.add_argument("count", type=int)
    parser.add_argument("--pid", type=int)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    found = run_fuzz(options.address, options.count, pid=options.pid, seed=options.seed)
    print(json.dumps(found, indent=1))
    return 1 if found["status_5xx"] or not found["is_ready"] else 0


if __name__ == "__main__":
    sys.exit(main())
