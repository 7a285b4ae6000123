"""The HTTP API in this process, over the real service: every route, every status, and who may ask."""

import asyncio
import contextlib
import json
import math
import re
import struct

import httpx
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families

from serving.http.app import make_app
from serving.http.binary import HEADER
from serving.http.bodies import Bodies, Gone, SlowBodyError
from serving.http.guard import Guard
from serving.http.metrics import Metrics
from serving.http.one_family import OneFamily
from serving.runtime.events import Outcome, RequestEnded
from serving.runtime.options import ServiceOptions
from serving.runtime.requests import Refused
from serving.runtime.service import Service
from tests.unit.serving_runtime import FAMILY, TASKS, Made, Memory, run, until

INFER = "/v2/models/things/infer"
KINDS = "/v2/models/things/versions/kinds/infer"
MADE = [Made(id="both"), Made(id="kinds", tasks=("kind",), score=0.7, infer_ms=1000.0, load_ms=1.0)]


@contextlib.asynccontextmanager
async def asking(memory=None, *, starts=True, host="127.0.0.1", options=None, **settings):
    """A client of the app, and the service behind it."""
    service = Service(memory or Memory(MADE), options=options)
    app = make_app(service, version="1.2", **settings)
    if starts:
        await service.start()
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}") as client:
        try:
            yield client, service
        finally:
            service.close()


def request(rows=1, *, x=None, **fields):
    data = [0.25] * (4 * rows) if x is None else x
    return {"inputs": [{"name": "x", "datatype": "FP32", "shape": [rows, 4], "data": data}]} | fields


def error_of(answer):
    """The code of a refusal, which has no other form than this."""
    content = answer.json()
    assert list(content) == ["error"]
    found = re.fullmatch(r"([a-z0-9_]+): \S.*", content["error"], re.DOTALL)
    assert found, content
    return answer.status_code, found[1]


