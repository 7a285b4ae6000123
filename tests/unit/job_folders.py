"""Job folders as the queue sees them: a job.json beside files that look like a model and data, but hold next to nothing."""

import io
import json
import zipfile

from unified.queue.config import ServiceConfig
from unified.queue.root import Root
from unified.queue.store import JobStore

#: Takes what is dropped at once, and needs no room.
AT_ONCE = ServiceConfig(settle_seconds=0, patience_seconds=0, min_free_bytes=0)


def make_queue(path):
    root = Root.make(path)
    return root, JobStore.open(root.database)


def fields(**changes):
    job = {
        "name": "tiny",
        "model": "model.umodel",
        "data": {"train": "train.pt"},
        "loss": "MSELoss",
        "optimizer": {"name": "SGD", "lr": 0.1},
        "epochs": 1,
        "batch_size": 2,
    }
    return {field: value for field, value in (job | changes).items() if value is not ...}


def archive_bytes(text="tensors"):
    """A whole archive, as .umodel and .pt files are; always the same one."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(zipfile.ZipInfo("manifest.json"), text)
    return buffer.getvalue()


def make_job(folder, files=("model.umodel", "train.pt"), **changes):
    folder.mkdir(parents=True)
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(archive_bytes(name))
    (folder / "job.json").write_text(json.dumps(fields(**changes)))
    return folder


def zip_folder(folder, path, prefix=""):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, prefix + file.relative_to(folder).as_posix())
    return path


def names(folder):
    """What is in a folder, hidden or not."""
    return sorted(path.name for path in folder.iterdir())
