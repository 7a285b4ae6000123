"""``unified serve``: a supervisor, its ticker and, if asked for, the HTTP process, until a signal ends them. Free of torch."""

from __future__ import annotations

import argparse
import logging
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from unified import sandbox
from unified.nursery import Nursery
from unified.queue.clock import Clock
from unified.queue.config import ServiceConfig
from unified.queue.root import Root
from unified.queue.spool import finish_interrupted
from unified.queue.store import JobStore
from unified.service import recovery
from unified.service.confining import ring_text
from unified.service.http_child import HttpChild, parse_address
from unified.service.supervisor import Drained, Supervisor
from unified.service.supervisor_ticks import Ticks
from unified.service.ticker import Tick, Ticker
from unified.terminal import line_writer

ECHO_SECONDS = 0.5  #: a signal to a process group and one passed on by its leader are one signal
EXIT_DONE, EXIT_ERROR, EXIT_FENCED, EXIT_INTERRUPTED = 0, 1, 5, 130

logger = logging.getLogger(__name__)


def serve(options: argparse.Namespace) -> int:
    """Run a supervisor as the command line's ``options`` say; return the exit code."""
    http = _http_child(options)
    with ExitStack() as stack:
        nursery = stack.enter_context(closing(Nursery()))  # its import of torch takes longest
        root = Root.make(options.root)
        config = ServiceConfig.read(root.config, options.overrides)
        sandbox.check(config.sandbox)
        lock = root.take_lock() if _goes_by_lock() else None
        if lock is not None:
            stack.callback(os.close, lock)
        store = stack.enter_context(closing(JobStore.open(root.database)))
        holder = f"{host_name()}/{os.getpid()}/{secrets.token_hex(4)}"
        supervisor = Supervisor(root, store, config, holder=holder, nursery=nursery)
        _take_over(supervisor, has_lock=lock is not None)
        return _run(supervisor, lock, http)


def host_name() -> str:
    """Return what this host is called in leases; a boot is a host of its own."""
    return os.environ.get("UNIFIED_HOST_ID") or f"{socket.gethostname()}-{Clock.system().boot_id()[:8]}"


def _goes_by_lock() -> bool:
    """Whether the lock is taken; without it leases and epochs alone keep supervisors apart, which tests prove."""
    return os.environ.get("UNIFIED_NO_LOCK") != "1"


def _http_child(options: argparse.Namespace) -> HttpChild | None:
    if options.http is None:
        return None
    from unified.service.http_process import HttpOptions, check_options

    host, port = parse_address(options.http)
    # Now, where it ends with a line: the HTTP process is started again for ever.
    check_options(HttpOptions(root=Path(options.root), host=host, port=port, token_file=options.token_file))
    return HttpChild(host=host, port=port, token_file=options.token_file, root=Path(options.root).resolve())


def _take_over(supervisor: Supervisor, *, has_lock: bool) -> None:
    """Put right what an earlier supervisor left undone."""
    root, store, holder = supervisor.root, supervisor.store, supervisor.holder
    finish_interrupted(root, store)
    recovery.finish_publishing(store, root)
    say = line_writer(sys.stderr)
    if has_lock:
        count = recovery.release_dead(store, supervisor.limits, mine=holder, host=host_name())
        if count:
            say(f"unified: an earlier supervisor ended without a word; freed {count} jobs of its leases")
    recovery.check_threads(store, supervisor.config)


def _run(supervisor: Supervisor, lock: int | None, http: HttpChild | None) -> int:
    config, say = supervisor.config, line_writer(sys.stderr)
    ticks = Ticks(supervisor=supervisor, lock=lock)
    doors = [] if http is None else [Tick(name="http", seconds=1.0, run=http.ensure)]
    ticker = Ticker([*ticks.all(), *doors], on_ok=supervisor.store.stamp)
    supervisor.ticker = ticker
    resumed = recovery.count_begun(supervisor.store)
    with _signals(supervisor):
        say(f"unified: serves {supervisor.root.path} with {config.scheduler}; resumed {resumed}; stop with Ctrl-C or SIGTERM")
        say(f"unified: sandbox {ring_text(config.sandbox, supervisor.devices)}")
        for line in _trusted_lines(config):
            say(line)
        ticker.start()
        supervisor.admitter.start()
        code = EXIT_ERROR
        try:
            code = _say_end(supervisor, supervisor.run())
        finally:
            supervisor.admitter.stop()
            stuck = ticker.stop()
            if http is not None:
                http.stop()
            if stuck:  # the interpreter would wait for such a thread at its exit, perhaps for ever
                logger.warning("ends although %s is still under way", ", ".join(stuck), exc_info=sys.exc_info()[0] is not None)
                os._exit(code)
        return code


def _trusted_lines(config: ServiceConfig) -> Iterator[str]:
    """Say whose models may run code here."""
    if config.trust:
        yield "unified: accepts models that run code when they are loaded, whoever hands them in"
    elif config.trusted is not None:
        modules = ", ".join(config.trusted.modules) or "none"
        yield f"unified: accepts models that run code, signed for queue {config.trusted.name!r}; modules of pickles: {modules}"
        for signer in config.trusted.signers.values():
            yield f"unified: accepts the key of {signer.user!r}: {signer.line.partition(' ')[0]}"


def _say_end(supervisor: Supervisor, drained: Drained) -> int:
    say = line_writer(sys.stderr)
    if supervisor.is_fenced:
        say("unified: fenced: another supervisor has this root; nothing was saved here")
        return EXIT_FENCED
    supervisor.guarded(supervisor.write_status, "writing status.json")
    say(f"unified: saved {drained.num_saved} of {drained.num_resident}, attempts counted 0")  # of the jobs on slots
    return EXIT_DONE


@contextmanager
def _signals(supervisor: Supervisor) -> Iterator[None]:
    """Let SIGTERM and SIGINT drain; a second one ends the process at once, and its workers with it."""
    told = None

    def stop(*_: object) -> None:
        nonlocal told
        if told is None:
            told = time.monotonic()
            supervisor.drain()
        elif time.monotonic() - told > ECHO_SECONDS:
            os._exit(EXIT_INTERRUPTED)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
