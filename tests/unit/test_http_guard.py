"""Who gets through to the routes at all: hosts, other people's web pages, content types; and what every answer carries."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.http.loopback import is_loopback_host
from tests.unit.http_service import add_job, local_client, make_tokens, token_client
from unified.queue.verbs import Queue

JSON = {"Content-Type": "application/json"}


@pytest.fixture
def root(tmp_path):
    with Queue.open(tmp_path / "root", make=True) as queue:
        add_job(queue, "a")
    return tmp_path / "root"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8080", "localhost:1", "LOCALHOST", "[::1]:8080", "127.8.8.8"])
def test_this_machine_is_served_under_its_own_names(root, host):
    with local_client(root) as client:
        assert client.get("/v1/jobs", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "localhost.evil.example", "10.0.0.1", "", "127.0.0.1:x"],
)
def test_a_page_that_leads_its_own_name_here_is_not_answered(root, host):
    with local_client(root) as client:
        answer = client.get("/v1/jobs", headers={"Host": host})
        assert answer.status_code == 421
        assert answer.json()["code"] == "host"
        assert client.get("/", headers={"Host": host}).status_code == 421


@given(st.text(max_size=30))
def test_only_names_of_this_machine_are_taken_for_it(host):
    assert not is_loopback_host(host) or host.lower().startswith(("localhost", "127.", "[::1]", "::1"))


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "http://127.0.0.1:9999"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site", "Origin": "http://127.0.0.1"},
    ],
)
def test_a_page_of_another_site_changes_nothing(root, headers):
    with local_client(root) as client:
        for method, path in (("POST", "/v1/jobs/a:cancel"), ("POST", "/v1/jobs"), ("PUT", f"/v1/uploads/{'0' * 64}")):
            answer = client.request(method, path, headers=JSON | headers, content="{}")
            assert (answer.status_code, answer.json()["code"]) == (403, "cross-site")
        assert client.get("/v1/jobs/a").json()["state"] == "queued"


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
def test_what_a_form_could_send_is_refused(root, kind):
    with local_client(root) as client:
        answer = client.post("/v1/jobs/a:cancel", headers={"Content-Type": kind} if kind else {}, content="{}")
        assert (answer.status_code, answer.json()["code"]) == (415, "content-type")
        assert client.get("/v1/jobs/a").json()["state"] == "queued"


def test_our_own_page_and_programs_may_write(root):
    with local_client(root) as client:
        page = {"Origin": "http://127.0.0.1", "Sec-Fetch-Site": "same-origin"}
        assert client.post("/v1/jobs/a:pause", headers=page | JSON, content="{}").status_code == 200
        assert client.post("/v1/jobs/a:resume", json={}).status_code == 200


def test_with_tokens_any_host_is_served(root, tmp_path):
    path, headers = make_tokens(tmp_path, op=["admin"])
    with token_client(root, path) as client:
        assert client.get("/v1/jobs", headers=headers["op"]).status_code == 200


def test_every_answer_has_the_headers_that_bind_a_browser(root):
    with local_client(root) as client:
        for path in ("/v1/jobs", "/v1/jobs/none", "/nowhere", "/docs", "/healthz", "/openapi.json"):
            headers = client.get(path).headers
            assert "default-src 'none'" in headers["content-security-policy"]
            assert "unsafe" not in headers["content-security-policy"]
            assert headers["x-content-type-options"] == "nosniff"
            assert "access-control-allow-origin" not in headers


def test_no_preflight_is_granted(root):
    asked = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    with local_client(root) as client:
        answer = client.options("/v1/jobs", headers=asked)
        assert answer.status_code == 405
        assert not [name for name in answer.headers if name.startswith("access-control")]
