"""What is said of the API is what it is: the committed document, the page of routes, the page itself."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.http_service import local_client
from unified.queue.verbs import Queue
from unified.service.http_app import PAGE, make_app
from unified.service.http_models import Job

COMMITTED = Path(__file__).parents[2] / "docs" / "openapi.json"


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    root = tmp_path_factory.mktemp("openapi") / "root"
    with Queue.open(root, make=True):
        pass
    with local_client(root) as client:
        yield client


def test_the_committed_document_is_what_is_served(client):
    assert client.get("/openapi.json").json() == json.loads(COMMITTED.read_text()), (
        "write it anew: python -m unified.service.http_app > docs/openapi.json"
    )


def test_the_command_prints_it():
    done = subprocess.run([sys.executable, "-m", "unified.service.http_app"], capture_output=True, check=True)
    assert json.loads(done.stdout) == json.loads(COMMITTED.read_text())


def test_every_reference_leads_somewhere_and_every_answer_is_described(client):
    document = client.get("/openapi.json").json()
    schemas = document["components"]["schemas"]

    def references(value):
        if isinstance(value, dict):
            if isinstance(value.get("$ref"), str):
                yield value["$ref"]
            for each in value.values():
                yield from references(each)
        elif isinstance(value, list):
            for each in value:
                yield from references(each)

    assert {f"#/components/schemas/{name}" for name in schemas} == set(references(document))
    for path, methods in document["paths"].items():
        for method, route in methods.items():
            assert route["description"], (method, path)
            content = [answer.get("content") for status, answer in route["responses"].items() if status[0] == "2"]
            assert method == "head" or any(content), (method, path)
            if path.startswith("/v1/"):
                assert {"401", "403"} <= route["responses"].keys(), (method, path)
                assert route["security"]


def test_operation_ids_are_unique(client):
    routes = [route for methods in client.get("/openapi.json").json()["paths"].values() for route in methods.values()]
    assert len({route["operationId"] for route in routes}) == len(routes)


def test_a_job_has_the_fields_that_were_promised():
    promised = (
        "schema id name user state reason priority steps_done steps_total loss metrics step_seconds memory_bytes slot "
        "num_threads epoch submit_time started_time finished_time completion_seconds slowdown training_seconds waiting_seconds "
        "eta_seconds num_job_failures num_infra_failures result"
    )
    assert set(promised.split()) == {field.alias or name for name, field in Job.model_fields.items()}


def test_the_routes_are_one_page_that_needs_nothing_from_elsewhere(client):
    text = client.get("/docs").text
    for path in make_app(".", tokens=None).openapi()["paths"]:
        assert path in text
    assert "<script" not in text
    assert "http://" not in text
    assert "https://" not in text


def test_the_page_is_served_and_nothing_beside_it(client):
    assert client.get("/").text == (PAGE / "index.html").read_text()
    for path in PAGE.iterdir():
        answer = client.get(f"/static/{path.name}")
        assert (answer.status_code, answer.content) == (200, path.read_bytes())
    for name in ("../http_app.py", "%2e%2e/http_app.py", "none.js", ""):
        answer = client.get(f"/static/{name}")
        assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")


def test_what_is_not_there_is_a_problem_too(client):
    for method, path, status in (("GET", "/nowhere", 404), ("DELETE", "/v1/jobs", 405), ("PATCH", "/v1/jobs/x", 405)):
        answer = client.request(method, path)
        assert (answer.status_code, answer.json()["status"]) == (status, status)
        assert answer.headers["content-type"] == "application/problem+json"
