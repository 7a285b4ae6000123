"""What the original models answer: computed once, from the very tensors that students see."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from fusion.graph.errors import FusionError
from fusion.graph.parse import parse
from fusion.search.data import FusionData, Part
from fusion.search.hashing import hash_model
from fusion.search.tasks import Task
from fusion.search.teachers import TeacherCache, adapter_targets
from tests.unit.fusion_models import WIDTH, Chain, apart, chains, drawn, head, hidden, samples, shared

HALF = 2**-10  # relative rounding of float16, half a unit and some room


class Several(nn.Module):
    """Ends a chain in a dict with a tuple in it, ids and a number of the whole batch."""

    def forward(self, x: Tensor) -> dict[str, object]:
        return {"logits": x[:, :2], "ids": x.argmax(dim=1), "maps": (x[:, 2:3], x.double()), "loss": x.mean()}


def whole(stored) -> Tensor:
    return stored.gather(torch.arange(len(stored)))


def test_each_model_runs_once_per_part():
    models = chains()
    cache = TeacherCache(models, batch_size=64)
    parts = [Part(inputs=samples(40)), Part(inputs=samples(10, seed=1))]
    for _ in range(3):
        for part in parts:
            cache.loss_weights(part)
            cache.batch(part, torch.tensor([3, 1]))
            cache.scored(part, Task(name="mood", model=models[1]))
    assert [model.num_runs for model in models] == [2, 2]


def test_outputs_are_those_of_the_model_in_eval_mode_which_is_put_back():
    models = chains(dropout=0.5)
    models[0].train()
    part = Part(inputs=samples(40))
    found = whole(TeacherCache(models, batch_size=7).outputs(part, "age")["0"])
    assert models[0].training
    assert models[0].blocks[0][1].num_batches_tracked == 0
    models[0].eval()
    # another batch size adds in another order: float32 rounding of sums of 6 products
    torch.testing.assert_close(found, models[0].run([part.inputs]).detach(), rtol=1e-6, atol=1e-6)


def test_dict_and_tuple_outputs():
    model = Chain("age", hidden(0), Several()).eval()
    part = Part(inputs=samples(10))
    cache = TeacherCache([model], batch_size=4)
    expected = model.run([part.inputs])
    found = cache.outputs(part, "age")
    assert list(found) == ["logits", "maps.0", "maps.1"]
    torch.testing.assert_close(whole(found["maps.1"]), expected["maps"][1].detach(), rtol=1e-6, atol=1e-6)
    assert found["maps.1"].dtype == torch.float64
    assert [tensor.shape[1] for tensor in cache.batch(part, torch.tensor([0])).targets["age"]] == [2, 1, WIDTH]
    assert cache.scored(part, Task(name="age", model=model, output="maps.0")).shape == (10, 1)
    with pytest.raises(FusionError, match=r"task 'age': expected one float tensor .* found logits, maps\.0, maps\.1"):
        cache.scored(part, Task(name="age", model=model))


def test_loss_weights_are_one_over_the_mean_size():
    model = Chain("age", hidden(0), Several()).eval()
    part = Part(inputs=samples(30))
    cache = TeacherCache([model], batch_size=8)
    outputs = [whole(stored).double() for stored in cache.outputs(part, "age").values()]
    weights, squared = cache.loss_weights(part)["age"], cache.loss_weights(part, "mse")["age"]
    assert weights == pytest.approx([1 / (3 * float(x.abs().mean())) for x in outputs], rel=1e-9)
    assert squared == pytest.approx([1 / (3 * float(x.square().mean())) for x in outputs], rel=1e-9)


def test_an_output_that_is_always_zero_has_weight_one():
    silent = Chain("age", nn.Linear(WIDTH, 2))
    nn.init.zeros_(silent.blocks[0].weight)
    nn.init.zeros_(silent.blocks[0].bias)
    assert TeacherCache([silent]).loss_weights(Part(inputs=samples(4)))["age"] == (1.0,)


def test_features_are_the_inputs_of_blocks():
    models = chains()
    part = Part(inputs=samples(20))
    cache = TeacherCache(models, batch_size=6)
    for task, model in enumerate(models):
        for op, expected in enumerate(model.features([part.inputs])):
            [found] = cache.features(part, (task, op))
            assert found.num_bytes == 2 * expected.numel()
            torch.testing.assert_close(whole(found), expected.detach(), rtol=HALF, atol=1e-6)
    models[0].num_runs = 0
    cache.features(part, (0, 1), (1, 2), (0, 1))
    assert models[0].num_runs == 0


@pytest.mark.parametrize("ram_bytes", [0, 1 << 20])
@pytest.mark.parametrize("row", [0, 15])
def test_features_beyond_half_precision_are_kept_whole(tmp_path, ram_bytes, row):
    inputs = samples(16)
    inputs[row, 2] = 1e6
    part = Part(inputs=inputs)
    [found] = TeacherCache(chains(), batch_size=4, folder=tmp_path, ram_bytes=ram_bytes).features(part, (0, 0))
    exact = inputs if row == 0 else torch.cat([inputs[:12].half().float(), inputs[12:]])  # rows before it were rounded
    assert torch.equal(whole(found), exact)


def test_what_does_not_fit_into_memory_is_the_same_on_disk(tmp_path):
    part = Part(inputs=samples(33))
    models = chains()
    kept = TeacherCache(models, batch_size=8)
    spilled = TeacherCache(models, batch_size=8, folder=tmp_path, ram_bytes=0)
    index = torch.tensor([32, 0, 5, 5])
    boundaries = {"b0_0": (0, 1), "b1_1": (1, 2)}
    first, second = (cache.batch(part, index, known=boundaries) for cache in (kept, spilled))
    assert spilled.features(part, (0, 1))[0].is_on_disk
    assert not kept.features(part, (0, 1))[0].is_on_disk
    for task in ("age", "mood"):
        assert all(torch.equal(one, two) for one, two in zip(first.targets[task], second.targets[task], strict=True))
    assert all(torch.equal(first.known[name], second.known[name]) for name in boundaries)


def test_a_later_process_finds_features_by_content_only(tmp_path):
    def runs(models: tuple[Chain, Chain], part: Part) -> int:
        for model in models:
            model.num_runs = 0
        [found] = TeacherCache(models, folder=tmp_path, ram_bytes=0).features(part, (0, 1))
        torch.testing.assert_close(whole(found), models[0].features([part.inputs])[1].detach(), rtol=HALF, atol=1e-6)
        return models[0].num_runs - 1

    part = Part(inputs=samples(12))
    assert runs(chains(), part) == 1
    assert runs(chains(), part) == 0  # other objects, equal content
    assert runs(chains(), Part(inputs=samples(12, seed=1))) == 1
    other = chains()
    with torch.no_grad():
        other[0].blocks[0][0].bias[0] += 1
    assert runs(other, part) == 1


def test_features_keep_their_dtype_over_a_restart(tmp_path):
    part = Part(inputs=samples(5).double())
    for _ in range(2):
        models = [model.double() for model in chains()]
        [found] = TeacherCache(models, folder=tmp_path, ram_bytes=0).features(part, (1, 1))
        assert found.gather(torch.tensor([1])).dtype == torch.float64


def test_teacher_and_student_same_tensor():
    models = chains()
    data = FusionData.split(samples(40), seed=3)
    cache = TeacherCache(models, batch_size=40)
    index = torch.tensor([7, 2, 2, 19])
    batch = cache.batch(data.train, index)
    assert torch.equal(batch.inputs[0], data.train.inputs[index])
    for model in models:
        # another batch size: rounding only
        torch.testing.assert_close(batch.targets[model.name][0], model.run(batch.inputs).detach(), rtol=1e-6, atol=1e-6)
    assert cache.batch(data.train, index, tasks=["mood"]).targets.keys() == {"mood"}


def test_only_frozen_original_chains_are_known():
    models = chains()
    cache = TeacherCache(models)
    tree = shared(models, adapter_seed=9)
    assert cache.known_steps(tree) == {}
    tree.freeze(["b0_0", "b0_1", "a0_0_1_1", "b1_1"])
    assert cache.known_steps(tree) == {"b0_0": (0, 1), "b0_1": (0, 2)}  # b1_1 stands on an adapter
    tree.freeze(["b0_1"])
    assert cache.known_steps(tree) == {}
    side_by_side = apart(models)
    side_by_side.freeze(["b0_0", "b0_1", "b0_2", "b1_0"])
    assert cache.known_steps(side_by_side) == {"b0_1": (0, 2), "b1_0": (1, 1)}
    with torch.no_grad():
        side_by_side.nodes["b0_1"][0].bias[0] += 1e-3  # trained before it was frozen
    assert cache.known_steps(side_by_side) == {"b0_0": (0, 1), "b1_0": (1, 1)}


def test_cached_features_give_what_a_full_run_gives():
    models = chains()
    cache, part = TeacherCache(models), Part(inputs=samples(20))
    tree = shared(models, adapter_seed=9).eval()
    tree.freeze(["b0_0"])
    batch = cache.batch(part, torch.arange(20), known=cache.known_steps(tree))
    full, cached = tree.run(batch.inputs), tree.run(batch.inputs, known=batch.known)
    for task in full:
        torch.testing.assert_close(cached[task], full[task], rtol=10 * HALF, atol=10 * HALF)  # float16 through two blocks


def test_hints_are_what_adapters_stand_in_for():
    models = chains()
    cache, part = TeacherCache(models), Part(inputs=samples(20))
    tree = shared(models, adapter_seed=9)
    assert adapter_targets(tree) == {"a0_0_1_1": (1, 1)}
    batch = cache.batch(part, torch.tensor([4, 5]), known={"b0_0": (0, 1)}, hints=adapter_targets(tree))
    assert batch.hints["a0_0_1_1"].task == "mood"
    wanted = models[1].features([part.inputs])[1][[4, 5]]
    torch.testing.assert_close(batch.hints["a0_0_1_1"].target, wanted.detach(), rtol=HALF, atol=1e-6)


def test_outputs_that_cannot_be_imitated_are_refused():
    inputs = samples(6)
    inputs[4, 0] = float("nan")
    with pytest.raises(FusionError, match="model 'age': output '0' is not finite for some samples"):
        TeacherCache(chains()).outputs(Part(inputs=inputs), "age")
    counting = Chain("age", nn.Flatten(), _Ids())
    with pytest.raises(FusionError, match="model 'age': its output has no float tensor with a row per sample"):
        TeacherCache([counting]).outputs(Part(inputs=samples(3)), "age")


class _Ids(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.argmax(dim=1), x.sum()


def captured(activation: nn.Module, *, name: str = "age") -> nn.Module:
    model = nn.Sequential(drawn(nn.Linear(WIDTH, WIDTH), 1), activation, nn.Dropout(0.1), head(3, 2))
    return parse(model.eval(), samples(2), name=name)


def test_a_captured_model_s_hash_tells_its_code_and_weights_whatever_its_mode():
    first = captured(nn.ReLU())
    content = hash_model(first)
    assert hash_model(captured(nn.ReLU())) == hash_model(copy.deepcopy(first)) == content
    assert hash_model(first.train()) == content
    assert hash_model(captured(nn.GELU())) != content  # same weights
    with torch.no_grad():
        next(first.parameters())[0, 0] += 1e-6
    assert hash_model(first) != content


def test_captured_models_are_taught_like_others():
    model, part = captured(nn.Tanh()), Part(inputs=samples(9))
    cache = TeacherCache([model], batch_size=4)
    expected = model.eval()(part.inputs).detach()
    torch.testing.assert_close(whole(cache.outputs(part, "age")["0"]), expected, rtol=1e-6, atol=1e-6)
    boundaries = [(0, op) for op in range(len(model.blocks))]
    for found, wanted in zip(cache.features(part, *boundaries), model.features((part.inputs,)), strict=True):
        torch.testing.assert_close(whole(found), wanted.detach(), rtol=HALF, atol=1e-6)
