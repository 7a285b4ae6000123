"""What the tests of crashes run as processes: ``python -m tests.faults.spooling submit|scan|serve ROOT [PATH …]``."""

import sys
import time
from pathlib import Path

from tests.unit.job_folders import AT_ONCE
from unified.queue.config import ServiceConfig
from unified.queue.root import Root
from unified.queue.spool import finish_interrupted, scan
from unified.queue.store import JobStore
from unified.queue.sweeping import submit_all


def submit(root, store, paths):
    """Submit each path and say so once it is accepted: what is printed is a promise."""
    for path in map(Path, paths):
        for submitted in submit_all(root, store, path, by="somebody", config=AT_ONCE):
            print(submitted.job.id, submitted.is_new, flush=True)


def ingest(root, store, _):
    """What a supervisor does when it starts, and then about once a second."""
    finish_interrupted(root, store)
    for seen in scan(root, store, AT_ONCE, now=time.time()):
        print(seen.entry, seen.outcome, flush=True)


def serve(root, store, _):
    """Ingest until a file says that it is enough."""
    print("ready", flush=True)
    config = ServiceConfig.read(root.config) if root.config.exists() else AT_ONCE
    finish_interrupted(root, store)
    while not (root.path / "enough").exists():
        for seen in scan(root, store, config, now=time.time()):
            print(seen.entry, seen.outcome, seen.text if seen.outcome == "delayed" else "", flush=True)
        time.sleep(0.01)


if __name__ == "__main__":
    verb, where, *rest = sys.argv[1:]
    opened = Root.open(where)
    {"submit": submit, "scan": ingest, "serve": serve}[verb](opened, JobStore.open(opened.database), rest)
