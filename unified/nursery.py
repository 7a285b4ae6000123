"""The nursery: one process that imports torch once and forks every worker from itself.

A worker forked here starts in milliseconds and shares the imported libraries' pages with its siblings, where a process of
its own would import for seconds and hold its own copy. The nursery itself never runs a tensor operation, so there are no
OpenMP or CUDA threads that a fork would lose.

Run as ``python -m unified.nursery FD``: ``FD`` is a Unix socket on which :class:`Nursery` asks for children.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any

from unified.errors import NurseryDiedError, SpawnError
from unified.parent_death import die_with_parent

_MAX_REQUEST = 65536

#: By default glibc maps every large block anew and gives it back at once, so each step's activations fault in page after page:
#: a sixth of the CPU time of a small ResNet's training went there. Workers keep such blocks; what a member held is given back
#: when it leaves (``worker.trim_memory``). Only glibc reads these, and only when a process starts.
_MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": str(256 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(512 << 20),
    "MALLOC_TOP_PAD_": str(64 << 20),
}

#: Models and data come from files. Some models of ``transformers`` would fetch kernels when they first run, from people whom
#: nobody here knows.
_OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """A forked process: its pid, and our end of the pipe to it."""

    pid: int
    pipe: Connection


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """How a child ended: its exit code, minus the signal's number if one killed it, None if nobody knows."""

    code: int | None

    def __str__(self) -> str:
        if self.code is None:
            return "gone with the process that started it"
        if self.code < 0:
            return f"killed by {signal.Signals(-self.code).name}"
        return f"ended with exit code {self.code}"

    @property
    def is_from_outside(self) -> bool:
        """Whether somebody else ended it: no program of its own dies of these signals, unless it sends them itself."""
        return self.code is None or -self.code in {signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT}


class Nursery:
    """The engine's side: starts the nursery process, which needs a second or two until it answers, and asks it for children."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # jobs may be submitted from another thread than the one that runs them
        self.hides_gpus = False  #: children of a CPU run are not to find a GPU
        self._start()

    def revive(self) -> None:
        """Start a new nursery process if this one's is gone, and its children with it."""
        with self._lock:
            if self._process.poll() is None:
                return
            self._socket.close()
            self._start()

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environment = _MALLOC | _OFFLINE | os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._socket = ours
        self._process = subprocess.Popen(
            [sys.executable, "-m", "unified.nursery", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=2,  # what models print must not mix with the command's own output
            start_new_session=True,  # Ctrl-C reaches the engine alone, which then ends its children in order
        )
        theirs.close()

    @property
    def pid(self) -> int:
        """Process id of the nursery."""
        return self._process.pid

    def spawn(self, role: str, **arguments: int | str) -> Child:
        """Fork a child that runs ``module:function`` ``role`` with a pipe and ``arguments``.

        Raises:
            NurseryDiedError: If the nursery itself is gone.
            SpawnError: If the system lets it start no process now.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            request = {"role": role, "arguments": arguments, "hides_gpus": self.hides_gpus}
            answer = self._ask(request, [theirs.fileno()])
        finally:
            theirs.close()
        if "error" in answer:
            ours.close()
            raise SpawnError(f"no process can be started now: {answer['error']}")
        return Child(pid=answer["pid"], pipe=Connection(ours.detach()))

    def reap(self, child: Child) -> Exit:
        """Collect a child whose pipe has closed and say how it ended."""
        child.pipe.close()
        try:
            return Exit(code=self._ask({"reap": child.pid}, [])["status"])
        except NurseryDiedError:
            return Exit(code=None)

    def _ask(self, request: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        try:
            with self._lock:
                socket.send_fds(self._socket, [json.dumps(request).encode()], descriptors)
                answer = self._socket.recv(_MAX_REQUEST)
        except OSError as error:
            raise NurseryDiedError(f"the process that starts workers is gone ({error}); run again") from error
        if not answer:
            raise NurseryDiedError("the process that starts workers ended while importing torch; see its output above")
        return json.loads(answer)

    def close(self) -> None:
        """End the nursery and whatever children it still has."""
        self._socket.close()
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def _serve(control: socket.socket) -> None:
    while True:
        request, descriptors, _, _ = socket.recv_fds(control, _MAX_REQUEST, 1)
        if not request:
            break  # the engine is gone, or done
        asked = json.loads(request)
        if "reap" in asked:
            control.send(json.dumps({"status": _reap(asked["reap"])}).encode())
            continue
        try:
            pid = os.fork()
        except OSError as error:  # the others must not pay for it
            os.close(descriptors[0])
            control.send(json.dumps({"error": str(error)}).encode())
            continue
        if pid == 0:
            control.close()
            _become(asked, descriptors[0])
        os.close(descriptors[0])
        control.send(json.dumps({"pid": pid}).encode())
    os.killpg(os.getpgrp(), signal.SIGKILL)  # we are the leader of a group of our own: children end with us


def _reap(pid: int) -> int | None:
    """Collect a child that is ending; kill it if it does not within a few seconds."""
    for _ in range(500):
        with contextlib.suppress(ChildProcessError):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return None


def _become(request: dict[str, Any], descriptor: int) -> None:
    """Run the requested role in this fresh child and end the process with it."""
    die_with_parent()
    code = 1
    if request["hides_gpus"]:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # read when CUDA starts, which no fork has done yet
    try:
        module, function = request["role"].split(":")
        role: Callable[..., None] = getattr(import_module(module), function)
        role(Connection(descriptor), **request["arguments"])
        code = 0
    except (EOFError, BrokenPipeError, ConnectionResetError):
        code = 0  # the engine is gone: nothing is left to do
    except Exception:  # noqa: BLE001 - the last border of a process: say what happened, then end it
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # no atexit handlers of the nursery's, no waiting for threads


def main() -> None:
    """Import what children need, then fork them on request."""
    import gc

    # Imports only: see the module's docstring for why nothing may run here.
    import_module("unified.worker")
    import_module("torch._dynamo")  # what the first optimizer of a process imports, for nearly a second
    gc.collect()
    gc.freeze()
    _serve(socket.socket(fileno=int(sys.argv[1])))


if __name__ == "__main__":
    main()
