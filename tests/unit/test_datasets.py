import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch.utils.data import DataLoader, Dataset, TensorDataset

from unified.dataset_files import reference
from unified.datasets import DatasetPool, TensorData, label_problems, load_tensors
from unified.errors import InvalidSubmission

DTYPES = [
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
    torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool,
]  # fmt: skip

needs_maps = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc")


class NamedInputs(Dataset):
    """The reference for a model with several inputs."""

    def __init__(self, inputs, targets):
        self.inputs, self.targets = inputs, targets

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return {name: tensor[index] for name, tensor in self.inputs.items()}, self.targets[index]


def refer(path, cache_dir):
    return reference(path, columns=None, tokenizer=None, max_length=None, cache_dir=cache_dir, job="digits")


def saved(path, num_samples=50, seed=0):
    draw = torch.Generator().manual_seed(seed)
    inputs = torch.randn(num_samples, 3, 4, generator=draw)
    targets = torch.randint(0, 5, (num_samples,), generator=draw)
    if path.suffix == ".safetensors":
        save_file({"inputs": inputs, "targets": targets}, path)
    else:
        torch.save((inputs, targets), path)
    return inputs, targets


def mapped_file(tensor):
    """The file behind the memory of ``tensor``, by the kernel's word."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        begin, end = (int(address, 16) for address in line.split()[0].split("-"))
        if begin <= tensor.data_ptr() < end:
            return line.split(maxsplit=5)[5] if len(line.split()) > 5 else None
    return None


def assert_same(actual, expected):
    """Equal bits, dtypes, shapes and strides."""
    if isinstance(expected, dict):
        assert list(actual) == list(expected)
        for name in expected:
            assert_same(actual[name], expected[name])
        return
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    assert actual.stride() == expected.stride()
    assert actual.contiguous().view(torch.uint8).equal(expected.contiguous().view(torch.uint8))


def random_tensor(shape, dtype):
    if dtype.is_floating_point:
        return torch.randn(shape).to(dtype)
    return torch.randint(0, 2 if dtype == torch.bool else 100, shape).to(dtype)


@settings(deadline=None, max_examples=60)
@given(
    shape=st.lists(st.integers(1, 4), max_size=3),
    dtype=st.sampled_from(DTYPES),
    batch_size=st.integers(1, 12),
    permuted=st.booleans(),
)
def test_batches_equal_those_of_the_data_loader_bit_for_bit(shape, dtype, batch_size, permuted):
    inputs = random_tensor((11, *shape), dtype)
    if permuted and inputs.dim() > 2:
        inputs = inputs.transpose(1, -1)
    targets = random_tensor((11,), torch.int64)
    data = TensorData(inputs=inputs, targets=targets)
    loader = DataLoader(TensorDataset(inputs, targets), batch_size=batch_size)
    evaluated = list(data.batches(batch_size))
    assert len(evaluated) == len(loader)
    for start, (expected_x, expected_y), (x, y) in zip(range(0, 11, batch_size), loader, evaluated, strict=True):
        gathered_x, gathered_y = data.batch(torch.arange(start, min(start + batch_size, 11)))
        for actual, expected in [
            (x, expected_x), (y, expected_y), (gathered_x, expected_x), (gathered_y, expected_y)
        ]:  # fmt: skip
            assert_same(actual, expected)


def test_shuffled_batches_of_several_inputs_equal_those_of_the_data_loader():
    inputs = {"tokens": torch.randint(0, 9, (10, 6)), "mask": torch.rand(10, 6) > 0.5, "age": torch.rand(10)}
    targets = torch.rand(10, 2)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    data = TensorData(inputs=inputs, targets=targets)
    loader = DataLoader(NamedInputs(inputs, targets), batch_size=4, sampler=order.tolist())
    for index, (x, y) in zip(order.split(4), loader, strict=True):
        got_x, got_y = data.batch(index)
        assert_same(got_x, x)
        assert_same(got_y, y)


def test_batches_never_share_storage_with_the_dataset():
    inputs, targets = torch.zeros(6, 2), torch.zeros(6)
    data = TensorData(inputs=inputs, targets=targets)
    for x, y in [data.batch(torch.arange(6)), next(data.batches(6)), next(data.batches(6, device="cpu"))]:
        x.fill_(1)
        y.fill_(1)
    assert not inputs.any()
    assert not targets.any()


def test_batches_do_not_depend_on_the_number_of_threads():
    data = TensorData(inputs=torch.randn(3000, 40), targets=torch.randn(3000))
    index = torch.randperm(3000, generator=torch.Generator().manual_seed(0))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = data.batch(index)
        torch.set_num_threads(2)
        two = data.batch(index)
    finally:
        torch.set_num_threads(threads)
    for a, b in zip(one, two, strict=True):
        assert_same(a, b)


@pytest.mark.parametrize("name", ["a.pt", "a.pth", "a.safetensors"])
def test_loaded_tensors_are_those_saved(tmp_path, name):
    inputs, targets = saved(tmp_path / name)
    data = load_tensors(refer(tmp_path / name, tmp_path / "cache"))
    assert_same(data.inputs, inputs)
    assert_same(data.targets, targets)
    assert len(data) == 50
    assert data.nbytes == 50 * 3 * 4 * 4 + 50 * 8


@needs_maps
@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_loaded_tensors_are_backed_by_their_file_and_their_batches_are_not(tmp_path, name):
    path = tmp_path / name
    saved(path)
    data = load_tensors(refer(path, tmp_path / "cache"))
    assert mapped_file(data.inputs) == str(path)
    assert mapped_file(data.targets) == str(path)
    x, y = data.batch(torch.arange(5))
    assert mapped_file(x) != str(path)
    assert mapped_file(y) != str(path)


@needs_maps
def test_a_file_of_the_old_format_is_mapped_from_a_copy(tmp_path):
    draw = torch.randn(20, 3), torch.arange(20)
    torch.save(draw, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    ref = refer(tmp_path / "old.pt", tmp_path / "cache")
    data = load_tensors(ref)
    assert_same(data.inputs, draw[0])
    assert ref.path.parent == tmp_path / "cache"
    assert mapped_file(data.inputs) == str(ref.path)


def anonymous_bytes():
    """Memory of this process that no file backs."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Anonymous:"))


