"""What it takes to read a request of one panel, as JSON and as bytes."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from statistics import median

from serving.http.protocol import Target, read_call
from serving.records import Family

NUM_RUNS = 300


def measure_parsing(file: Path, family: Family) -> float:
    """Return the median milliseconds of reading the requests of a file that :func:`write_requests` wrote."""
    requests = []
    for line in file.read_text().splitlines():
        entry = json.loads(line)
        header = None if entry["json_bytes"] is None else str(entry["json_bytes"])
        requests.append((base64.b64decode(entry["body"]), header))
    target = Target(family=family, tasks=family.task_names)
    seconds = []
    for number in range(NUM_RUNS):
        body, header = requests[number % len(requests)]
        begin = time.perf_counter()
        read_call(bytearray(body), header, target, begin)
        seconds.append(time.perf_counter() - begin)
    return 1e3 * median(seconds)
