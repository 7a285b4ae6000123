"""``unified serve-models`` as clients meet it: the Open Inference Protocol, refusals, drain, metrics, malformed requests."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.serving_fuzz import run_fuzz
from serving.http.binary import HEADER
from serving.profiling import profile
from serving.store import VariantStore
from tests.integration.command_line import PATIENCE_SECONDS
from tests.integration.model_server import INFER, QUICK, Load, ModelServer, infer_request, make_store, started
from tests.unit.serving_models import draft, images
from unified.cli import main

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("served") / "variants")


@pytest.fixture(scope="module")
def server(store: Path) -> Iterator[ModelServer]:
    with started(store, "--max-body-mb", "0.1") as server:
        yield server


@pytest.fixture
def client(server: ModelServer) -> Iterator[httpx.Client]:
    with asking(server) as client:
        yield client


def asking(server: ModelServer) -> httpx.Client:
    return httpx.Client(base_url=server.address, timeout=PATIENCE_SECONDS)


def fields(content, **kinds):
    """Check that an object has fields of these kinds; ``None`` stands for one that may be missing."""
    for name, kind in kinds.items():
        assert isinstance(content.get(name), kind), (name, content)
    return content


def tensor_fields(content):
    fields(content, name=str, datatype=str, shape=list)
    assert all(type(size) is int for size in content["shape"])
    return content


def test_it_conforms_to_the_protocol(client, store):
    """Each endpoint of kserve/open-inference-protocol, ``inference_rest.md``, with all fields that it requires."""
    server = fields(client.get("/v2").json(), name=str, version=str, extensions=list)
    assert all(isinstance(name, str) for name in server["extensions"])
    for path in ("/v2/health/live", "/v2/health/ready"):
        answer = client.get(path)
        assert answer.status_code == 200
        fields(answer.json(), live=bool)
    ids = {variant.id: variant for variant in VariantStore.open(store).variants("panels")}
    model = fields(client.get("/v2/models/panels").json(), name=str, versions=list, platform=str, inputs=list, outputs=list)
    assert set(model["versions"]) == set(ids)
    for version in ("", *(f"/versions/{key}" for key in ids)):
        model = client.get(f"/v2/models/panels{version}").json()
        expected = ids[version.rpartition("/")[2]].tasks if version else ("shoe", "size")
        assert [tensor_fields(output)["name"] for output in model["outputs"]] == list(expected)
        assert [tensor_fields(found)["shape"] for found in model["inputs"]] == [[-1, 1, 6, 6]]
        ready = client.get(f"/v2/models/panels{version}/ready")
        assert (ready.status_code, ready.json()) == (200, {"name": "panels", "ready": True})
        answer = client.post(f"/v2/models/panels{version}/infer", json=infer_request(2, id="x"))
        content = fields(answer.json(), model_name=str, model_version=str, id=str, parameters=dict, outputs=list)
        assert (answer.status_code, content["id"]) == (200, "x")
        assert not version or content["model_version"] == version.rpartition("/")[2]
        assert all(isinstance(value, str | int | float | bool) for value in content["parameters"].values())
        for output in content["outputs"]:
            tensor_fields(output)
            assert len(output["data"]) == np.prod(output["shape"])


@pytest.mark.parametrize("as_bytes", [False, True], ids=["JSON", "bytes"])
def test_answers_are_those_of_the_stored_network(client, store, as_bytes):
    opened = VariantStore.open(store)
    variant = next(variant for variant in opened.variants("panels") if variant.name == "both")
    x = images(3)
    request = infer_request(3, outputs=[{"name": "size"}, {"name": "shoe"}])
    headers, body = {}, json.dumps(request).encode()
    if as_bytes:
        request["inputs"][0] |= {"parameters": {"binary_data_size": x.numpy().nbytes}}
        del request["inputs"][0]["data"]
        request["parameters"] = {"binary_data_output": True}
        content = json.dumps(request).encode()
        headers, body = {HEADER: str(len(content))}, content + x.numpy().tobytes()
    answer = client.post(f"/v2/models/panels/versions/{variant.id}/infer", content=body, headers=headers)
    with torch.no_grad():
        wanted = opened.load(variant.id)(x)
    length = int(answer.headers.get(HEADER, len(answer.content)))
    content, raw = json.loads(answer.content[:length]), answer.content[length:]
    assert [output["name"] for output in content["outputs"]] == ["size", "shoe"]
    for output in content["outputs"]:
        if as_bytes:
            size = output["parameters"]["binary_data_size"]
            found, raw = np.frombuffer(raw[:size], "<f4"), raw[size:]
        else:
            found = np.array(output["data"], "<f4")
        # Other threads and batches than here may sum in another order.
        torch.testing.assert_close(torch.tensor(found).reshape(output["shape"]), wanted[output["name"]], rtol=1e-5, atol=1e-6)
    assert not raw


def test_a_query_is_answered_by_what_selection_chooses(client):
    def version(**parameters):
        return client.post(INFER, json=infer_request(parameters=parameters)).json()

    listing = {one["id"]: one for one in client.get("/v2/models/panels/variants").json()["variants"]}
    shoes = [one for one in listing.values() if "shoe" in one["tasks"]]
    best = max(one["scores"]["shoe"] for one in shoes)
    found = version(tasks="shoe")
    assert listing[found["model_version"]]["scores"]["shoe"] == best
    assert found["parameters"]["accuracy"] == best
    mishit = client.post(INFER, json=infer_request(parameters={"latency_ms": 1e-6}))
    assert mishit.status_code == 409
    assert "mishit" in mishit.json()["error"]
    effort = version(latency_ms=1e-6, on_mishit="best_effort")
    assert (effort["parameters"]["mishit"], effort["parameters"]["late"]) == (True, True)


POST = b"POST /v2/models/panels/infer HTTP/1.1\r\nHost: localhost\r\n"
RAW = {
    "no HTTP": (b"\x16\x03\x01 hello\r\n\r\n", 400),
    "no host": (b"GET /v2 HTTP/1.1\r\n\r\n", 400),
    "two lengths": (POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
    "a length that is none": (POST + b"Content-Length: x\r\n\r\n", 400),
    "another host": (b"GET /v2 HTTP/1.1\r\nHost: example.org\r\nConnection: close\r\n\r\n", 421),
    "a body too large": (POST + b"Connection: close\r\nContent-Length: 200000\r\n\r\n", 413),
}


@pytest.mark.parametrize(("sent", "status"), RAW.values(), ids=RAW)
def test_what_is_wrong_below_the_routes_has_the_same_form(server, sent, status):
    place = urlsplit(server.address)
    with socket.create_connection((place.hostname, place.port), timeout=PATIENCE_SECONDS) as connection:
        connection.sendall(sent)
        received = b""
        while chunk := connection.recv(1 << 16):
            received += chunk
    head, _, body = received.partition(b"\r\n\r\n")
    assert int(head.split()[1]) == status
    assert list(json.loads(body)) == ["error"]


def test_metrics_say_what_clients_saw_and_no_accepted_request_is_lost_when_it_is_told_to_stop(store):
    with started(store) as server, asking(server) as client:
        with Load(server.address, clients=4) as load:
            load.wait_for(50)
        for _ in range(3):
            client.post(INFER, json=infer_request(parameters={"min_accuracy": 1.0}))
        client.post(INFER, content=b"")
        check_metrics(client.get("/metrics").text, load.seen[200])
        with Load(server.address, clients=8, rows=16) as load:
            load.wait_for(100)
            server.process.send_signal(signal.SIGTERM)
            assert server.end() == 0
    assert "every accepted request was answered" in server.lines[-1]
    assert set(load.seen) <= {200, 503, "not connected"}
    assert load.seen[200] >= 100


def check_metrics(text, answers):
    """Check the numbers after so many answers of one row, three mishits and one refusal."""
    found = {}
    for metric in text_string_to_metric_families(text):
        for sample in metric.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))

    def total(name, **labels):
        return sum(value for given, value in found[name] if labels.items() <= given.items())

    assert total("serving_infer_responses_total", status="200") == answers
    assert total("serving_infer_responses_total", status="409") == total("serving_mishits_total") == 3
    assert total("serving_infer_responses_total", status="400") == 1
    assert total("serving_requests_total", outcome="ok") == answers
    # Of a combination each member answers, and each runs one row.
    assert total("serving_batch_rows_sum") == total("serving_selected_total") >= answers
    assert total("serving_request_seconds_count") == answers + 3
    assert total("serving_resident_variants") >= 1


def test_variants_that_come_and_go_lose_no_request(tmp_path):
    path = make_store(tmp_path / "variants")
    with started(path) as server, Load(server.address, clients=4) as load, asking(server) as client:
        load.wait_for(20)
        store = VariantStore.open(path)
        store.add(draft("newer", seed=9), (images(3),), family="panels")
        profile(store, "panels", options=QUICK)
        old = next(variant.id for variant in store.variants("panels") if variant.name == "both")
        store.remove(old)
        before = load.seen[200]
        while old in (versions := client.get("/v2/models/panels").json()["versions"]):
            load.wait_for(before := before + 1)
        assert len(versions) == 4
        load.wait_for(load.seen[200] + 20)
    assert set(load.seen) == {200}


def test_while_it_measures_it_is_live_but_not_ready(tmp_path, capsys):
    path = make_store(tmp_path / "variants", draft("both"), profiled=False)
    assert main(["serve-models", str(path), "--http", "127.0.0.1:0"]) == 1
    assert "'unified variants profile --device cpu --threads 1' does it" in capsys.readouterr().err.splitlines()[-1]
    with started(path, "--profile-on-start", until="listening on") as server, asking(server) as client:
        assert client.get("/v2/health/live").status_code == 200
        assert client.get("/v2/health/ready").status_code == 503
        server.read_until("ready:")
        assert client.get("/v2/health/ready").status_code == 200
        assert client.post(INFER, json=infer_request()).status_code == 200


def test_a_second_signal_ends_it_at_once(store):
    with started(store, "--drain-grace-seconds", 600) as server:
        server.process.send_signal(signal.SIGINT)
        server.read_until("draining")
        with asking(server) as client:
            assert client.get("/v2/health/ready").status_code == 503
            assert client.post(INFER, json=infer_request()).status_code == 200  # within the grace
        threading.Event().wait(0.6)  # within half a second it would be taken for the same signal
        server.process.send_signal(signal.SIGTERM)
        assert server.end() == 130


def test_a_port_in_use_is_one_line(store, capsys):
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        assert main(["serve-models", str(store), "--http", f"127.0.0.1:{port}"]) == 1
    lines = [f"unified: cannot listen on 127.0.0.1:{port}: Address already in use; choose another --http"]
    assert capsys.readouterr().err.splitlines() == lines


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--family", "others"], "no family 'others'"),
        (["--pin", "none"], "pinned variants none"),
        (["--http", "127.0.0.1"], "expected HOST:PORT"),
        (["--device", "cuda:99"], "no device 'cuda:99'"),
        (["--mishit-log", "/none/log"], "cannot be written"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_cannot_be_served_is_said_in_a_line(store, capsys, options, words):
    assert main(["serve-models", str(store), "--http", "127.0.0.1:0", *options]) == 1
    assert words in capsys.readouterr().err.splitlines()[-1]


def test_malformed_requests_meet_refusals_only(server):
    found = run_fuzz(server.address, 2000, pid=server.process.pid)
    assert (found["requests"], found["status_5xx"], found["is_ready"]) == (2000, 0, True)
    assert not [status for status in found["statuses"] if "without a reason" in status]
    assert server.process.poll() is None


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    pytest.importorskip("selenium", reason="the page is tested in a browser, which takes selenium")
    from tests.integration.page_server import CHROMIUM, DRIVER, browsing

    if not (CHROMIUM and DRIVER):
        pytest.skip("needs chromium and chromedriver (Debian: chromium-driver)")
    with browsing() as driver:
        yield driver


def test_the_page_shows_the_variants_and_live_counters(server, client, browser):
    from tests.integration.page_steps import complaints, eventually, text, visit

    def points():
        return set(browser.execute_script("return [...document.querySelectorAll('.point')].map((one) => one.dataset.name)"))

    def counter(name):
        return int(text(browser, f'[data-name="{name}"]').split(" ")[0].replace(",", ""))

    def choose(name, value):
        browser.execute_script(
            "const found = document.getElementById(arguments[0]); found.value = arguments[1];"
            "found.dispatchEvent(new Event('change'))",
            name,
            value,
        )

    visit(browser, server.address)
    listing = client.get("/v2/models/panels/variants").json()["variants"]
    assert eventually(points) == {one["name"] for one in listing if len(one["tasks"]) == 2}
    assert text(browser, "#state") == "ready"
    choose("tasks", "shoe")
    assert points() == {one["name"] for one in listing if "shoe" in one["tasks"]}
    assert browser.execute_script("return document.querySelectorAll('#variants tr').length") == len(listing)
    assert browser.execute_script("return document.querySelector('.front').getAttribute('d')").startswith("M")
    before = counter("Requests")
    for _ in range(5):
        client.post(INFER, json=infer_request())
    eventually(lambda: counter("Requests") == before + 5)
    assert complaints(browser) == []
