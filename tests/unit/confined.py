"""A process inside the ring, forked as workers are, and what it tries: each function here is called in it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from unified import sandbox
from unified.dataset_files import reference
from unified.job_parts import ColumnSpec
from unified.nursery import Nursery


class Inside:
    """Our end of the pipe to a confined process."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def __call__(self, act: Callable[..., Any], *arguments: Any) -> Any:
        """Call ``act`` in there; what it returns or raises is returned or raised here."""
        self._pipe.send((act, arguments))
        result = self._pipe.recv()
        if isinstance(result, BaseException):
            raise result
        return result


@contextmanager
def confined(nursery: Nursery, confinement: sandbox.Confinement) -> Iterator[Inside]:
    """Fork a process that confines itself, and end it."""
    child = nursery.spawn(f"{__name__}:serve", confinement=confinement.to_json())
    yield Inside(child.pipe)
    nursery.reap(child)


def serve(pipe: Connection, confinement: str) -> None:
    """Do what is asked until the pipe closes; the role of the process."""
    sandbox.confine(sandbox.Confinement.from_json(confinement))
    while True:
        act, arguments = pipe.recv()
        try:
            pipe.send(act(*arguments))
        except Exception as error:  # noqa: BLE001 - it is looked at on the other side
            pipe.send(error)


def read(path: Path) -> str:
    return path.read_text()


def write(path: Path) -> int:
    return path.write_text("written inside")


def listed(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


def make_link(path: Path, target: Path) -> None:
    path.symlink_to(target)


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def temporary_file() -> str:
    with tempfile.NamedTemporaryFile() as file:
        return file.name


def connect(kind: int, address: tuple[str, int]) -> None:
    with socket.socket(socket.AF_INET, kind) as own:
        own.connect(address)


def make_socket(family: int) -> None:
    socket.socket(family).close()


def make_pair(kind: int) -> bytes:
    one, other = socket.socketpair(socket.AF_UNIX, kind)
    with one, other:
        one.send(b"x")
        return other.recv(1)


def run_program() -> None:
    subprocess.run(["/bin/true"], check=True)


def end(pid: int) -> None:
    os.kill(pid, signal.SIGTERM)


def signal_itself() -> bool:
    arrived = []
    before = signal.signal(signal.SIGUSR1, lambda *_: arrived.append(1))
    os.kill(os.getpid(), signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, before)
    return bool(arrived)


def confine_again_for(path: Path) -> str:
    """Ask for more than there was at first."""
    sandbox.confine(sandbox.Confinement(mode="required", readable=(path.parent,)))
    return path.read_text()


def train(folder: Path, num_threads: int) -> bool:
    """Take steps with several threads, and write and read weights in every form."""
    torch.set_num_threads(num_threads)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 30 * 30, 4))
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(3):
        nn.functional.cross_entropy(model(torch.randn(16, 3, 32, 32)), torch.arange(16) % 4).backward()
        optimizer.step()
    save_file(model.state_dict(), folder / "model.safetensors")
    torch.save(model.state_dict(), folder / "model.pt")
    mapped = torch.load(folder / "model.pt", weights_only=True, mmap=True)
    loaded = load_file(folder / "model.safetensors")
    return all(
        torch.equal(value, loaded[name]) and torch.equal(value, mapped[name]) for name, value in model.state_dict().items()
    )


def train_on_gpu() -> float:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 30 * 30, 4)).cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = nn.functional.cross_entropy(model(torch.randn(16, 3, 32, 32, device="cuda")), torch.arange(16, device="cuda") % 4)
    loss.backward()
    optimizer.step()
    return loss.item()


def count_threads() -> int:
    threads = [threading.Thread(target=torch.ones(1).add_, args=(1,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(threads)


def tell_memory() -> int:
    return min(psutil.virtual_memory().total, psutil.Process().memory_info().rss)


def tokenize(texts: list[str]) -> int:
    from tokenizers import Tokenizer, models

    tokenizer = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    return len(tokenizer.encode_batch(texts))


def run_transformer() -> list[int]:
    from transformers import BertConfig, BertModel

    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=20)
    return list(BertModel(config)(torch.ones(1, 3).long())[0].shape)


def read_table(path: Path, cache: Path) -> int:
    columns = ColumnSpec(inputs=["a", "b"], targets="kind")
    return reference(path, columns=columns, tokenizer=None, max_length=None, cache_dir=cache, job="table").num_samples
