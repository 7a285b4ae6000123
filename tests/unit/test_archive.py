import io
import json
import stat
import struct
import zipfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.job_folders import archive_bytes, fields, make_job, make_queue, names, zip_folder
from unified.errors import InvalidSubmission
from unified.queue.archive import submit_archive
from unified.queue.config import ServiceConfig
from unified.queue.errors import RefusedError
from unified.queue.unpacking import FREE_BYTES, unpack

ROOMY = ServiceConfig(min_free_bytes=0)


@pytest.fixture
def queue(tmp_path):
    root, store = make_queue(tmp_path / "root")
    yield root, store
    store.close()


def submit(queue, path, config=ROOMY, **options):
    return submit_archive(*queue, path, by="alice", config=config, **options)


def make_zip(path, entries, method=zipfile.ZIP_STORED):
    """Write a zip of ``(name or ZipInfo, content)`` pairs beside those of a sound job."""
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("job.json", json.dumps(fields()))
        archive.writestr("model.umodel", archive_bytes())
        archive.writestr("train.pt", archive_bytes())
        for name, content in entries:
            archive.writestr(name, content)
    return path


def refused(queue, path, config=ROOMY):
    """Submit what must be refused without a trace; return the codes of its problems."""
    before = sorted(path.parent.rglob("*"))
    with pytest.raises(InvalidSubmission) as caught:
        submit(queue, path, config)
    assert sorted(path.parent.rglob("*")) == before
    assert queue[1].jobs() == []
    return {problem.code for problem in caught.value.problems}


def entry(name, kind):
    info = zipfile.ZipInfo(name)
    info.external_attr = (kind | 0o644) << 16
    return info


def test_a_zip_becomes_a_job_and_is_left_where_it_is(queue, tmp_path):
    root, _ = queue
    path = zip_folder(make_job(tmp_path / "mine"), tmp_path / "mine.zip")
    submitted = submit(queue, path, user="bob", changes={"priority": 4})
    assert (submitted.is_new, submitted.job.user, submitted.job.priority) == (True, "bob", 4)
    assert names(root.spec(submitted.job.id)) == ["job.json", "model.umodel", "train.pt"]
    assert path.is_file()
    assert names(root.incoming) == []
    assert not submit(queue, path, user="bob", changes={"priority": 4}).is_new


@pytest.mark.parametrize("around", ["mine/", "jobs/of/mine/"])  # zip -r mine.zip mine, zip -r mine.zip jobs/of/mine
def test_folders_around_the_job_are_left_out(queue, tmp_path, around):
    root, _ = queue
    path = zip_folder(make_job(tmp_path / "mine"), tmp_path / "mine.zip", around)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("__MACOSX/mine/._job.json", "litter")
        archive.writestr(f"{around}.DS_Store", "litter")
    assert names(root.spec(submit(queue, path).job.id)) == ["job.json", "model.umodel", "train.pt"]


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../../x", "a/./b", "C:/x", "a\\..\\x", "a//b", "..", "./x"])
def test_names_that_lead_out_are_refused(queue, tmp_path, name):
    assert refused(queue, make_zip(tmp_path / "x.zip", [(name, "x")])) == {"E-PATH"}


def test_a_name_that_ends_early_for_others_is_refused(queue, tmp_path):
    path = make_zip(tmp_path / "x.zip", [("aXb", "x")])
    path.write_bytes(path.read_bytes().replace(b"aXb", b"a\0b"))
    assert refused(queue, path) <= {"E-PATH", "E-ZIP"}


@pytest.mark.parametrize(
    "name",
    [
        "n" * 256,
        "d/" * 40 + "x",
        "a\nb",
        "\x1b[2J",
        "/".join(letter * 250 for letter in "vwxyz"),
    ],
)
def test_names_that_some_system_cannot_take_are_refused(queue, tmp_path, name):
    assert refused(queue, make_zip(tmp_path / "x.zip", [(name, "x")])) <= {"E-NAME", "E-ZIP"}


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK])
def test_links_and_devices_are_refused(queue, tmp_path, kind):
    assert refused(queue, make_zip(tmp_path / "x.zip", [(entry("x", kind), "/etc/passwd")])) == {"E-LINK"}


def test_a_name_that_comes_twice_is_refused(queue, tmp_path):
    with pytest.warns(UserWarning, match="Duplicate"):
        path = make_zip(tmp_path / "x.zip", [("job.json", json.dumps(fields(epochs=9)))])
    assert refused(queue, path) == {"E-ZIP"}
    assert refused(queue, make_zip(tmp_path / "y.zip", [("a", "x"), ("a/b", "y")])) == {"E-ZIP"}