def test_metadata_and_health_are_as_the_protocol_says():
    async def scenario():
        async with asking() as (client, _):
            server = (await client.get("/v2")).json()
            assert (server["name"], server["version"]) == ("unified", "1.2")
            assert "binary_tensor_data" in server["extensions"]
            for path in ("/v2/health/live", "/v2/health/ready"):
                answer = await client.get(path)
                assert (answer.status_code, answer.json()) == (200, {"live": True, "ready": True})
            model = (await client.get("/v2/models/things")).json()
            assert (model["name"], model["platform"], sorted(model["versions"])) == ("things", "pytorch", ["both", "kinds"])
            assert model["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
            assert [(output["name"], output["shape"]) for output in model["outputs"]] == [("kind", [-1, 3]), ("size", [-1, 1])]
            version = (await client.get("/v2/models/things/versions/kinds")).json()
            assert [output["name"] for output in version["outputs"]] == ["kind"]
            for path in ("/v2/models/things/ready", "/v2/models/things/versions/kinds/ready"):
                answer = await client.get(path)
                assert (answer.status_code, answer.json()) == (200, {"name": "things", "ready": True})
            assert (await client.get("/v2/models")).json() == {"models": ["things"]}

    run(scenario)


def test_the_listing_has_the_profiles_and_what_is_on_the_device():
    async def scenario():
        async with asking() as (client, service):
            await client.post(INFER, json=request(parameters={"tasks": "kind"}))
            listing = (await client.get("/v2/models/things/variants")).json()
            assert listing["batches"] == [1, 2, 4, 8]
            found = {variant["id"]: variant for variant in listing["variants"]}
            assert found["kinds"]["scores"] == {"kind": 0.7}
            assert found["kinds"]["infer_ms"]["p50"] == [1000, 1100, 1300, 1700]
            assert {key for key, variant in found.items() if variant["is_resident"]} == set(service.status().residents)

    run(scenario)


def test_an_answer_is_the_network_s():
    async def scenario():
        memory = Memory(MADE)
        async with asking(memory) as (client, _):
            x = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
            with torch.no_grad():
                wanted = memory.networks["both"](x)
            answer = await client.post(INFER, json=request(2, x=x.tolist(), id="seven"))
            content = answer.json()
            assert (answer.status_code, content["id"], content["model_version"]) == (200, "seven", "both")
            for output in content["outputs"]:
                found = torch.tensor(output["data"]).reshape(output["shape"])
                # One batch of two rows in both cases: the same kernels, the same bits.
                torch.testing.assert_close(found, wanted[output["name"]], rtol=0, atol=0)

            head = {"inputs": [request(2)["inputs"][0] | {"parameters": {"binary_data_size": 32}}]}
            del head["inputs"][0]["data"]
            head["parameters"] = {"binary_data_output": True, "tasks": "size"}
            content = json.dumps(head).encode()
            raw = await client.post(INFER, content=content + x.numpy().tobytes(), headers={HEADER: str(len(content))})
            length = int(raw.headers[HEADER])
            assert json.loads(raw.content[:length])["outputs"][0]["parameters"] == {"binary_data_size": 8}
            found = torch.tensor(struct.unpack("<2f", raw.content[length:])).reshape(2, 1)
            torch.testing.assert_close(found, wanted["size"], rtol=0, atol=0)

    run(scenario)


def test_selection_and_versions_decide_what_answers():
    async def scenario():
        async with asking() as (client, _):

            async def ask(path=INFER, **parameters):
                return (await client.post(path, json=request(parameters=parameters))).json()

            assert (await ask(tasks="kind", latency_ms=60_000))["model_version"] == "kinds"
            assert (await ask(tasks="kind", min_accuracy=0.8))["model_version"] == "both"
            pinned = await ask(KINDS)
            assert (pinned["model_version"], [output["name"] for output in pinned["outputs"]]) == ("kinds", ["kind"])
            effort = await ask(min_accuracy=0.95, on_mishit="best_effort")
            assert (effort["parameters"]["mishit"], effort["parameters"]["mishit_reason"]) == (True, "accuracy")

    run(scenario)


STATUSES = {
    "no JSON": (INFER, b"{", 400, "json"),
    "unknown parameter": (INFER, request(parameters={"x": 1}), 400, "parameter"),
    "unknown task": (INFER, request(parameters={"tasks": "nose"}), 400, "tasks"),
    "a version without the task": (
        "/v2/models/things/versions/kinds/infer",
        request(parameters={"tasks": "size"}),
        400,
        "tasks",
    ),
    "another shape": (INFER, request(x=[1.0]), 400, "data"),
    "unknown model": ("/v2/models/none/infer", request(), 404, "unknown_model"),
    "unknown version": ("/v2/models/things/versions/none/infer", request(), 404, "unknown_version"),
    "mishit by accuracy": (INFER, request(parameters={"min_accuracy": 0.99}), 409, "mishit_accuracy"),
    "mishit by latency": (INFER, request(parameters={"latency_ms": 0.5}), 409, "mishit_latency"),
    "too many rows": (INFER, request(300), 413, "too_many_rows"),
    "too large": (INFER, b" " * 70_000, 413, "body_too_large"),
}


@pytest.mark.parametrize(("path", "content", "status", "code"), STATUSES.values(), ids=STATUSES)
def test_each_refusal_has_its_status_and_says_why(path, content, status, code):
    async def scenario():
        async with asking(max_body_bytes=60_000) as (client, _):
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            found = error_of(await client.post(path, content=body))
            assert found == (status, code)

    run(scenario)


def test_values_that_make_a_network_overflow_are_the_client_s_fault():
    async def scenario():
        memory = Memory([Made(id="both")])
        torch.nn.init.constant_(memory.networks["both"].shared.weight, 3.0)
        async with asking(memory) as (client, _):
            assert error_of(await client.post(INFER, json=request(x=[3e38] * 4)))[0] == 400
            assert (await client.post(INFER, json=request())).status_code == 200

    run(scenario)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "unknown_path"),
        ("GET", "/v2/models/none", 404, "unknown_model"),
        ("GET", "/v2/models/none/variants", 404, "unknown_model"),
        ("GET", "/v2/models/things/versions/none", 404, "unknown_version"),
        ("GET", "/v2/models/things/versions/none/ready", 404, "unknown_version"),
        ("POST", "/v2/models/things", 405, "method"),
        ("GET", INFER, 405, "method"),
        ("POST", "/v2/models/a/b/c/infer", 404, "unknown_path"),
    ],
)
def test_no_route_is_said_in_the_same_form(method, path, status, code):
    async def scenario():
        async with asking() as (client, _):
            assert error_of(await client.request(method, path)) == (status, code)

    run(scenario)


