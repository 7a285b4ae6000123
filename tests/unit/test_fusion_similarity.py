"""How alike boundaries are: known maps between features, and a plain telling of each number."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from fusion.graph.errors import FusionError
from fusion.graph.feature import Feature, Layout
from fusion.graph.parse import parse
from fusion.graph.rescale import Rescale, start_least_squares
from fusion.search.similarity import boundary_similarity, compare_boundaries
from fusion.search.space import BlockId

N = 256


class Given(nn.Module):
    """A model whose blocks take what we say; its input is the number of each sample."""

    def __init__(self, *features: tuple[Tensor, Layout]) -> None:
        super().__init__()
        self.values = [values for values, _ in features]
        kinds = [Feature(tuple(v.shape[1:]), layout, str(v.dtype).removeprefix("torch.")) for v, layout in features]
        self.blocks = [SimpleNamespace(index=index, input=kind, needs=()) for index, kind in enumerate(kinds)]

    def features(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        return [values[inputs[0]] for values in self.values]


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(N, *shape, generator=torch.Generator().manual_seed(seed))


def compare(*models: Given, count: int = N) -> dict:
    return compare_boundaries(models, [torch.arange(count)])


def between(one: tuple[Tensor, Layout], other: tuple[Tensor, Layout], count: int = N):
    """Return what is found from ``one`` to ``other``."""
    return compare(Given(one), Given(other), count=count)[BlockId(0, 0), BlockId(1, 0)]


SHAPES = [((24,), Layout.VEC), ((8, 6, 6), Layout.CHW), ((6, 6, 8), Layout.HWC), ((17, 8), Layout.TOK), ((8, 12), Layout.CHW)]


@pytest.mark.parametrize(("shape", "layout"), SHAPES)
def test_a_feature_gives_itself_and_nothing_of_another(shape: tuple[int, ...], layout: Layout) -> None:
    feature, other = noise(*shape, seed=1), noise(*shape, seed=2)
    same, strange = between((feature, layout), (feature, layout)), between((feature, layout), (other, layout))
    assert same.r2 == pytest.approx(1.0, abs=2e-3)  # the ridge shrinks a little
    assert same.cka == pytest.approx(1.0, abs=1e-5)
    assert abs(strange.cka) < 0.1  # 0 but for chance, with 256 samples
    assert strange.r2 < 0.05


def test_r2_says_who_gives_whom() -> None:
    rich = noise(16, seed=1)
    poor = rich[:, :4]
    assert between((rich, Layout.VEC), (poor, Layout.VEC)).r2 == pytest.approx(1.0, abs=2e-3)
    assert between((poor, Layout.VEC), (rich, Layout.VEC)).r2 == pytest.approx(0.25, abs=0.05)  # 4 of 16 channels


def test_a_linear_map_between_channels_is_seen_through() -> None:
    maps, matrix = noise(8, 8, 8, seed=1), noise(8, 5, seed=2)[:8, 0]
    assert matrix.shape == (8, 5)
    mixed = torch.einsum("nchw,cd->ndhw", maps, matrix)
    assert between((maps, Layout.CHW), (mixed, Layout.CHW)).r2 > 0.99


def test_what_only_many_channels_remember_of_few_samples_does_not_count() -> None:
    few = 64  # with 60 channels a regression on half of them explains all of it
    assert between((noise(60, seed=1), Layout.VEC), (noise(60, seed=2), Layout.VEC), count=few).r2 < 0.1


def test_r2_is_what_an_adapter_attains_on_other_samples() -> None:
    source, target = Feature((6, 8, 8), Layout.CHW), Feature((17, 5), Layout.TOK)
    given = torch.nn.functional.interpolate(noise(6, 4, 4, seed=1), scale_factor=2, mode="bilinear")
    wanted = Rescale(source, target, generator=torch.Generator().manual_seed(0))(given).detach() + noise(17, 5, seed=2) * 0.3
    adapter = Rescale(source, target, generator=torch.Generator().manual_seed(1))
    start_least_squares(adapter, [(given[: N // 2], wanted[: N // 2])])
    held = slice(N // 2, N)
    error = (adapter(given[held]) - wanted[held]).square().sum()
    attained = 1 - error / (wanted[held] - wanted[: N // 2].mean((0, 1))).square().sum()
    found = between((given, Layout.CHW), (wanted, Layout.TOK)).r2
    assert found == pytest.approx(attained.item(), abs=0.05)  # four of the 17 places of each sample are looked at


def plain_unbiased_cka(x: Tensor, y: Tensor) -> float:
    """Equation 3 of Song et al. (2012), term by term."""

    def hsic(a: Tensor, b: Tensor) -> float:
        n = len(a)
        one = torch.ones(n, dtype=torch.float64)
        outer = (one @ a @ one) * (one @ b @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (one @ a @ b @ one)
        return ((a @ b).trace() + outer).item() / (n * (n - 3))

    grams = [(v.double() @ v.double().T).fill_diagonal_(0.0) for v in (x, y)]
    return hsic(grams[0], grams[1]) / (hsic(grams[0], grams[0]) * hsic(grams[1], grams[1])) ** 0.5


def test_cka_is_the_unbiased_estimate() -> None:
    x = noise(20, seed=1)
    y = x[:, :10] * 2 + noise(10, seed=2)
    found = between((x, Layout.VEC), (y, Layout.VEC), count=40).cka
    assert found == pytest.approx(plain_unbiased_cka(x[:40], y[:40]), abs=1e-4)  # single precision


def test_what_no_adapter_can_bring_together_is_not_alike() -> None:
    ids = (torch.arange(N).remainder(7)[:, None].repeat(1, 5), Layout.VEC)
    strange = (noise(2, 3, 4, 5, seed=1), Layout.OTHER)
    found = compare(Given(ids, strange), Given((noise(4, seed=1), Layout.VEC), strange))
    unlike = [(BlockId(0, 0), BlockId(1, 0)), (BlockId(1, 0), BlockId(0, 0)), (BlockId(0, 1), BlockId(1, 0))]
    assert all((found[pair].cka, found[pair].r2) == (0.0, 0.0) for pair in unlike)
    assert found[BlockId(0, 1), BlockId(1, 1)].r2 > 0.99  # equal features are shared without an adapter


def test_wide_and_large_features_are_cut_down_alike_each_time() -> None:
    wide = (noise(200, 20, 20, seed=1), Layout.CHW)
    first, second = compare(Given(wide), Given(wide)), compare(Given(wide), Given(wide))
    assert first == second
    assert first[BlockId(0, 0), BlockId(0, 0)].r2 > 0.99


def test_what_is_said_in_other_words_by_many_channels_is_recognised() -> None:
    spectrum = torch.logspace(0, -2, 128)  # features of trained models have few strong directions and many weak ones
    rotation = torch.linalg.qr(torch.randn(128, 128, generator=torch.Generator().manual_seed(3))).Q
    wide = noise(128, seed=1) * spectrum
    found = between((wide, Layout.VEC), (wide @ rotation, Layout.VEC))
    assert found.r2 > 0.95  # half of the channels are looked at; they hold 99 % of the variance
    assert found.cka > 0.99


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(FusionError, match="at least 4 samples to compare features on, got 3"):
        between((noise(4, seed=1), Layout.VEC), (noise(4, seed=2), Layout.VEC), count=3)


def test_every_pair_of_blocks_of_parsed_models_has_a_number_from_0_to_1() -> None:
    torch.manual_seed(0)
    maps = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 8, 3, stride=2), nn.Flatten()
    )
    maps.append(nn.Linear(8 * 9, 3))
    twin = copy.deepcopy(maps)
    images = torch.randn(400, 1, 8, 8)
    sequences = [parse(model, images[:2], name=name) for model, name in ((maps, "one"), (twin, "other"))]
    state, modes = torch.get_rng_state(), [sequence.training for sequence in sequences]
    found = boundary_similarity(sequences, [images], max_samples=384)
    blocks = [BlockId(task, op) for task, sequence in enumerate(sequences) for op in range(len(sequence.blocks))]
    assert found.keys() == {(host, guest) for host in blocks for guest in blocks}
    assert all(0.0 <= value <= 1.0 for value in found.values())
    assert all(found[BlockId(0, op), BlockId(1, op)] > 0.95 for op in range(len(sequences[0].blocks)))
    assert torch.equal(torch.get_rng_state(), state)
    assert [sequence.training for sequence in sequences] == modes
    assert torch.equal(twin[1].running_mean, torch.zeros(4))
