"""A service over variants in memory: what it answers, refuses, counts and survives."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path

import pytest
import torch

from serving.errors import ServingError
from serving.runtime.deployment import QUARANTINE_SECONDS, Deployment, Unusable
from serving.runtime.events import BatchRun, Evicted, Loaded, Outcome, Quarantined, RequestEnded
from serving.runtime.loading import Loader
from serving.runtime.options import ServiceOptions
from serving.runtime.requests import InferAnswer, InferRequest, RefusalKind, Refused
from serving.runtime.residency import Residency
from serving.runtime.service import Service
from tests.unit.serving_runtime import FAMILY, TASKS, Heads, Heard, Made, Memory, ask, expected, run, until

BIG, SMALL = Made(id="big", score=0.95, infer_ms=50_000), Made(id="small", score=0.8, infer_ms=10_000, seed=1)


def service(models: Memory, *listeners: Heard, **options: object) -> Service:
    return Service(models, options=ServiceOptions(refresh_seconds=0, **options), listeners=listeners)  # type: ignore[arg-type]


async def refusal(serving: Service, request: InferRequest) -> Refused:
    with pytest.raises(Refused) as caught:
        await serving.answer(request)
    return caught.value


def assert_answers(answer: InferAnswer, models: Memory, request: InferRequest) -> None:
    wanted = expected(models.networks[answer.version], request)
    for task, output in answer.outputs.items():
        # rows are computed together with others, by other kernels
        torch.testing.assert_close(output, wanted[task], rtol=1e-5, atol=1e-5)


def test_the_variant_that_fits_the_query_answers():
    async def scenario() -> None:
        models = Memory([BIG, SMALL])
        async with service(models) as serving:
            best, quick = ask(3), ask(2, latency_ms=40_000)
            answers = [await serving.answer(best), await serving.answer(quick)]
            assert [answer.version for answer in answers] == ["big", "small"]
            for answer, request in zip(answers, (best, quick), strict=True):
                assert list(answer.outputs) == ["kind", "size"]
                assert_answers(answer, models, request)
            assert answers[0].batch_rows == 3
            assert answers[0].id == "0"

    run(scenario)


def test_requests_that_wait_run_together_and_are_answered_as_alone():
    async def scenario() -> None:
        models, heard = Memory([BIG]), Heard()
        async with service(models, heard, pinned=("big",)) as serving:
            network = models.networks["big"]
            network.gate.clear()
            network.entered.clear()
            first = asyncio.create_task(serving.answer(ask()))
            await until(network.entered.is_set)
            requests = [ask(rows, seed=rows) for rows in (1, 2, 3)]
            others = [asyncio.create_task(serving.answer(request)) for request in requests]
            await until(lambda: serving.status().waiting_rows == 6)
            network.gate.set()
            await first
            answers = await asyncio.gather(*others)
            for answer, request in zip(answers, requests, strict=True):
                assert answer.batch_rows == 6
                assert_answers(answer, models, request)
            assert [(event.rows, event.requests) for event in heard.of(BatchRun)] == [(1, 1), (6, 3)]

    run(scenario)


def test_variants_that_together_answer_run_one_after_the_other():
    async def scenario() -> None:
        models = Memory([Made(id="k", tasks=("kind",)), Made(id="s", tasks=("size",))])
        async with service(models) as serving:
            request = ask(2)
            answer = await serving.answer(request)
            assert set(answer.version.split("+")) == {"k", "s"}
            assert list(answer.outputs) == ["kind", "size"]
            for task, key in (("kind", "k"), ("size", "s")):
                wanted = expected(models.networks[key], request)[task]
                torch.testing.assert_close(answer.outputs[task], wanted, rtol=1e-5, atol=1e-5)

    run(scenario)


def test_a_named_version_answers_without_selection_and_must_have_the_tasks():
    async def scenario() -> None:
        models = Memory([BIG, Made(id="k", tasks=("kind",))])
        async with service(models) as serving:
            assert (await serving.answer(ask(tasks=["kind"], version="k"))).version == "k"
            late = await serving.answer(ask(version="big", latency_ms=1e-3))
            assert late.late
            assert (await refusal(serving, ask(version="k"))).kind is RefusalKind.BAD_REQUEST
            assert (await refusal(serving, ask(version="other"))).kind is RefusalKind.NOT_FOUND
            assert serving.ledger.count(Outcome.LATE) == 1

    run(scenario)


def test_bad_requests_are_refused_with_words():
    async def scenario() -> None:
        async with service(Memory([BIG]), max_request_rows=8) as serving:
            good = ask()

            async def refused(**changes: object) -> str:
                fields = {name: getattr(good, name) for name in good.__slots__}
                return str(await refusal(serving, InferRequest(**(fields | changes))))

            assert "no model 'other'" in await refused(family="other")
            assert "no task weight" in await refused(query=ask(tasks=["weight"]).query)
            assert "expected FP32 (rows, 4), got torch.float32 (1, 5)" in await refused(inputs=(torch.ones(1, 5),))
            assert "got torch.int64" in await refused(inputs=(torch.ones(1, 4, dtype=torch.int64),))
            assert "expected 1 inputs (x), got 2" in await refused(inputs=(torch.ones(1, 4),) * 2)
            assert "at least one row" in await refused(inputs=(torch.ones(0, 4),))
            assert "too_many_rows" in await refused(inputs=(torch.ones(9, 4),))
            assert not serving.ledger.rows()

    run(scenario)


def test_a_mishit_is_refused_logged_and_counted_apart_from_best_effort(tmp_path):
    log = tmp_path / "mishits.jsonl"

    async def scenario() -> None:
        heard = Heard()
        async with service(Memory([BIG, SMALL]), heard, mishit_log=log) as serving:
            refused = await refusal(serving, ask(latency_ms=1))
            assert refused.kind is RefusalKind.MISHIT
            assert refused.code == "mishit_latency"
            assert "small" in refused.message
            answer = await serving.answer(ask(min_accuracy=0.99, on_mishit="best_effort"))
            assert answer.mishit is not None
            outcomes = [event.outcome for event in heard.of(RequestEnded)]
            assert outcomes == [Outcome.MISHIT_REJECTED, Outcome.MISHIT_BEST_EFFORT]
            assert [event.reason for event in heard.of(RequestEnded)] == ["latency", "accuracy"]
            assert serving.ledger.count(Outcome.MISHIT_REJECTED, family="things", tasks=("kind", "size")) == 1

    run(scenario)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["reason"] for line in lines] == ["latency", "accuracy"]
    assert lines[0]["query"]["latency_ms"] == 1
    assert lines[0]["closest"][0]["version"] == "small"


def test_what_has_passed_since_a_request_was_received_counts():
    async def scenario() -> None:
        async with service(Memory([BIG, SMALL]), pinned=("big", "small")) as serving:
            fresh = ask(latency_ms=60_000)
            fields = {name: getattr(fresh, name) for name in fresh.__slots__}
            old = InferRequest(**(fields | {"received": fresh.received - 30}))
            assert (await serving.answer(fresh)).version == "big"
            assert (await serving.answer(old)).version == "small"

    run(scenario)


def test_loading_counts_unless_a_variant_is_on_the_device():
    async def scenario() -> None:
        slow = Made(id="big", score=0.95, infer_ms=50_000, load_ms=1_000_000)
        async with service(Memory([slow, SMALL])) as serving:
            assert (await serving.answer(ask(latency_ms=100_000))).version == "small"
            await serving.answer(ask(version="big"))
            assert (await serving.answer(ask(latency_ms=100_000))).version == "big"

    run(scenario)


def test_requests_for_one_variant_share_a_load():
    async def scenario() -> None:
        models, heard = Memory([BIG]), Heard()
        models.gate.clear()
        async with service(models, heard) as serving:
            asked = [asyncio.create_task(serving.answer(ask(seed=seed))) for seed in range(4)]
            await until(lambda: serving.status().in_flight == 4)
            models.gate.set()
            await asyncio.gather(*asked)
            assert models.loads == ["big"]
            assert [(event.variant, event.warm) for event in heard.of(Loaded)] == [("big", False)]

    run(scenario)


def test_the_least_recently_used_leaves_and_what_is_pinned_stays():
    async def scenario() -> None:
        models, heard = Memory([Made(id=key) for key in "abcd"]), Heard()
        async with service(models, heard, memory_bytes=300, pinned=("a",)) as serving:
            for key in "bcbd":
                await serving.answer(ask(version=key))
            assert [event.variant for event in heard.of(Evicted)] == ["c"]
            assert set(serving.status().residents) == {"a", "b", "d"}
            assert serving.status().resident_bytes == 300

    run(scenario)


def test_a_variant_in_use_stays_until_its_calls_are_done():
    async def scenario() -> None:
        models = Memory([Made(id="a"), Made(id="b")])
        async with service(models, memory_bytes=100) as serving:
            await serving.answer(ask(version="a"))
            models.networks["a"].gate.clear()
            using = asyncio.create_task(serving.answer(ask(version="a")))
            waiting = asyncio.create_task(serving.answer(ask(version="b")))
            await until(lambda: serving.status().in_flight == 2)
            assert serving.status().residents == ("a",)
            models.networks["a"].gate.set()
            assert {(await using).version, (await waiting).version} == {"a", "b"}
            assert serving.status().residents == ("b",)

    run(scenario)


def test_a_load_that_waits_for_room_gets_it_before_what_is_there_is_used_again():
    async def scenario() -> None:
        models = Memory([Made(id="a"), Made(id="b")])
        async with service(models, memory_bytes=100) as serving:
            await serving.answer(ask(version="a"))
            models.networks["a"].gate.clear()
            asked = []
            for version in "aba":
                asked.append(asyncio.create_task(serving.answer(ask(version=version))))
                for _ in range(10):  # turns of the event loop: it runs, or waits for what it needs
                    await asyncio.sleep(0)
            models.networks["a"].gate.set()
            assert [answer.version for answer in await asyncio.gather(*asked)] == ["a", "b", "a"]
            assert models.loads == ["a", "b", "a"]  # not ["a", "b"]: then b would wait for as long as a is asked for

    run(scenario)


@pytest.mark.gpu
def test_what_has_left_a_gpu_comes_back_from_host_memory():
    async def scenario() -> None:
        models, heard = Memory([Made(id="a"), Made(id="b", seed=1)]), Heard()
        async with service(models, heard, device="cuda:0", memory_bytes=100, host_cache_bytes=100) as serving:
            for key in "aba":
                answer = await serving.answer(request := ask(version=key))
                wanted = models.networks[key].cpu()(*request.inputs)
                models.networks[key].to("cuda:0")
                # a GPU adds up in another order
                torch.testing.assert_close(dict(answer.outputs), wanted, rtol=1e-4, atol=1e-4)
            assert [(event.variant, event.warm) for event in heard.of(Loaded)] == [("a", False), ("b", False), ("a", True)]
            assert models.loads == ["a", "b"]

    run(scenario)


def test_a_variant_larger_than_the_memory_is_not_served():
    async def scenario() -> None:
        async with service(Memory([Made(id="large", num_bytes=1000, score=0.99), SMALL]), memory_bytes=500) as serving:
            assert (await serving.answer(ask())).version == "small"

    run(scenario)


def test_a_variant_whose_files_were_altered_is_quarantined_and_another_one_answers():
    async def scenario() -> None:
        models, heard = Memory([BIG, SMALL]), Heard()
        models.broken.add("big")
        async with service(models, heard) as serving:
            assert (await serving.answer(ask())).version == "small"
            assert (await serving.answer(ask())).version == "small"
            assert models.loads.count("big") == 1
            assert [event.variant for event in heard.of(Quarantined)] == ["big"]
            assert "not those that were added" in serving.status().quarantined["big"]
            models.broken.clear()
            models.put(models.made)
            assert await serving.refresh()
            assert (await serving.answer(ask())).version == "big"

    run(scenario)


def test_a_variant_that_does_not_answer_its_tasks_is_quarantined_and_another_one_answers():
    async def scenario() -> None:
        models = Memory([BIG, SMALL])
        models.networks["big"] = Heads(("kind",))
        async with service(models) as serving:
            assert (await serving.answer(ask())).version == "small"
            assert "task 'size': expected an output (1, 1), got NoneType" in serving.status().quarantined["big"]

    run(scenario)


def test_a_combination_of_which_several_variants_are_damaged_is_replaced_by_another():
    async def scenario() -> None:
        parts = [Made(id=f"{task}{place}", tasks=(task,), infer_ms=1.0, load_ms=1.0) for place in (0, 1) for task in TASKS]
        models = Memory([*parts, BIG])
        models.broken.update(part.id for part in parts)
        async with service(models) as serving:
            assert (await serving.answer(ask(min_accuracy=0.1))).version == "big"

    run(scenario)


def test_a_variant_that_could_not_be_loaded_is_tried_again_after_a_while():
    async def scenario() -> None:
        models, heard, now = Memory([BIG]), Heard(), [0.0]
        residency = Residency(memory_bytes=None)
        loader = Loader(models.load, residency, device=torch.device("cpu"), threads=1, host_cache_bytes=0, tell=heard)
        deployment = Deployment(models, ServiceOptions(), residency, loader, heard, clock=lambda: now[0])
        await deployment.start()
        models.broken.add("big")  # too many open files, say
        with pytest.raises(Unusable):
            await deployment.acquire(deployment.snapshot.servables["big"])
        models.broken.clear()
        assert not await deployment.refresh()
        assert "big" not in deployment.snapshot.servables
        now[0] += QUARANTINE_SECONDS + 1
        assert await deployment.refresh()
        await deployment.acquire(deployment.snapshot.servables["big"])
        deployment.close()

    run(scenario)


def test_a_full_disk_under_the_mishit_log_costs_lines_and_no_more(caplog):
    async def scenario() -> None:
        serving = service(Memory([SMALL]), mishit_log=Path("/dev/full"))
        await serving.start()
        assert (await refusal(serving, ask(latency_ms=1e-6))).kind is RefusalKind.MISHIT
        assert await serving.drain() == 0

    run(scenario)
    assert "a mishit is not in the log" in caplog.text


def test_without_memory_for_a_batch_others_leave_and_it_is_run_again():
    async def scenario() -> None:
        models, heard = Memory([BIG, SMALL]), Heard()
        async with service(models, heard, pinned=()) as serving:
            await serving.answer(ask(version="small"))
            await serving.answer(ask(version="big"))
            models.networks["big"].failures = [torch.OutOfMemoryError()]
            assert (await serving.answer(ask())).version == "big"
            assert "small" in {event.variant for event in heard.of(Evicted)}
            models.networks["big"].failures = [torch.OutOfMemoryError()] * 3
            assert (await serving.answer(ask())).version == "small"
            assert "no memory" in serving.status().quarantined["big"]

    run(scenario)


def test_a_call_that_breaks_the_network_does_not_hurt_its_neighbours():
    async def scenario() -> None:
        models = Memory([BIG])
        async with service(models, pinned=("big",)) as serving:
            network = models.networks["big"]
            network.gate.clear()
            network.entered.clear()
            first = asyncio.create_task(serving.answer(ask()))
            await until(network.entered.is_set)
            others = [asyncio.create_task(serving.answer(ask(seed=seed))) for seed in range(3)]
            await until(lambda: serving.status().waiting_rows == 3)
            # the first call runs, the batch fails, and then the first of its calls alone
            network.failures = [None, ValueError("together"), IndexError("index out of range in self")]
            network.gate.set()
            await first
            bad, *good = await asyncio.gather(*others, return_exceptions=True)
            assert isinstance(bad, Refused)
            assert (bad.kind, bad.code) == (RefusalKind.BAD_REQUEST, "out_of_range")
            assert all(isinstance(answer, InferAnswer) for answer in good)

    run(scenario)


def test_outputs_that_are_not_finite_are_never_handed_out(caplog):
    async def scenario() -> None:
        models = Memory([BIG])
        async with service(models, pinned=("big",)) as serving:
            with torch.no_grad():
                models.networks["big"].heads["kind"].weight.mul_(100)
            far = ask()
            far.inputs[0].fill_(3e38)
            assert "far beyond" in (await refusal(serving, far)).message
            far.inputs[0].fill_(torch.inf)
            assert "expected finite values" in (await refusal(serving, far)).message
            assert serving.ledger.count(Outcome.REFUSED) == 2
            with torch.no_grad():
                models.networks["big"].heads["kind"].bias.fill_(torch.nan)
            refused = await refusal(serving, ask())
            assert refused.kind is RefusalKind.INTERNAL
            short = refused.message.rsplit(" ", 1)[1]
            assert any(short in record.getMessage() and record.exc_info for record in caplog.records)
            assert serving.ledger.count(Outcome.FAILED) == 1

    run(scenario)


def test_no_more_rows_wait_than_allowed_and_a_client_is_told_when_to_come_again():
    async def scenario() -> None:
        models = Memory([BIG])
        async with service(models, pinned=("big",), max_waiting_rows=4, max_request_rows=4) as serving:
            network = models.networks["big"]
            network.gate.clear()
            network.entered.clear()
            running = asyncio.create_task(serving.answer(ask()))
            await until(network.entered.is_set)
            waiting = asyncio.create_task(serving.answer(ask(4)))
            await until(lambda: serving.status().waiting_rows == 4)
            refused = await refusal(serving, ask())
            assert refused.kind is RefusalKind.BUSY
            assert refused.retry_after > 1
            network.gate.set()
            await asyncio.gather(running, waiting)
            assert serving.ledger.count(Outcome.REFUSED) == 1
            assert serving.ledger.count(Outcome.OK) == 2

    run(scenario)


def test_a_request_whose_client_has_gone_is_not_run():
    async def scenario() -> None:
        models, heard = Memory([BIG]), Heard()
        async with service(models, heard, pinned=("big",), memory_bytes=100) as serving:
            network = models.networks["big"]
            network.gate.clear()
            network.entered.clear()
            running = asyncio.create_task(serving.answer(ask()))
            await until(network.entered.is_set)
            gone = asyncio.create_task(serving.answer(ask()))
            await until(lambda: serving.status().waiting_rows == 1)
            for task in (running, gone):  # one runs already, the other does not
                task.cancel()
            await asyncio.gather(running, gone, return_exceptions=True)
            network.gate.set()
            await serving.answer(ask())
            assert [event.requests for event in heard.of(BatchRun)] == [1, 1]
            assert serving.ledger.count(Outcome.CANCELLED) == 2

    run(scenario)


def test_variants_are_swapped_under_load_and_nothing_is_lost():
    async def scenario() -> None:
        old = [Made(id=f"old-{name}", name=name, infer_ms=1) for name in ("one", "two")]
        new = [Made(id=f"new-{name}", name=name, infer_ms=1, seed=5) for name in ("one", "two")]
        models = Memory(old)
        async with service(models, pinned=("one", "two")) as serving:
            versions, stop = [], asyncio.Event()

            async def client(name: str) -> None:
                for seed in range(10_000):
                    if stop.is_set():
                        return
                    request = ask(seed=seed)
                    answer = await serving.answer(request)
                    assert_answers(answer, models, request)
                    versions.append(answer.version)

            clients = [asyncio.create_task(client(name)) for name in "abcd"]
            await until(lambda: len(versions) > 50)
            models.put(new)
            assert await serving.refresh()
            assert set(serving.status().residents) >= {"new-one", "new-two"}  # there when it switched
            seen = len(versions)
            await until(lambda: len(versions) > seen + 50)
            stop.set()
            await asyncio.gather(*clients)
            assert {version[:3] for version in versions[:50]} == {"old"}
            assert {version[:3] for version in versions[-20:]} == {"new"}
            assert set(serving.status().residents) == {"new-one", "new-two"}
            assert serving.ledger.rows() == [("things", ("kind", "size"), Outcome.OK, len(versions))]
            assert not await serving.refresh()

    run(scenario)


def test_what_was_decided_before_a_swap_ends_on_the_old_variant():
    async def scenario() -> None:
        models = Memory([Made(id="old", name="one")])
        async with service(models) as serving:
            await serving.answer(ask())
            models.networks["old"].gate.clear()
            before = asyncio.create_task(serving.answer(ask()))
            await until(lambda: serving.status().in_flight == 1)
            await asyncio.sleep(0)
            models.put([Made(id="new", name="one")])
            assert await serving.refresh()
            after = asyncio.create_task(serving.answer(ask()))
            models.networks["old"].gate.set()
            assert (await before).version == "old"
            assert (await after).version == "new"
            assert serving.status().residents == ("new",)

    run(scenario)


def test_a_store_in_the_middle_of_a_change_is_not_served():
    async def scenario() -> None:
        models = Memory([BIG])
        async with service(models) as serving:
            await serving.answer(ask())
            models.put([Made(id="k", tasks=("kind",))])  # what answers the other task is not profiled yet
            assert not await serving.refresh()
            assert (await serving.answer(ask())).version == "big"
            models.put([Made(id="k", tasks=("kind",)), Made(id="new")])
            assert await serving.refresh()
            assert (await serving.answer(ask())).version == "new"

    run(scenario)


def test_a_variant_that_is_gone_from_the_store_is_replaced_by_what_came_for_it():
    async def scenario() -> None:
        models = Memory([BIG])
        async with service(models) as serving:
            models.put([SMALL])
            models.broken.add("big")
            assert (await serving.answer(ask())).version == "small"

    run(scenario)


def test_the_service_notices_by_itself_that_the_store_has_changed():
    async def scenario() -> None:
        models = Memory([SMALL])
        async with Service(models, options=ServiceOptions(refresh_seconds=0.01)) as serving:
            models.put([BIG, SMALL])
            await until(lambda: len(serving.table("things")) == 2)

    run(scenario)


def test_a_draining_service_finishes_what_it_has_accepted():
    async def scenario() -> None:
        models = Memory([BIG])
        async with service(models, pinned=("big",), drain_grace_seconds=0.05) as serving:
            assert serving.is_ready()
            network = models.networks["big"]
            network.gate.clear()
            asked = [asyncio.create_task(serving.answer(ask(seed=seed))) for seed in range(5)]
            await until(lambda: serving.status().in_flight == 5)
            draining = asyncio.create_task(serving.drain())
            await until(lambda: serving.status().draining)
            assert not serving.is_ready()
            asked.append(asyncio.create_task(serving.answer(ask())))  # in the grace
            await asyncio.sleep(0.1)
            assert (await refusal(serving, ask())).kind is RefusalKind.DRAINING
            network.gate.set()
            assert await draining == 0
            assert all(answer.version == "big" for answer in await asyncio.gather(*asked))

    run(scenario)


def test_a_drain_that_takes_too_long_says_how_many_are_lost():
    async def scenario() -> None:
        models = Memory([BIG])
        async with service(models, pinned=("big",), max_batch=1) as serving:
            network = models.networks["big"]
            network.gate.clear()
            network.entered.clear()
            asked = [asyncio.create_task(serving.answer(ask(seed=seed))) for seed in range(3)]
            await until(lambda: network.entered.is_set() and serving.status().waiting_rows == 2)
            threading.Timer(0.3, network.gate.set).start()  # closing waits for the batch that runs
            assert await serving.drain(timeout=0.01) == 3
            ended = await asyncio.gather(*asked, return_exceptions=True)
            assert sum(isinstance(one, Refused) and one.kind is RefusalKind.DRAINING for one in ended) == 2

    run(scenario)


def test_a_service_is_ready_when_each_task_is_answered():
    async def scenario() -> None:
        models = Memory([Made(id="k", tasks=("kind",))])
        async with service(models) as serving:
            assert serving.is_live()
            assert not serving.is_ready()
            models.put([BIG])
            await serving.refresh()
            assert serving.is_ready()
            assert serving.is_ready(FAMILY.name)
            assert not serving.is_ready("other")

    run(scenario)


def test_a_new_family_is_served_when_it_answers_all_of_its_tasks_and_the_others_stay_ready():
    async def scenario() -> None:
        models = Memory([BIG])
        async with service(models) as serving:
            for known in ([], [Made(id="k", tasks=("kind",))]):
                models.others["new"] = known
                models.put([BIG])
                await serving.refresh()
                assert (serving.is_ready(), list(serving.families)) == (True, [FAMILY.name])
            async with service(models) as another:  # one that starts in the middle of it
                assert (another.is_ready(), list(another.families)) == (True, [FAMILY.name])
            models.others["new"] = [Made(id="k", tasks=("kind",)), Made(id="s", tasks=("size",))]
            models.put([BIG])
            await serving.refresh()
            assert serving.is_ready("new")

    run(scenario)


def test_a_store_without_profiles_of_this_machine_is_refused():
    async def scenario() -> None:
        with pytest.raises(ServingError, match="variants profile"):
            await service(Memory([])).start()

    run(scenario)


def test_options_are_checked_all_at_once():
    with pytest.raises(ServingError, match=r"(?s)threads.*max_batch.*quantile.*max_waiting_rows"):
        ServiceOptions(threads=0, max_batch=0, quantile="p99", max_waiting_rows=1)


def test_pinned_variants_must_be_there_and_fit():
    async def scenario() -> None:
        with pytest.raises(ServingError, match="other"):
            await service(Memory([BIG]), pinned=("other",)).start()
        with pytest.raises(ServingError, match="pin fewer"):
            await service(Memory([BIG]), pinned=("big",), memory_bytes=10).start()

    run(scenario)