def test_a_server_that_starts_is_live_but_not_ready():
    async def scenario():
        async with asking(starts=False) as (client, _):
            assert (await client.get("/v2/health/live")).status_code == 200
            assert (await client.get("/v2/health/ready")).status_code == 503
            answer = await client.post(INFER, json=request())
            assert error_of(answer) == (503, "not_ready")
            assert int(answer.headers["Retry-After"]) >= 1
            assert error_of(await client.get("/v2/models/things")) == (503, "not_ready")

    run(scenario)


def test_a_server_that_drains_is_not_ready_and_ends_connections():
    async def scenario():
        async with asking(is_stopping=lambda: True) as (client, service):
            assert await service.drain(5) == 0
            assert (await client.get("/v2/health/ready")).status_code == 503
            answer = await client.post(INFER, json=request())
            assert error_of(answer)[0] == 503
            assert answer.headers["Connection"] == "close"
            assert "Retry-After" in answer.headers

    run(scenario)


def test_a_full_queue_is_busy():
    async def scenario():
        memory = Memory(MADE)
        options = ServiceOptions(max_request_rows=4, max_waiting_rows=4, max_batch=4)
        async with asking(memory, options=options, max_rows=4) as (client, service):
            await client.post(INFER, json=request())  # loads it
            memory.networks["both"].entered.clear()
            memory.networks["both"].gate.clear()
            running = asyncio.create_task(client.post(INFER, json=request(4)))
            await until(memory.networks["both"].entered.is_set)
            waiting = asyncio.create_task(client.post(INFER, json=request(4)))
            await until(lambda: service.status().waiting_rows == 4)
            answer = await client.post(INFER, json=request(4))
            assert error_of(answer)[0] == 503
            assert "Retry-After" in answer.headers
            memory.networks["both"].gate.set()
            assert [(await task).status_code for task in (running, waiting)] == [200, 200]

    run(scenario)


def test_our_fault_is_said_with_a_short_id_and_the_trace_is_in_the_log(caplog):
    async def scenario():
        memory = Memory([Made(id="both")])
        async with asking(memory) as (client, _):
            await client.post(INFER, json=request())  # loads it
            memory.networks["both"].failures = [RuntimeError("secret detail")] * 3
            answer = await client.post(INFER, json=request())
            assert error_of(answer)[0] == 500
            assert "secret" not in answer.text
            assert "secret detail" in caplog.text

    run(scenario)


def test_a_client_that_goes_away_is_not_answered():
    async def scenario():
        memory = Memory(MADE)
        async with asking(memory) as (client, service):
            await client.post(INFER, json=request())
            network = memory.networks["both"]
            network.entered.clear()
            network.gate.clear()
            first = asyncio.create_task(client.post(INFER, json=request()))
            await until(network.entered.is_set)
            app = client._transport.app
            messages = [{"type": "http.request", "body": json.dumps(request()).encode()}]
            gone = asyncio.Event()
            sent = []

            async def receive():
                if messages:
                    return messages.pop()
                await gone.wait()
                return {"type": "http.disconnect"}

            async def send(message):
                sent.append(message)

            headers = [(b"host", b"localhost")]
            scope = {"type": "http", "method": "POST", "path": INFER, "headers": headers, "query_string": b""}
            second = asyncio.create_task(app(scope, receive, send))
            await until(lambda: service.status().waiting_rows == 1)
            gone.set()
            await second
            assert not sent
            assert service.ledger.count(Outcome.CANCELLED) == 1
            network.gate.set()
            assert (await first).status_code == 200

    run(scenario)


def test_the_metrics_add_up_to_what_happened():
    async def scenario():
        async with asking() as (client, service):
            for _ in range(3):
                await client.post(INFER, json=request(2))
            await client.post(INFER, json=request(parameters={"min_accuracy": 0.99}))
            await client.post(INFER, content=b"{")
            answer = await client.get("/metrics")
            assert answer.headers["Content-Type"].startswith("text/plain")
            found = {}
            for metric in text_string_to_metric_families(answer.text):
                for sample in metric.samples:
                    found[sample.name, *sorted(sample.labels.values())] = sample.value
            assert found["serving_infer_responses_total", "200"] == 3
            assert found["serving_infer_responses_total", "400"] == 1
            assert found["serving_infer_responses_total", "409"] == 1
            for family, tasks, outcome, count in service.ledger.rows():
                assert found["serving_requests_total", *sorted((family, ",".join(tasks), str(outcome)))] == count
            assert found["serving_mishits_total", "accuracy", "things"] == 1
            assert found["serving_request_seconds_count", "things"] == 4
            assert (found["serving_batch_rows_sum",], found["serving_batch_rows_count",]) == (6, 3)
            assert found["serving_selected_total", "both", "things"] == 3
            assert found["serving_resident_variants",] == len(service.status().residents)
            assert found["serving_ready",] == 1

    run(scenario)