def test_methods_that_few_know_are_refused(queue, tmp_path):
    assert refused(queue, make_zip(tmp_path / "x.zip", [("x", "x")], zipfile.ZIP_LZMA)) == {"E-ZIP"}


def test_a_file_with_a_password_is_refused(queue, tmp_path):
    path = make_zip(tmp_path / "x.zip", [])
    content = bytearray(path.read_bytes())
    content[content.rfind(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    assert refused(queue, path) == {"E-ZIP"}


def test_a_bomb_is_refused_before_it_goes_off(queue, tmp_path):
    bomb = make_zip(tmp_path / "x.zip", [("zeros", bytes(FREE_BYTES + 1))], zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < FREE_BYTES / 500
    assert refused(queue, bomb) == {"E-ZIP"}


def test_entries_that_share_their_bytes_are_refused(queue, tmp_path):
    path = make_zip(tmp_path / "x.zip", [("aaaa", "x" * 1000), ("bbbb", "x" * 1000)])
    content = bytearray(path.read_bytes())
    last = content.rfind(b"PK\x01\x02")
    previous = content.rfind(b"PK\x01\x02", 0, last)
    content[last + 42 : last + 46] = content[previous + 42 : previous + 46]
    path.write_bytes(content)
    assert refused(queue, path) == {"E-ZIP"}


def test_a_size_that_lies_is_found_out(queue, tmp_path):
    path = make_zip(tmp_path / "x.zip", [("zeros", bytes(100_000))], zipfile.ZIP_DEFLATED)
    content = bytearray(path.read_bytes())
    at = content.rfind(b"PK\x01\x02")
    struct.pack_into("<L", content, at + 24, 10)
    path.write_bytes(content)
    assert refused(queue, path) == {"E-ZIP"}


def test_a_list_of_files_that_would_fill_the_memory_is_not_read(queue, tmp_path):
    few = ServiceConfig(min_free_bytes=0, max_archive_files=3)
    for entries in ([("a", "x")], [(f"{number:0200}", "") for number in range(1000)]):
        with pytest.raises(RefusedError, match="max_archive_files"):
            submit(queue, make_zip(tmp_path / "x.zip", entries), few)
    assert names(queue[0].incoming) == []


@pytest.mark.parametrize("limit", ["max_archive_bytes", "max_job_bytes"])
def test_too_large_is_too_large_packed_or_not(queue, tmp_path, limit):
    path = make_zip(tmp_path / "x.zip", [("zeros", bytes(100_000))], zipfile.ZIP_DEFLATED)
    with pytest.raises(RefusedError, match=limit):
        submit(queue, path, ServiceConfig(min_free_bytes=0, **{limit: 500}))
    with pytest.raises(RefusedError, match="min_free_bytes"):
        submit(queue, path, ServiceConfig(min_free_bytes=1 << 60))
    assert names(queue[0].incoming) == []


def test_server_paths_are_not_a_clients_to_name(queue, tmp_path):
    (tmp_path / "secret.pt").write_bytes(archive_bytes())
    (queue[0].data / "train.pt").write_bytes(archive_bytes())
    folder = make_job(tmp_path / "mine", files=("model.umodel",), data={"train": str(tmp_path / "secret.pt")})
    assert refused(queue, zip_folder(folder, tmp_path / "a.zip")) == {"E-PATH"}
    folder = make_job(tmp_path / "other", files=("model.umodel",), data={"train": "../data/train.pt"})
    assert submit(queue, zip_folder(folder, tmp_path / "b.zip")).is_new


def test_what_is_in_it_is_checked_like_any_folder(queue, tmp_path):
    folder = make_job(tmp_path / "mine", files=(), epochs=0)
    assert refused(queue, zip_folder(folder, tmp_path / "a.zip")) == {"E-VALUE"}
    (tmp_path / "b.zip").write_bytes(b"")
    assert refused(queue, tmp_path / "b.zip") == {"E-ZIP"}
    assert refused(queue, tmp_path / "nothing.zip") == {"E-FILE"}


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_damage_anywhere_is_a_refusal_and_never_anything_else(queue, tmp_path, data):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("job.json", json.dumps(fields()))
        archive.writestr("train/x.pt", b"x" * 50)
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    del content[data.draw(st.integers(len(content) // 2, len(content))) :]
    path, target = tmp_path / "x.zip", tmp_path / "out" / "job"
    path.write_bytes(content)
    target.parent.mkdir(exist_ok=True)
    try:
        unpack(queue[0], ROOMY, path, target, job="x")
    except (InvalidSubmission, RefusedError):
        assert names(target.parent) == []
    else:
        assert all(file.resolve().is_relative_to(target) for file in target.rglob("*"))
        for file in [*target.rglob("*")][::-1]:
            file.rmdir() if file.is_dir() else file.unlink()
        target.rmdir()
