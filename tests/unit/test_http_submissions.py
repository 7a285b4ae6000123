"""Handing jobs in over HTTP: each form, once or again, never more than is allowed, and never a file of the service's own."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.unit.http_service import (
    CODE,
    DATA,
    FILES,
    JOB,
    MODEL,
    add_job,
    local_client,
    make_tokens,
    packed,
    sha256,
    token_client,
    zipped,
)
from unified.queue.verbs import Queue

SHARED = packed(tensors="shared")
ZIP = {"Content-Type": "application/zip"}


def write_config(root, **settings):
    root.mkdir(parents=True, exist_ok=True)
    (root / "config.toml").write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items()))


@pytest.fixture
def root(tmp_path):
    with Queue.open(tmp_path / "root", make=True) as queue:
        (queue.root.data / "shared.pt").write_bytes(SHARED)
    return tmp_path / "root"


@pytest.fixture
def client(root):
    with local_client(root) as client:
        yield client


def put(client, content, **options):
    return client.put(f"/v1/uploads/{sha256(content)}", content=content, **options)


def post_zip(client, content, **headers):
    return client.post("/v1/jobs", content=content, headers=ZIP | headers)


def post_files(client, job=JOB, files=FILES, **options):
    for content in files.values():
        assert put(client, content, **options).status_code in {200, 201}
    description = {"job": job, "files": {name: sha256(content) for name, content in files.items()}}
    return client.post("/v1/jobs", json=description, **options)


def stored(root, job):
    """The submitted files of a job, by name."""
    folder = root / "jobs" / job / "spec"
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def leftovers(root):
    return [path.name for path in [*(root / "uploads").iterdir(), *(root / "incoming").iterdir()] if path.name.startswith(".")]


def test_a_zip_is_a_job_once(root, client):
    first, second = post_zip(client, zipped()), post_zip(client, zipped())
    assert (first.status_code, second.status_code) == (201, 200)
    job = first.json()["id"]
    assert (second.json()["id"], first.json()["state"], first.headers["location"]) == (job, "queued", f"/v1/jobs/{job}")
    assert {name: content for name, content in stored(root, job).items() if name != "job.json"} == FILES
    assert client.get("/v1/jobs").json()["cursor"] is None
    assert leftovers(root) == []


def test_an_uploaded_zip_is_a_job_with_the_fields_asked_for(root, client):
    content = zipped()
    assert put(client, content).status_code == 201
    answer = client.post("/v1/jobs", json={"upload": sha256(content), "priority": 7})
    assert (answer.status_code, answer.json()["priority"]) == (201, 7)


def test_described_files_are_a_job_and_shared_ones_are_kept_once(root, client):
    job = JOB | {"data": {"train": "shared/x/train.pt"}}
    files = {"model.umodel": MODEL, "shared/x/train.pt": DATA}
    one = post_files(client, job, files).json()["id"]
    two = post_files(client, job | {"name": "second"}, files).json()["id"]
    spec = json.loads(stored(root, one)["job.json"])
    assert stored(root, one)[spec["data"]["train"]] == DATA
    kept = [root / "jobs" / job / "spec" / spec["data"]["train"] for job in (one, two)]
    assert kept[0].samefile(kept[1])
    assert leftovers(root) == []


def test_a_folder_that_a_job_names_may_be_shared(root, client):
    columns = {"inputs": "text", "targets": "label"}
    job = JOB | {"data": {"train": "train.csv", "tokenizer": "shared/tok", "columns": columns}}
    files = {"model.umodel": MODEL, "train.csv": b"text,label\n", "shared/tok/a.json": b"{}", "shared/tok/deep/b.json": b"[]"}
    answer = post_files(client, job, files)
    assert answer.status_code == 201, answer.text
    found = stored(root, answer.json()["id"])
    tokenizer = json.loads(found["job.json"])["data"]["tokenizer"]
    assert (found[f"{tokenizer}/a.json"], found[f"{tokenizer}/deep/b.json"]) == (b"{}", b"[]")


def test_an_idempotency_key_is_the_first_job_again(client):
    key = {"Idempotency-Key": "monday"}
    first = post_zip(client, zipped(), **key)
    again = post_zip(client, zipped(), **key)
    other = post_zip(client, zipped(JOB | {"epochs": 5}), **key)
    assert (first.status_code, again.status_code, other.status_code) == (201, 200, 409)
    assert first.json()["id"] == again.json()["id"]
    assert other.json()["code"] == "conflict"


def test_the_operators_shared_data_may_be_named(root, client):
    answer = post_zip(client, zipped(JOB | {"data": {"train": "../data/shared.pt"}}, {"model.umodel": MODEL}))
    assert answer.status_code == 201, answer.text
    assert SHARED in stored(root, answer.json()["id"]).values()


SECRETS = ["/etc/passwd", "../../secret.pt", "../secret.pt", "../data/../../secret.pt", "{root}/store.db", "../uploads/x"]


@pytest.mark.parametrize("path", SECRETS)
@pytest.mark.parametrize("field", ["model", "train"])
@pytest.mark.parametrize("form", ["zip", "upload", "files", "changes"])
def test_no_other_file_of_the_service_may_be_named(root, client, path, field, form):
    for place in (root.parent, root, root / "uploads"):
        (place / "secret.pt").write_bytes(b"secret")
    path = path.replace("{root}", str(root))
    wanted = {"model": path} if field == "model" else {"data": {"train": path}}
    if form == "zip":
        answer = post_zip(client, zipped(JOB | wanted))
    elif form == "upload":
        put(client, zipped(JOB | wanted))
        answer = client.post("/v1/jobs", json={"upload": sha256(zipped(JOB | wanted))})
    elif form == "files":
        answer = post_files(client, JOB | wanted)
    else:
        put(client, zipped())
        answer = client.post("/v1/jobs", json={"upload": sha256(zipped())} | wanted)
    assert answer.status_code == 422, answer.text
    assert answer.json()["problems"][0]["code"] == "E-PATH"
    assert client.get("/v1/jobs").json()["jobs"] == []
    assert leftovers(root) == []


def test_files_under_data_roots_may_be_named(root, tmp_path):
    (tmp_path / "lake").mkdir()
    (tmp_path / "lake" / "train.pt").write_bytes(DATA)
    write_config(root, data_roots=[str(tmp_path / "lake")])
    with local_client(root) as client:
        job = JOB | {"data": {"train": str(tmp_path / "lake" / "train.pt")}}
        assert post_zip(client, zipped(job, {"model.umodel": MODEL})).status_code == 201


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../../x", "job.json", "", ".", "a\0b", "a/job.json", "a\nb"])
def test_files_with_hostile_names_are_refused(root, client, name):
    answer = post_files(client, JOB, FILES | {name: b"x"})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid-submission")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b"{",
        b'{"upload": 3}',
        b'{"upload": "abc"}',
        b'{"upload": "' + b"0" * 64 + b'"}',
        b'{"upload": "' + b"../" * 21 + b'x"}',
        b'{"job": {}, "upload": "x"}',
        b'{"job": []}',
        b'{"job": {"name": "x"}, "files": {}}',
        b'{"job": {"name": "x"}, "files": []}',
        b'{"job": {"name": "a", "name": "b"}}',
        b'{"job": {"name": NaN}}',
        b"[" * 10000,
        b"\xff",
    ],
)
def test_what_describes_no_job_is_told_what_is_wrong(root, client, body):
    answer = client.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert answer.json()["problems"]
    assert leftovers(root) == []


@pytest.mark.parametrize("content", [b"", b"no zip", zipped()[:-30], zipped({"name": "x"}), zipped(JOB | {"epochs": 0})])
def test_a_zip_of_no_job_is_told_what_is_wrong(root, client, content):
    answer = post_zip(client, content)
    assert answer.status_code == 422, answer.text
    assert answer.json()["problems"]
    assert leftovers(root) == []


def test_everything_that_is_wrong_is_told_at_once(client):
    wrong = JOB | {"epochs": 0, "batch_size": -1, "nme": 3}
    fields = {problem["field"] for problem in post_zip(client, zipped(wrong)).json()["problems"]}
    assert fields == {"epochs", "batch_size", "nme"}


def test_a_file_may_come_in_pieces(client):
    content, url = bytes(range(200)), f"/v1/uploads/{sha256(bytes(range(200)))}"
    assert (client.head(url).status_code, client.head(url).headers["upload-offset"]) == (404, "0")
    for start, stop, status in ((0, 70, 202), (70, 150, 202), (150, 200, 201)):
        answer = client.put(url, content=content[start:stop], headers={"Content-Range": f"bytes {start}-{stop - 1}/200"})
        assert (answer.status_code, answer.json()["offset"]) == (status, stop)
        assert client.head(url).headers["upload-offset"] == str(stop)
        assert client.get(url).json()["offset"] == stop
    assert client.head(url).status_code == 200
    assert client.put(url, content=content).status_code == 201


def test_a_piece_that_is_not_the_next_is_told_which_is(client):
    content, url = bytes(range(200)), f"/v1/uploads/{sha256(bytes(range(200)))}"
    client.put(url, content=content[:70], headers={"Content-Range": "bytes 0-69/200"})
    for start in (60, 80):
        answer = client.put(url, content=content[start:], headers={"Content-Range": f"bytes {start}-199/200"})
        assert (answer.status_code, answer.headers["upload-offset"]) == (409, "70")
    assert client.put(url, content=content).status_code == 201  # the whole of it is taken at any time


@pytest.mark.parametrize(
    "given", ["bytes 5-2/10", "bytes 0-10/10", "bytes 0-1/10", "bytes */10", "items 0-2/3", "bytes -1-2/3", ""]
)
def test_a_range_that_cannot_be_is_refused(client, given):
    answer = client.put(f"/v1/uploads/{sha256(b'abc')}", content=b"abc", headers={"Content-Range": given})
    assert (answer.status_code, answer.json()["code"]) == (400, "content-range")


def test_another_file_than_its_name_says_is_not_kept(root, client):
    answer = client.put(f"/v1/uploads/{sha256(b'right')}", content=b"wrong")
    assert (answer.status_code, answer.json()["code"]) == (422, "upload-hash")
    assert list((root / "uploads").iterdir()) == []
    assert client.put("/v1/uploads/notahash", content=b"x").status_code == 422


def test_nothing_larger_than_allowed_is_taken(root):
    write_config(root, max_archive_bytes=5000)
    with local_client(root) as client:
        large = bytes(6000)
        for answer in (
            put(client, large),
            client.put(f"/v1/uploads/{sha256(large)}", content=iter([large[:3000], large[3000:]])),
            client.put(f"/v1/uploads/{sha256(large)}", content=b"x", headers={"Content-Range": "bytes 0-0/6000"}),
            post_zip(client, zipped(files={"model.umodel": large})),
            client.post("/v1/jobs", content=iter([large]), headers=ZIP),
        ):
            assert (answer.status_code, answer.json()["code"]) == (413, "too-large")
        assert client.get(f"/v1/uploads/{sha256(b'x')}").json()["limit"] == 5000
        assert leftovers(root) == []


def test_a_full_disk_takes_nothing(root):
    write_config(root, min_free_bytes=1 << 62)
    with local_client(root) as client:
        for answer in (put(client, b"x"), post_zip(client, zipped())):
            assert (answer.status_code, answer.json()["code"]) == (507, "disk-full")


def test_a_users_limits_hold_for_jobs_and_uploads(root):
    write_config(root, max_jobs_per_user=1, max_bytes_per_user=2000)
    with local_client(root) as client:
        assert post_zip(client, zipped()).status_code == 201
        answer = post_zip(client, zipped(JOB | {"name": "second"}))
        assert (answer.status_code, answer.json()["code"]) == (413, "refused")
        answer = put(client, bytes(1990))
        assert (answer.status_code, answer.json()["code"]) == (413, "refused")


def test_a_job_is_the_tokens_users_whatever_it_says(root, tmp_path):
    path, headers = make_tokens(tmp_path, alice=["submit", "read"], reader=["read"], op=["admin"])
    with token_client(root, path) as client:
        answer = post_zip(client, zipped(JOB | {"user": "bob"}), **headers["alice"])
        assert (answer.status_code, answer.json()["user"]) == (201, "alice")
        job = answer.json()["id"]
        put(client, zipped(JOB | {"epochs": 2}), headers=headers["alice"])
        description = {"upload": sha256(zipped(JOB | {"epochs": 2})), "user": "bob"}
        assert client.post("/v1/jobs", json=description, headers=headers["alice"]).json()["user"] == "alice"
        assert post_zip(client, zipped(), **headers["op"]).json()["user"] == "op"
        for answer in (post_zip(client, zipped(), **headers["reader"]), put(client, b"x", headers=headers["reader"])):
            assert (answer.status_code, answer.json()["code"]) == (403, "scope")
        assert post_zip(client, zipped()).status_code == 401
        assert client.get(f"/v1/jobs/{job}", headers=headers["reader"]).status_code == 404


def test_an_id_of_another_users_job_is_taken(root, tmp_path):
    with Queue.open(root) as queue:
        add_job(queue, "taken", user="alice")
    path, headers = make_tokens(tmp_path, bob=["submit"])
    with token_client(root, path) as client:
        answer = post_zip(client, zipped(JOB | {"id": "taken"}), **headers["bob"])
        assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
        assert "alice" not in answer.text


def test_an_upload_is_its_users_alone(root, tmp_path):
    path, headers = make_tokens(tmp_path, alice=["submit"], bob=["submit"])
    with token_client(root, path) as client:
        content = zipped()
        assert put(client, content, headers=headers["alice"]).status_code == 201
        assert client.head(f"/v1/uploads/{sha256(content)}", headers=headers["bob"]).status_code == 404
        answer = client.post("/v1/jobs", json={"upload": sha256(content)}, headers=headers["bob"])
        assert answer.status_code == 422


#: A safetensors file without tensors.
WEIGHTS = (2).to_bytes(8, "little") + b"{}"


@pytest.mark.parametrize("trusts", [False, True])
@pytest.mark.parametrize("form", ["zip", "files"])
def test_code_runs_only_with_a_token_of_scope_trust(root, tmp_path, trusts, form):
    write_config(root, trust=True)
    path, headers = make_tokens(tmp_path, alice=["submit", *(["trust"] if trusts else [])])
    with token_client(root, path) as client:

        def post(name, model, file="model.umodel"):
            files = {file: model, "train.pt": DATA}
            job = JOB | {"name": name, "model": file}
            if form == "zip":
                return post_zip(client, zipped(job, files), **headers["alice"])
            return post_files(client, job, files, headers=headers["alice"])

        assert post("data", MODEL).status_code == 201
        assert post("weights", WEIGHTS, "weights.safetensors").status_code == 201
        answer = post("code", CODE)
        assert answer.status_code == (201 if trusts else 422)
        if not trusts:
            assert answer.json()["problems"][0]["code"] == "E-TRUST"


def test_an_id_that_another_user_has_tells_nothing_of_their_job(root, tmp_path):
    path, headers = make_tokens(tmp_path, alice=["submit"], bob=["submit"], op=["admin"])
    job = zipped(JOB | {"id": "secret-project"})
    with token_client(root, path) as client:
        assert post_zip(client, job, **headers["alice"]).status_code == 201
        for content in (job, zipped(JOB | {"id": "secret-project", "epochs": 7})):
            answer = post_zip(client, content, **headers["bob"])
            assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
            assert answer.json()["detail"] == "that id cannot be used; take another one"
        other = zipped(JOB | {"id": "secret-project", "epochs": 7})
        for who in ("alice", "op"):  # whose own it is, and who sees all, are told
            answer = post_zip(client, other, **headers[who])
            assert (answer.status_code, "secret-project" in answer.json()["detail"]) == (409, True)
    assert leftovers(root) == []


def test_a_key_used_twice_is_said_to_its_user(root, tmp_path):
    path, headers = make_tokens(tmp_path, alice=["submit"])
    key = {"Idempotency-Key": "monday"} | headers["alice"]
    with token_client(root, path) as client:
        assert post_zip(client, zipped(), **key).status_code == 201
        assert "monday" in post_zip(client, zipped(JOB | {"epochs": 5}), **key).json()["detail"]


def test_the_same_id_at_the_same_time_is_one_jobs(root, tmp_path):
    """A race of two users for an id: one has it, the other is told no more than later."""
    path, headers = make_tokens(tmp_path, alice=["submit"], bob=["submit"])
    job = zipped(JOB | {"id": "wanted"})
    with token_client(root, path) as client, ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda who: post_zip(client, job, **headers[who]), ["alice", "bob"]))
    assert sorted(answer.status_code for answer in answers) == [201, 409]
    refusal = next(answer for answer in answers if answer.status_code == 409)
    assert refusal.json()["detail"] == "that id cannot be used; take another one"