@needs_maps
@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_a_mapped_dataset_takes_no_memory_of_its_own(tmp_path, name):
    path = tmp_path / name
    saved(path, num_samples=1 << 20)  # 56 MiB
    ref = refer(path, tmp_path / "cache")
    before = anonymous_bytes()
    data = load_tensors(ref)
    total = sum(float(x.sum()) for x, _ in data.batches(1 << 12))
    assert math.isfinite(total)
    assert anonymous_bytes() - before < 8 << 20


def test_equal_content_is_one_object_until_its_last_user_releases_it(tmp_path):
    saved(tmp_path / "a.pt")
    saved(tmp_path / "b.safetensors")
    saved(tmp_path / "c.pt", seed=1)
    a, b, c = (refer(tmp_path / n, tmp_path / "cache") for n in ("a.pt", "b.safetensors", "c.pt"))
    pool = DatasetPool()
    first = pool.get(a)
    assert pool.get(b) is first
    assert pool.get(c) is not first
    assert len(pool) == 2
    pool.release(a.key)
    assert pool.get(a) is first
    pool.release(a.key)
    pool.release(b.key)
    assert len(pool) == 1
    assert pool.get(a) is not first
    assert pool.device_bytes == 0


def test_releasing_what_nobody_holds_is_an_error(tmp_path):
    with pytest.raises(KeyError):
        DatasetPool().release("k")


