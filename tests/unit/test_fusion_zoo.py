"""Models of the zoo are taken apart into blocks that are the model in outputs, weights, work and training."""

import pytest
import torch
from torch import nn

from benchmarks.fusion_coverage_rows import TOLERANCE, difference, examine
from benchmarks.fusion_coverage_targets import Target
from benchmarks.fusion_zoo import ZooModel, call, user_models, zoo
from fusion.graph.parse import parse

TRANSFORMERS = ("distilbert", "gpt2", "t5", "vit")
LEFT_TO_THE_BENCHMARK = (
    "conv_autoencoder",
    "einsum_attention",
    "fourier_mixer",
    "gru",
    "normed_residual",
    "soft_experts",
    "sound_net",
    "tied_weights",
    "unrolled_cell",
    "video",
)  # for time
CAPTURED = [
    *(entry for entry in user_models() if entry.refusal is None and entry.name not in LEFT_TO_THE_BENCHMARK),
    *(entry for entry in zoo() if entry.family == "transformers" and entry.name in TRANSFORMERS),
]
REFUSED = [entry for entry in user_models() if entry.refusal is not None]
# one operator for a whole attention layer in place of several: other kernels, which round otherwise
FAST_PATH = ("encoder_layers",)
# gradients of a table that several blocks look up are added in another order
TABLES = ("t5",)


def names(entry: ZooModel) -> str:
    return entry.name


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("entry", CAPTURED, ids=names)
def test_a_model_and_its_blocks_are_the_same(entry):
    row = examine(entry)

    assert row.outcome == "captured", row.message
    assert row.is_bitwise
    assert row.difference_single == 0
    assert row.difference_fast == 0 or (entry.name in FAST_PATH and row.difference_fast <= TOLERANCE)
    assert row.parameters_identical
    assert (row.duplicated_heavy, row.flops_difference, row.writing_blocks, row.stale_buffers) == (0, 0, 0, 0)
    assert row.train_difference == 0 or (entry.name in TABLES and row.train_difference <= 1e-8)


@pytest.mark.parametrize("entry", REFUSED, ids=names)
def test_a_model_that_branches_on_values_is_refused_with_the_line_at_which_it_does(entry):
    row = examine(entry)

    assert (row.outcome, row.is_expected) == ("refused", True), row.message
    assert "/" not in row.message.replace("…/", ""), "no folder of this machine gets into a result"


def test_the_zoo_names_each_model_once_and_has_the_52_of_the_targets():
    entries = zoo()

    assert len({entry.name for entry in entries}) == len(entries)
    assert sum(entry.is_core for entry in entries) == 52


def test_a_model_is_built_alike_each_time_and_leaves_the_global_random_state():
    entry = next(entry for entry in user_models() if entry.name == "unet")
    before = torch.get_rng_state()

    one, other = entry.build().state_dict(), entry.build().state_dict()

    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("entry", CAPTURED, ids=names)
def test_outputs_depend_on_the_sample_so_that_errors_show(entry):
    model = entry.build()

    with torch.no_grad():
        assert difference(call(model, entry.inputs(seed=1)), call(model, entry.inputs(seed=2))) > 10 * TOLERANCE


class LongSkip(nn.Module):
    """Learns what to add to its input, as models that clean or enlarge pictures do."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 6, 3, 1, 1), nn.ReLU(), nn.Conv2d(6, 6, 3, 1, 1), nn.ReLU(), nn.Conv2d(6, 3, 1)
        )

    def forward(self, x):
        return nn.functional.interpolate(x, scale_factor=2.0) + nn.functional.interpolate(
            self.layers(x - 0.5), scale_factor=2.0
        )


class DroppedTable(nn.Module):
    """Drops out a learned table anew in each layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(6))
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        for layer in self.layers:
            x = torch.relu(layer(x) * self.dropout(self.table))
        return x


class TwoTowers(nn.Module):
    """Encodes one row of ids, and joins the other late."""

    def __init__(self) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(9, 6), nn.Embedding(9, 6)
        self.encoder = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh())
        self.head = nn.Linear(6, 2)

    def forward(self, ids, others):
        return self.head(self.target(others) * self.encoder(self.source(ids)))


@pytest.mark.parametrize(
    ("kind", "inputs", "needs"),
    [
        (LongSkip, torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), [(), (), (0,)]),
        (DroppedTable, torch.randn(2, 6, generator=torch.Generator().manual_seed(0)), [(), (), ()]),
        (TwoTowers, (torch.tensor([[1, 2], [3, 4]]), torch.tensor([[5, 6], [7, 8]])), [(), (), (), (1,), ()]),
    ],
)
def test_what_blocks_can_make_themselves_keeps_no_path_alive(kind, inputs, needs):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind()

    assert [block.needs for block in parse(model, inputs, primary=0).blocks] == needs


@pytest.mark.parametrize(
    ("value", "op", "bound", "verdict"),
    [
        (50, ">=", 50, "PASS"),
        (49, ">=", 50, "FAIL"),
        (None, ">=", 50, "NOT-RUN"),
        (0.0, "<=", 0, "PASS"),
        (float("inf"), "<=", 1e-5, "FAIL"),
    ],
)
def test_a_target_is_judged_by_its_bound(value, op, bound, verdict):
    target = Target(id="C1", measure="captured", value=value, op=op, bound=bound)

    assert target.line.startswith("C1 captured=")
    assert target.line.endswith(f"target{op}{bound:g} {verdict}")
