"""TensorBoard files, read back by TensorBoard's own reader."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from unified.queue.root import Root
from unified.service.tensorboard_files import MissingTensorboardError, TensorboardFiles

pytest.importorskip("tensorboard", reason="TensorBoard files are an option; install tensorboard to test them")


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root.make(tmp_path / "root")


def scalars(root: Root, job: str = "a") -> dict[str, list[tuple[int, float]]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the reader's own, of numpy and protobuf
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        reader = EventAccumulator(str(root.path / "tensorboard" / job), size_guidance={"scalars": 0})
        reader.Reload()
        tags = reader.Tags()["scalars"]
        return {tag: [(event.step, event.value) for event in reader.Scalars(tag)] for tag in tags}


def row(step: int, **changes) -> dict:
    return {"time": 100.0 + step, "step": step, "epoch": 1, "split": "train", "loss": 1 / step} | changes


def test_what_was_written_is_read_back_in_one_run_per_job(root: Root) -> None:
    files = TensorboardFiles(root)
    files.metric("a", row(2, loss=0.5, lr=0.25, step_seconds=0.125, memory_bytes=4096, slot=0, company=["b"]))
    files.metric("a", row(2, split="test", loss=0.75, metrics={"accuracy": 0.5, "top5_accuracy": 1}))
    files.metric("b", row(1, loss=2.0))
    files.flush()
    files.metric("a", row(4, loss=0.25))
    files.close("a")
    assert scalars(root) == {
        "loss/train": [(2, 0.5), (4, 0.25)],
        "loss/test": [(2, 0.75)],
        "accuracy/test": [(2, 0.5)],
        "top5_accuracy/test": [(2, 1.0)],
        "epoch": [(2, 1.0), (2, 1.0), (4, 1.0)],
        "speed/lr": [(2, 0.25)],
        "speed/step_seconds": [(2, 0.125)],
        "speed/memory_bytes": [(2, 4096.0)],
    }
    assert scalars(root, "b")["loss/train"] == [(1, 2.0)]
    assert len(list((root.path / "tensorboard" / "a").iterdir())) == 1


def test_a_value_that_is_missing_or_no_number_is_left_out(root: Root) -> None:
    files = TensorboardFiles(root)
    files.metric("a", {"step": 1, "loss": None, "metrics": None, "lr": "high"})
    files.metric("a", {"step": 2, "loss": 0.5})
    files.flush()
    assert scalars(root) == {"loss": [(2, 0.5)]}


def test_a_job_that_goes_on_from_a_checkpoint_tells_no_step_twice(root: Root) -> None:
    files = TensorboardFiles(root)
    for step in (2, 4, 8):
        files.metric("a", row(step))
    files.flush()
    files.metric("a", row(16))  # was not written before its worker died
    files.truncate("a", 4)
    files.metric("a", row(8, loss=0.5))
    files.flush()
    assert scalars(root)["loss/train"] == [(2, 0.5), (4, 0.25), (8, 0.5)]


def test_another_process_goes_on_in_another_file_behind_a_torn_record(root: Root) -> None:
    files = TensorboardFiles(root, wall=lambda: 5000.0)
    files.metric("a", row(2))
    files.metric("a", row(4))
    files.flush()
    (torn,) = (root.path / "tensorboard" / "a").iterdir()
    with torn.open("ab") as file:
        file.write(b"\x18\x00\x00")
    later = TensorboardFiles(root, wall=lambda: 4000.0)  # even if the clock was set back
    later.truncate("a", 2)
    later.metric("a", row(4, loss=0.75))
    later.flush()
    assert scalars(root)["loss/train"] == [(2, 0.5), (4, 0.75)]


def test_a_run_that_does_not_exist_needs_no_truncating(root: Root) -> None:
    files = TensorboardFiles(root)
    files.truncate("a", 0)
    files.flush()
    assert not (root.path / "tensorboard").exists()


def test_what_cannot_be_written_is_logged_and_stops_nothing(root: Root, caplog) -> None:
    files = TensorboardFiles(root)
    (root.path / "tensorboard").write_text("in the way")
    files.metric("a", row(1))
    files.flush()
    assert "cannot be written" in caplog.text
    (root.path / "tensorboard").unlink()
    files.metric("a", row(2))
    files.flush()
    assert scalars(root)["loss/train"] == [(2, 0.5)]


def test_what_a_fenced_supervisor_collected_is_dropped(root: Root) -> None:
    files = TensorboardFiles(root)
    files.metric("a", row(1))
    files.drop("a")
    files.close("a")
    assert not (root.path / "tensorboard").exists()


def test_without_the_package_the_error_says_what_to_install(root: Root, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto", None)
    with pytest.raises(MissingTensorboardError, match="pip install tensorboard"):
        TensorboardFiles(root)


def test_neither_torch_nor_tensorflow_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys; from unified.queue.root import Root; from unified.service.tensorboard_files import TensorboardFiles\n"
        "files = TensorboardFiles(Root.make(sys.argv[1])); files.metric('a', {'step': 1, 'loss': 0.5}); files.flush()\n"
        "sys.exit(bool({'torch', 'tensorflow'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "root")], check=False).returncode == 0
