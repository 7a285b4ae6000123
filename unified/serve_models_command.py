"""``unified serve-models``: variants of a store over HTTP, until a signal drains them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable

import unified
from serving.http.listening import address_of, listen
from serving.http.loopback import is_loopback_address
from serving.http.one_family import OneFamily
from serving.http.process import HttpOptions, serve
from serving.profiling import profile
from serving.runtime.options import ServiceOptions
from serving.runtime.service import Service
from serving.store import VariantStore
from unified.service.http_child import parse_address
from unified.terminal import line_writer


def serve_models(options: argparse.Namespace) -> int:
    """Serve as the command line's ``options`` say; return the exit code."""
    host, port = parse_address(options.http)
    store = VariantStore.open(options.variants)
    models = store if options.family is None else OneFamily(store, options.family)
    service = Service(models, options=_service_options(options))
    listener = listen(host, port)
    write = line_writer(sys.stderr)

    def say(line: str) -> None:
        write(f"unified: {line}")

    def prepare() -> None:
        if options.profile_on_start:
            _profile(store, models.families(), options)

    say(f"listening on {address_of(listener)}")
    if not is_loopback_address(listener.getsockname()[0]):
        say("whoever reaches this address can ask: there is no authentication, so place it behind a proxy")
    http = HttpOptions(
        version=unified.__version__,
        latency_ms=options.latency_ms,
        max_body_bytes=int(options.max_body_mb * 1e6),
        drain_seconds=options.drain_seconds,
    )
    return serve(service, listener, http, say=say, prepare=prepare)


def _service_options(options: argparse.Namespace) -> ServiceOptions:
    return ServiceOptions(
        device=options.device,
        threads=options.threads,
        max_batch=1 if options.no_batching else options.max_batch,
        max_delay_ms=options.max_delay_ms,
        memory_bytes=None if options.memory_mb is None else int(options.memory_mb * 1e6),
        pinned=options.pin,
        drain_grace_seconds=options.drain_grace_seconds,
        mishit_log=options.mishit_log,
    )


def _profile(store: VariantStore, families: Iterable[str], options: argparse.Namespace) -> None:
    for family in families:
        profile(store, family, device=options.device, threads=options.threads)
