"""Real queues with jobs in any state, and a thread that plays the supervisor's part by the store's own methods."""

import contextlib
import json
import threading
import zipfile

from unified.job_state import RESIDENT, JobState
from unified.queue.config import ServiceConfig
from unified.queue.store import JobStore
from unified.queue.verbs import Queue

S = JobState
HOLDER = "supervisor-1"

#: How a job comes to each state from QUEUED.
WAYS = {
    S.QUEUED: (),
    S.LOADING: (S.LOADING,),
    S.RUNNING: (S.LOADING, S.RUNNING),
    S.PAUSING: (S.LOADING, S.RUNNING, S.PAUSING),
    S.PAUSED: (S.LOADING, S.RUNNING, S.PAUSING, S.PAUSED),
    S.CANCELLING: (S.LOADING, S.RUNNING, S.CANCELLING),
    S.RETRY_WAIT: (S.LOADING, S.RUNNING, S.RETRY_WAIT),
    S.FINISHED: (S.LOADING, S.RUNNING, S.FINISHED),
    S.FAILED: (S.LOADING, S.RUNNING, S.FAILED),
    S.DEAD: (S.LOADING, S.RUNNING, S.DEAD),
    S.CANCELLED: (S.LOADING, S.RUNNING, S.CANCELLING, S.CANCELLED),
}


def job_folder(parent, name="lenet", **fields):
    """Write a job folder that light validation accepts; its model and data are for an inspector to refuse."""
    folder = parent / name
    folder.mkdir(parents=True, exist_ok=True)
    job = {
        "name": name,
        "model": "model.umodel",
        "data": {"train": "train.pt"},
        "loss": "MSELoss",
        "optimizer": {"name": "SGD", "lr": 0.1},
        "epochs": 2,
        "batch_size": 4,
    }
    (folder / "job.json").write_text(json.dumps(job | fields))
    for file in ("model.umodel", "train.pt"):
        with zipfile.ZipFile(folder / file, "w") as archive:
            archive.writestr(zipfile.ZipInfo(f"{name}/of"), f"{file} of {name}")
    return folder


def submitted(queue, parent, name="lenet", **fields):
    """Submit a job and return its id."""
    return queue.submit(job_folder(parent, name, **fields), by="ann").job.id


def bring(queue, job, state, **changes):
    """Move a QUEUED job along legal moves to ``state``, as a supervisor would, and return its row."""
    for step in WAYS[state]:
        row = queue.store.get(job)
        if step is S.LOADING:
            queue.store.lease(job, holder=HOLDER, slot=0, seconds=60, reason="placed", by="supervisor")
            continue
        more = dict(changes) if step is state else {}
        held = {"holder": HOLDER} if row.state in RESIDENT else {}
        queue.store.move(job, step, old=row.state, epoch=row.epoch, reason=f"now {step}", by="supervisor", **held, **more)
    return queue.store.get(job)


class Supervisor:
    """Holds the root's lock and settles commands, in a thread with a store of its own.

    Args:
        root: The queue's root.
        refuse: Verbs that are answered with a conflict.
        check: Admits jobs (True) or fails them with these problems.
        finish: End jobs in this state as soon as they were checked.
    """

    def __init__(self, root, *, refuse=(), check=None, finish=None):
        self.root, self.refuse, self.check, self.finish = root, refuse, check, finish
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._run)

    def __enter__(self):
        self.lock = self.root.take_lock()
        self.thread.start()
        return self

    def __exit__(self, *_):
        import os

        self.stop.set()
        self.thread.join()
        os.close(self.lock)

    def _run(self):
        with contextlib.closing(JobStore.open(self.root.database)) as store:
            while not self.stop.wait(0.02):
                for command in store.pending():
                    store.settle(command.sequence, self._carry_out(store, command))
                self._check(store)

    def _carry_out(self, store, command):
        if command.verb in self.refuse:
            return "conflict: it is too late"
        if command.verb == "checkpoint":
            return "done: step 7, jobs/x/ckpt/1-7.safetensors"
        for state in {"pause": (S.PAUSING, S.PAUSED), "cancel": (S.CANCELLING, S.CANCELLED)}.get(command.verb, ()):
            row = store.get(command.job)
            store.move(row.id, state, old=row.state, epoch=row.epoch, reason=f"asked by {command.by}", by="supervisor")
        return "done"

    def _check(self, store):
        for row in store.unchecked(10) if self.check is not None else ():
            if self.check is True:
                store.admit(row.id, {"fits": True}, steps_total=20, memory_bytes=1000)
            else:
                text = "\n".join(self.check)
                store.move(row.id, S.FAILED, old=S.QUEUED, epoch=row.epoch, reason=text, by="supervisor")
        for row in store.waiting(10) if self.finish is not None else ():
            queue = Queue(self.root, store, ServiceConfig())
            bring(queue, row.id, self.finish, result_path=f"results/{row.id}")
