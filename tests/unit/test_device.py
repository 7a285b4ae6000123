"""What is asked of the machine, against psutil, the operating system and files laid out as control groups are."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys

import psutil
import pytest
import torch

from unified import device
from unified.device import (
    gpu_memory,
    gpu_utilisation,
    host_memory,
    list_devices,
    list_gpus,
    num_usable_cores,
    parse_device,
    pss_bytes,
    torch_has_cuda,
)
from unified.errors import UnifiedError

GIB = 2**30


def test_asking_needs_no_torch_and_wakes_no_gpu():
    code = (
        "import sys; from unified import device; device.parse_device('auto'); device.host_memory(); device.num_usable_cores();"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def groups(tmp_path, membership, files):
    """Lay out control groups: a line for each hierarchy this process is in, and the files in them."""
    for name, text in files.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "self").write_text(membership)
    return tmp_path / "cgroup", tmp_path / "self"


def test_host_memory_is_that_of_psutil_without_a_limit(tmp_path):
    found = host_memory(*groups(tmp_path, "0::/job\n", {"job/memory.max": "max\n", "job/memory.current": "5\n"}))
    assert found.total_bytes == psutil.virtual_memory().total
    assert 0 < found.available_bytes <= found.total_bytes


def test_the_lowest_limit_of_all_groups_around_counts(tmp_path):
    files = {
        "outer/memory.max": str(GIB),
        "outer/memory.current": str(GIB // 2),
        "outer/memory.stat": f"anon 7\ninactive_file {GIB // 4}\n",
        "outer/inner/memory.max": str(2 * GIB),
        "outer/inner/memory.current": "1000",
    }
    found = host_memory(*groups(tmp_path, "0::/outer/inner\n", files))
    assert found.total_bytes == GIB
    assert found.available_bytes == GIB - GIB // 4  # a quarter in use; pages of files can go


def test_the_first_version_of_control_groups_is_read_too(tmp_path):
    files = {
        "memory/job/memory.limit_in_bytes": str(GIB),
        "memory/job/memory.usage_in_bytes": str(GIB // 2),
        "memory/job/memory.stat": f"inactive_file 1\ntotal_inactive_file {GIB // 8}\n",
    }
    membership = "4:memory:/job\n1:cpu,cpuacct:/job\n0::/\n"
    cgroups, own = groups(tmp_path, membership, files)
    assert host_memory(cgroups, own).total_bytes == GIB
    assert host_memory(cgroups, own).available_bytes == GIB - (GIB // 2 - GIB // 8)


def test_a_quota_of_cores_is_kept(tmp_path):
    assert num_usable_cores(*groups(tmp_path, "0::/job\n", {"job/cpu.max": "90000 100000\n"})) == 1
    own = len(os.sched_getaffinity(0))
    assert num_usable_cores(*groups(tmp_path, "0::/job\n", {"job/cpu.max": "max 100000\n"})) == own
    first = {"cpu/job/cpu.cfs_quota_us": "50000", "cpu/job/cpu.cfs_period_us": "100000"}
    assert num_usable_cores(*groups(tmp_path, "1:cpu:/job\n", first)) == 1


def test_a_machine_without_control_groups_has_no_limits(tmp_path):
    nowhere = tmp_path / "no"
    assert host_memory(nowhere, nowhere).total_bytes == psutil.virtual_memory().total
    assert num_usable_cores(nowhere, nowhere) == len(os.sched_getaffinity(0))


def hold(num_bytes, ready, done):
    block = b"x" * num_bytes
    ready.set()
    done.wait()
    assert len(block) == num_bytes


def test_pss_adds_up_processes_and_forgets_those_that_are_gone():
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    child = context.Process(target=hold, args=(100_000_000, ready, done))
    child.start()
    ready.wait()
    both, own = pss_bytes([os.getpid(), child.pid]), pss_bytes([os.getpid()])
    done.set()
    child.join()
    assert both - own > 100_000_000
    assert own > 10_000_000
    assert pss_bytes([child.pid]) == 0


def test_the_build_of_torch_is_known_without_importing_it():
    assert torch_has_cuda() == (torch.version.cuda is not None)


def test_words_for_devices():
    assert parse_device("cpu") == ("cpu",)
    assert parse_device("auto") == (list_gpus() or ("cpu",))
    assert list_devices() == ("cpu", *list_gpus())


@pytest.mark.parametrize("word", ["gpu", "cuda:", "cuda:x", "mps", "", "cuda:-1", "CPU"])
def test_unknown_words_are_told_what_would_do(word):
    with pytest.raises(UnifiedError, match="give 'auto', 'cpu', 'cuda' or one GPU such as 'cuda:0'"):
        parse_device(word)


@pytest.mark.skipif(bool(list_gpus()), reason="this machine has a GPU that torch can use")
def test_a_gpu_that_is_not_there_is_told_with_the_reason():
    with pytest.raises(UnifiedError, match=r"'cuda:0' is not there: .*; use device 'cpu' or 'auto'"):
        parse_device("cuda:0")


class DriverOfTwo:
    """Answers as NVIDIA's library would on a machine with two GPUs."""

    class NVMLError(Exception):
        """What the library raises."""

    class Memory:
        total, free = 16 * GIB, 10 * GIB

    class Rates:
        gpu = 37

    def nvmlDeviceGetCount(self):  # noqa: N802
        return 2

    def nvmlDeviceGetHandleByIndex(self, index):  # noqa: N802
        if index > 1:
            raise self.NVMLError
        return index

    def nvmlDeviceGetHandleByUUID(self, name):  # noqa: N802
        if not name.startswith("GPU-b"):
            raise self.NVMLError
        return 1

    def nvmlDeviceGetMemoryInfo(self, handle):  # noqa: N802
        return self.Memory

    def nvmlDeviceGetUtilizationRates(self, handle):  # noqa: N802
        return self.Rates


@pytest.fixture
def two_gpus(monkeypatch):
    driver = DriverOfTwo()
    monkeypatch.setattr(device, "_nvml", lambda: driver)
    monkeypatch.setattr(device, "torch_has_cuda", lambda: True)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.usefixtures("two_gpus")
def test_gpus_are_taken_all_or_by_number():
    assert parse_device("auto") == parse_device("cuda") == ("cuda:0", "cuda:1")
    assert parse_device("cuda:1") == ("cuda:1",)
    with pytest.raises(UnifiedError, match="this machine has cuda:0, cuda:1"):
        parse_device("cuda:2")
    assert gpu_memory("cuda:1").available_bytes == 10 * GIB
    assert gpu_utilisation("cuda:0") == 37.0
    assert gpu_memory("cuda:7") is None


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("visible", "number"),
    [("", 0), ("-1", 0), ("1", 1), ("1,0", 2), ("GPU-b1", 1), ("0,7,1", 1), ("GPU-zz", 0)],
)
def test_only_visible_gpus_count_up_to_the_first_that_is_not_there(visible, number, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert len(list_gpus()) == number
    if not number:
        with pytest.raises(UnifiedError, match="CUDA_VISIBLE_DEVICES"):
            parse_device("cuda")


@pytest.mark.gpu
def test_a_gpu_tells_the_memory_that_cuda_tells():
    found = gpu_memory("cuda:0")
    assert found.total_bytes == pytest.approx(torch.cuda.get_device_properties(0).total_memory, rel=0.1)
    assert len(list_gpus()) == torch.cuda.device_count()