def test_beyond_a_number_of_task_sets_the_label_is_their_size():
    async def scenario():
        async with asking() as (_, service):
            metrics = Metrics(service)
            for number in range(100):
                event = RequestEnded(family="f", tasks=(f"a{number}", "b"), outcome=Outcome.OK, seconds=0.1)
                metrics(event)
            text = metrics.text().decode()
            assert 'serving_requests_total{family="f",outcome="ok",tasks="2"} 36.0' in text

    run(scenario)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:8090"}, 200),
        ({"Host": "example.org"}, 421),
        ({"Host": "127.0.0.1.nip.io"}, 421),
        ({"Origin": "http://127.0.0.1"}, 200),
        ({"Origin": "http://example.org"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
    ],
)
def test_on_a_loopback_address_pages_of_other_sites_cannot_ask(headers, status):
    async def scenario():
        async with asking() as (client, _):
            assert (await client.post(INFER, json=request(), headers=headers)).status_code == status
        async with asking(is_local=False) as (client, _):
            assert (await client.post(INFER, json=request(), headers=headers)).status_code == 200

    run(scenario)


def test_more_requests_than_there_is_room_for_are_told_to_come_again():
    async def scenario():
        entered, may_end = asyncio.Event(), asyncio.Event()

        async def slow(scope, receive, send):
            entered.set()
            await may_end.wait()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b""})

        transport = httpx.ASGITransport(app=Guard(slow, is_local=False, max_requests=1))
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            first = asyncio.create_task(client.get("/"))
            await entered.wait()
            assert error_of(await client.get("/")) == (503, "too_many_requests")
            may_end.set()
            assert (await first).status_code == 200
            assert (await client.get("/")).status_code == 200

    run(scenario)


def receiving(*messages):
    left = list(messages)

    async def receive():
        if not left:
            await asyncio.Event().wait()
        return left.pop(0)

    return receive


def test_bodies_are_bounded_each_and_all_together_and_in_time():
    part = {"type": "http.request", "body": b"x" * 60, "more_body": True}
    last = {"type": "http.request", "body": b"y" * 20}

    async def scenario():
        bodies = Bodies(max_bytes=100, max_total_bytes=150, seconds=0.05)
        body = await bodies.read(receiving(part, last), None)
        assert (bytes(body), bodies.num_bytes) == (b"x" * 60 + b"y" * 20, 80)
        for length, messages in (("101", [last]), (None, [part, part])):
            with pytest.raises(Refused, match="body_too_large"):
                await bodies.read(receiving(*messages), length)
        with pytest.raises(Refused, match="too_many_bytes"):
            await bodies.read(receiving(part, last), None)
        with pytest.raises(SlowBodyError):
            await bodies.read(receiving(part), None)
        with pytest.raises(Gone):
            await bodies.read(receiving(part, {"type": "http.disconnect"}), None)
        assert bodies.num_bytes == 80
        bodies.forget(body)
        assert bodies.num_bytes == 0

    run(scenario)


def test_the_page_allows_itself_and_nothing_else():
    async def scenario():
        async with asking() as (client, _):
            answer = await client.get("/")
            assert answer.headers["Content-Type"].startswith("text/html")
            policy = answer.headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", answer.text)

    run(scenario)


def test_one_family_of_a_store_is_served_as_if_alone():
    memory = Memory(MADE)
    alone = OneFamily(memory, FAMILY.name)
    assert (list(alone.families()), alone.version) == ([FAMILY.name], memory.version)
    assert alone.load("both") is memory.networks["both"]
    assert math.prod(alone.examples(FAMILY.name)[0].shape) == 8
    assert len(alone.table(FAMILY.name)) == len(MADE)
    with pytest.raises(ValueError, match="no family 'others'"):
        OneFamily(memory, "others")
    assert set(TASKS) == {"kind", "size"}
