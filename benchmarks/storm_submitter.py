"""A submitter of the storm: ``python -m benchmarks.storm_submitter WHERE ORDERS.json``, which may be killed and run again.

``WHERE`` is a queue's folder or the URL of its HTTP API. Each order is submitted under its own id and client token; what is
printed, ``accepted ID``, is a promise that was received. Run again, the same orders are the same jobs.
"""

from __future__ import annotations

import io
import json
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

Order = dict[str, str]  # "id", "token" and "folder"

HTTP_SECONDS = 120.0


def main(where: str, orders: Path) -> None:
    """Submit the orders, one after another."""
    submit = _by_http(where) if where.startswith("http") else _by_folder(where)
    _say("ready")
    for order in json.loads(orders.read_text()):
        _say(f"accepted {submit(order)}")


def _by_folder(root: str) -> Callable[[Order], str]:
    from unified.queue.verbs import Queue

    queue = Queue.open(root)

    def submit(order: Order) -> str:
        changes = {"id": order["id"], "client_token": order["token"]}
        return queue.submit(Path(order["folder"]), by="storm", changes=changes).job.id

    return submit


def _by_http(url: str) -> Callable[[Order], str]:
    import httpx

    client = httpx.Client(base_url=url, timeout=30.0)

    def submit(order: Order) -> str:
        headers = {"Idempotency-Key": order["token"], "Content-Type": "application/zip"}
        content = zip_of(Path(order["folder"]), {"id": order["id"]})
        deadline = time.monotonic() + HTTP_SECONDS
        while True:
            try:
                answer = client.post("/v1/jobs", content=content, headers=headers)
                if answer.status_code in {200, 201}:
                    return answer.json()["id"]
                problem = f"{answer.status_code}: {answer.text[:500]}"
                if answer.status_code < 500:
                    raise SystemExit(f"refused with {problem}")
            except httpx.TransportError as error:  # its process was killed, too
                problem = str(error)
            if time.monotonic() > deadline:
                raise SystemExit(f"no answer for {HTTP_SECONDS:g} s: {problem}")
            time.sleep(0.2)

    return submit


def zip_of(folder: Path, changes: dict[str, Any]) -> bytes:
    """Return a zip of a job folder with other values of some fields of its ``job.json``."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in sorted(folder.iterdir()):
            if path.name == "job.json":
                archive.writestr(path.name, json.dumps(json.loads(path.read_text()) | changes))
            else:
                archive.write(path, path.name)
    return buffer.getvalue()


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
