import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.job_folders import names
from unified.queue.files import (
    TEMPORARY,
    copy_file,
    folder_bytes,
    free_bytes,
    hash_file,
    locked,
    open_plain,
    remove_tree,
    rename_durably,
    sync_tree,
    write_durably,
)


@settings(max_examples=20)
@given(old=st.binary(max_size=100), new=st.binary(max_size=100))
def test_write_durably_replaces_the_whole_file(tmp_path_factory, old, new):
    path = tmp_path_factory.mktemp("files") / "x"
    write_durably(path, old)
    write_durably(path, new)
    assert path.read_bytes() == new
    assert names(path.parent) == ["x"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    (tmp_path / "x").mkdir()  # cannot be replaced by a file
    with pytest.raises(OSError, match="x"):
        write_durably(tmp_path / "x", b"new")
    assert names(tmp_path) == ["x"]


def test_rename_says_who_was_first(tmp_path):
    (tmp_path / "a").mkdir()
    rename_durably(tmp_path / "a", tmp_path / "b")
    with pytest.raises(FileNotFoundError):
        rename_durably(tmp_path / "a", tmp_path / "c")


def test_rename_never_lands_on_a_folder_with_something_in_it(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    with pytest.raises(OSError, match="not empty"):
        rename_durably(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b" / "file").read_text() == "b"


def test_remove_tree_takes_files_folders_and_links_but_not_what_they_lead_to(tmp_path):
    scratch, kept = tmp_path / "scratch", tmp_path / "kept"
    scratch.mkdir()
    kept.mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(kept)
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    for name in ("file", "link", "folder"):
        remove_tree(tmp_path / name, scratch)
    assert names(tmp_path) == ["kept", "scratch"]
    assert names(scratch) == []


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to(__file__)], ids=["pipe", "folder", "link"])
def test_only_plain_files_are_opened_and_nothing_is_waited_for(tmp_path, make):
    make(tmp_path / "x")
    for use in (open_plain, hash_file):
        with pytest.raises(OSError, match="x"):
            use(tmp_path / "x")
    assert not sys.platform.startswith("linux") or _open_descriptors(tmp_path) == []


def _open_descriptors(folder):
    links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return [str(link.readlink()) for link in links if str(link.readlink()).startswith(str(folder))]


@settings(max_examples=20)
@given(content=st.binary(max_size=3000))
def test_a_copy_is_hashed_as_it_is_written(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("files")
    (folder / "a").write_bytes(content)
    digest = copy_file(folder / "a", folder / "b")
    assert digest == hash_file(folder / "a") == hash_file(folder / "b") == hashlib.sha256(content).hexdigest()
    with pytest.raises(FileExistsError):
        copy_file(folder / "a", folder / "b")


def test_folder_bytes_counts_files_and_follows_no_link(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_bytes(b"12345")
    (tmp_path / "a" / "link").symlink_to("/")
    (tmp_path / "y").write_bytes(b"123")
    sync_tree(tmp_path)
    assert folder_bytes(tmp_path) == 8
    assert folder_bytes(tmp_path / "nothing") == 0
    assert free_bytes(tmp_path) > 0


def test_a_lock_is_for_one_process_and_ends_with_it(tmp_path):
    ask = f"""
from pathlib import Path
from tests.unit.job_folders import names
from unified.queue.files import locked
with locked(Path({str(tmp_path)!r}), waits=False) as is_mine:
    print(is_mine)
"""
    with locked(tmp_path) as is_mine:
        assert is_mine
        assert subprocess.check_output([sys.executable, "-c", ask], text=True) == "False\n"
    assert subprocess.check_output([sys.executable, "-c", ask], text=True) == "True\n"


def test_temporary_names_are_hidden():
    assert TEMPORARY.startswith(".")