@needs_maps
def test_a_dropped_dataset_is_unmapped(tmp_path):
    saved(tmp_path / "a.pt")
    ref = refer(tmp_path / "a.pt", tmp_path / "cache")
    pool = DatasetPool()
    pool.get(ref)
    assert str(ref.path) in Path("/proc/self/maps").read_text()
    pool.release(ref.key)
    assert str(ref.path) not in Path("/proc/self/maps").read_text()


def test_a_file_changed_since_its_reference_is_refused(tmp_path):
    path = tmp_path / "a.pt"
    saved(path)
    ref = refer(path, tmp_path / "cache")
    saved(path, num_samples=49)
    with pytest.raises(InvalidSubmission, match="49 samples"):
        load_tensors(ref)
    path.write_bytes(b"PK\x03\x04")
    with pytest.raises(InvalidSubmission):
        load_tensors(ref)
    path.unlink()
    with pytest.raises(InvalidSubmission, match="FileNotFoundError"):
        load_tensors(ref)


def labelled(targets):
    return TensorData(inputs=torch.zeros(len(targets), 1), targets=targets)


@pytest.mark.parametrize("loss", ["CrossEntropyLoss", "NLLLoss"])
@pytest.mark.parametrize(
    ("targets", "num_classes", "given"),
    [
        (torch.tensor([0, -1, 2]), None, "labels such as [-1]"),
        (torch.tensor([0, 3, 2]), 3, "labels such as [3]"),
        (torch.tensor([0.0, 1.0]), None, "dtype torch.float32"),
        (torch.tensor([0, 1], dtype=torch.int32), None, "dtype torch.int32"),
        (torch.tensor([[0, 1], [5, 1]]), 5, "labels such as [5]"),
    ],
)
def test_labels_that_a_loss_cannot_take_are_problems(loss, targets, num_classes, given):
    (problem,) = label_problems(labelled(targets), num_classes, loss, job="digits", field="data.train")
    assert (problem.job, problem.field, problem.given) == ("digits", "data.train: targets", given)


@pytest.mark.parametrize(
    ("targets", "num_classes", "loss"),
    [
        (torch.tensor([0, -100, 2]), 3, "CrossEntropyLoss"),
        (torch.tensor([0, 1], dtype=torch.uint8), 2, "NLLLoss"),
        (torch.rand(4, 3), 3, "CrossEntropyLoss"),
        (torch.tensor([-1.0, 0.5]), None, "MSELoss"),
        (torch.tensor([], dtype=torch.int64), 2, "NLLLoss"),
    ],
)
def test_labels_that_a_loss_takes_are_no_problem(targets, num_classes, loss):
    assert label_problems(labelled(targets), num_classes, loss, job="digits", field="data.train") == []


def test_the_label_that_the_loss_ignores_is_no_problem():
    data = labelled(torch.tensor([0, 255, 1]))
    assert label_problems(data, 2, "CrossEntropyLoss", job="digits", field="data.train", ignore_index=255) == []
    assert label_problems(labelled(torch.tensor([-100])), 2, "NLLLoss", job="digits", field="data.train", ignore_index=255)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("budget_bytes", [0, 1 << 30])
def test_batches_on_a_gpu_equal_those_on_the_cpu_within_and_beyond_the_budget(tmp_path, budget_bytes):
    saved(tmp_path / "a.pt")
    ref = refer(tmp_path / "a.pt", tmp_path / "cache")
    pool = DatasetPool(device="cuda", budget_bytes=budget_bytes)
    data = pool.get(ref)
    assert pool.device_bytes == (ref.nbytes if budget_bytes else 0)
    here = load_tensors(ref)
    for index in torch.randperm(50).split(8):
        for actual, expected in zip(data.batch(index, device="cuda"), here.batch(index), strict=True):
            assert actual.is_cuda
            assert_same(actual.cpu(), expected)
    for actual, expected in zip(data.batches(8, device="cuda"), here.batches(8), strict=True):
        assert_same(actual[0].cpu(), expected[0])
