"""Networks on disk: what is written answers the same, and what is forged is refused."""

from __future__ import annotations

import copy
import json
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fusion.graph.capture import at_batch
from serving.errors import ServingError
from serving.networks.heads import keep_tasks
from serving.networks.operators import ALLOWED, NUMBERS, resolve
from serving.networks.programs import read_program, write_program
from tests.unit.serving_networks import MODELS, Panels, network_of, panels


@pytest.fixture(scope="module", params=MODELS)
def stored(request, tmp_path_factory):
    """Give a network, the folder that it was written to and inputs; none may be changed."""
    inputs = MODELS[request.param][1]
    folder = tmp_path_factory.mktemp(request.param)
    write_program(network_of(request.param), inputs(), folder)
    return network_of(request.param), folder, inputs


def frozen(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).requires_grad_(False)


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert list(one) == list(other)
    for task, output in one.items():
        assert torch.equal(output, other[task]), task


@pytest.mark.parametrize("size", [1, 2, 5, 16])
def test_answers_bit_for_bit_for_any_batch(stored, size):
    network, folder, inputs = stored
    with torch.inference_mode():
        assert_same(frozen(network)(*inputs(size)), read_program(folder)(*inputs(size)))


def test_holds_the_weights_under_their_names_and_nothing_else(stored):
    network, folder, _ = stored
    state = network.state_dict()
    weights = load_file(folder / "model.safetensors")
    assert weights.keys() == {name for name in state if not name.endswith("num_batches_tracked")}
    for name, tensor in read_program(folder).state_dict().items():
        assert torch.equal(tensor, state[name])
    assert {path.name for path in folder.iterdir()} == {"graph.json", "model.safetensors"}


def test_writes_the_same_bytes_again(stored, tmp_path):
    network, folder, inputs = stored
    write_program(copy.deepcopy(network).train(), inputs(7), tmp_path)
    for name in ("graph.json", "model.safetensors"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_a_program_is_copied_and_stays_in_evaluation(stored):
    _, folder, inputs = stored
    program = read_program(folder)
    assert_same(program(*inputs()), copy.deepcopy(program)(*inputs()))
    assert not program.eval().training
    with pytest.raises(ServingError, match="evaluation mode only"):
        program.train()
    with pytest.raises(ServingError, match="expected 1 inputs, got 2"):
        program(*inputs(), *inputs())


def test_writing_leaves_the_module_as_it_is(tmp_path):
    module = Panels()
    before = {name: (value.clone(), value.requires_grad) for name, value in module.state_dict(keep_vars=True).items()}
    write_program(module, panels(), tmp_path)
    assert module.training
    for name, value in module.state_dict(keep_vars=True).items():
        assert torch.equal(value, before[name][0])
        assert value.requires_grad == before[name][1]


class Odd(nn.Module):
    """What programs have to spell: sizes, constants, infinities, dtypes, several results, inputs that are not read."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.arange(6.0).reshape(2, 3))

    def forward(self, x: Tensor, unused: Tensor) -> dict[str, Tensor]:
        B, N = x.shape  # batch, numbers
        mask = torch.ones(N, N, dtype=torch.bool, device=x.device).triu(1)
        scores = (x[:, :, None] * x[:, None]).masked_fill(mask, float("-inf")).softmax(-1)
        values, places = torch.cat([x, x.new_zeros(B, 1)], 1).max(1)
        left, right = x.to(torch.float64).split([2, N - 2], 1)
        return {
            "scores": scores.reshape(B * 1, -1),
            "places": places + torch.arange(B, device=x.device),
            "sum": (left.sum(1) + right.sum(1)).float() * values + self.table[:, 1].sum() + torch.tensor(0.5),
            "input": x,
        }


def test_spells_sizes_constants_and_several_results(tmp_path):
    inputs = torch.randn(4, 5), torch.zeros(4, 2)
    write_program(Odd(), inputs, tmp_path)
    assert_same(Odd()(*inputs), read_program(tmp_path)(*inputs))
    assert_same(Odd()(*at_batch(inputs, 3)), read_program(tmp_path)(*at_batch(inputs, 3)))


class Unstorable(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.layer(x)
        if self.kind == "write":
            y[:, :2] *= 0.5
        if self.kind == "random":
            y = y + torch.rand_like(y)
        if self.kind == "dropout":
            y = nn.functional.dropout(y, 0.5, training=True)
        if self.kind == "functions":
            y = torch.cond(y.sum() > 0, torch.sin, torch.cos, (y,))
        return {"a": y}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("write", "writes into a tensor: take torch.where or torch.cat"),
        ("random", "may not use the operator 'aten.rand_like.default'"),
        ("dropout", "drops at random in evaluation mode"),
        ("functions", "cannot be stored"),
    ],
)
def test_says_why_a_module_cannot_be_stored(tmp_path, kind, message):
    with pytest.raises(ServingError, match=message):
        write_program(Unstorable(kind), (torch.randn(3, 4),), tmp_path)


@pytest.fixture
def forged(tmp_path, small):
    """Give a function that changes a stored graph and returns its folder."""

    def change(edit):
        shutil.copytree(small, tmp_path / "program")
        content = json.loads((small / "graph.json").read_text())
        edit(content)
        (tmp_path / "program" / "graph.json").write_text(json.dumps(content))
        return tmp_path / "program"

    return change


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    write_program(keep_tasks(network_of("panels"), ["shoe"]), panels(), folder)
    return folder


def op(name: str, *args: object, **kwargs: object):
    return lambda content: content["nodes"].append({"op": name, "args": list(args), "kwargs": kwargs})


def training(content: dict) -> None:
    norm = next(node for node in content["nodes"] if node["op"] == "aten.batch_norm.default")
    norm["args"][5] = True


FORGERIES = {
    "file": op("aten.from_file.default", "/etc/passwd"),
    "random": op("aten.rand.default", [2]),
    "writing": op("aten.add_.Tensor", {"input": 0}, 1),
    "into": op("aten.add.out", {"input": 0}, 1, out={"input": 0}),
    "bytes": op("aten.view.dtype", {"input": 0}, {"dtype": "uint8"}),
    "other namespace": op("prim.device.default", {"input": 0}),
    "builtin": op("builtins.exec", "1"),
    "number": op("number.eval", "1"),
    "attribute": op("aten.add.__class__", {"input": 0}, 1),
    "unknown overload": op("aten.add.Nothing", {"input": 0}, 1),
    "keyword of code": op("aten.relu.default", {"input": 0}, **{"x=1) or print(": 1}),
    "too many arguments": op("aten.relu.default", {"input": 0}, 1, 2),
    "numbers by name": op("number.add", 1, b=2),
    "dropping": op("aten.scaled_dot_product_attention.default", {"input": 0}, {"input": 0}, {"input": 0}, None, 0.5),
    "training": training,
    "later node": op("aten.relu.default", {"node": 10_000}),
    "negative node": op("aten.relu.default", {"node": -1}),
    "truth for a node": op("aten.relu.default", {"node": True}),
    "unknown input": op("aten.relu.default", {"input": 1}),
    "unknown tensor": op("aten.relu.default", {"tensor": "nothing"}),
    "other device": op("aten.relu.default", {"device": "cuda"}),
    "unknown symbol": op("aten.relu.default", {"code": "1"}),
    "two entries": op("aten.relu.default", {"input": 0, "node": 0}),
    "deep": op("aten.relu.default", [[[[[[1]]]]]]),
    "long": op("aten.relu.default", "x" * 1000),
    "huge": op("aten.relu.default", 1 << 70),
    "no call": lambda content: content["nodes"].append("aten.relu.default"),
    "no list": lambda content: content.update(nodes={}),
    "no outputs": lambda content: content.update(outputs={}),
    "constant output": lambda content: content.update(outputs={"shoe": 1}),
    "no inputs": lambda content: content.update(inputs=0),
    "truth for inputs": lambda content: content.update(inputs=True),
    "other format": lambda content: content.update(format=2),
    "further key": lambda content: content.update(code="1"),
    "not a number": lambda content: content["nodes"][0]["args"].append(float("nan")),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_graph_is_refused(forged, name):
    with pytest.raises(ServingError, match=r"no stored network can be read|expected the tensor"):
        read_program(forged(FORGERIES[name]))


def test_missing_and_damaged_files_are_refused(small, tmp_path):
    with pytest.raises(ServingError, match="no stored network"):
        read_program(tmp_path)
    weights = small / "model.safetensors"
    for content in (b"", b"\x80\x04pickle", weights.read_bytes()[:-8]):
        folder = tmp_path / str(len(content))
        shutil.copytree(small, folder)
        (folder / weights.name).write_bytes(content)
        with pytest.raises(ServingError, match="no stored network"):
            read_program(folder)
    save_file({"a": torch.zeros(1)}, tmp_path / weights.name)
    shutil.copy(small / "graph.json", tmp_path)
    with pytest.raises(ServingError, match="expected the tensor"):
        read_program(tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["node", "tensor", "op", "a"]), inner, max_size=2)
    ),
    max_leaves=5,
)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_whatever_stands_in_a_graph_it_is_read_or_refused(small, tmp_path_factory, data):
    content = json.loads((small / "graph.json").read_text())
    node = data.draw(st.sampled_from(content["nodes"]))
    place = data.draw(st.sampled_from([content, node, node["args"]]))
    key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
    place[key] = data.draw(JSON)
    folder = tmp_path_factory.mktemp("drawn")
    shutil.copy(small / "model.safetensors", folder)
    (folder / "graph.json").write_text(json.dumps(content))
    try:
        read_program(folder)
    except ServingError as error:
        assert str(folder) in str(error)  # noqa: PT017  either is right


@pytest.mark.parametrize("name", ["training", "forward.weight", "_function.weight", ".".join("a" * 5000)])
def test_tensors_of_names_that_are_the_programs_own_are_refused(tmp_path, name):
    call = {"op": "aten.relu.default", "args": [{"tensor": name}]}
    graph = {"format": 1, "inputs": 1, "nodes": [call], "outputs": {"kind": {"node": 0}}}
    (tmp_path / "graph.json").write_text(json.dumps(graph))
    save_file({name: torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(ServingError, match="names tensors as no network does"):
        read_program(tmp_path)


def test_the_list_names_operators_that_only_compute():
    for name in ALLOWED:
        packet = getattr(torch.ops.aten, name)
        usable = []
        for overload in packet.overloads():
            try:
                _, found = resolve(f"aten.{name}.{overload}")
            except ValueError:
                continue
            usable.append(found)
            assert not found._schema.is_mutable
            assert all(argument.alias_info is None or not argument.alias_info.is_write for argument in found._schema.arguments)
        assert usable, f"{name} is on the list for nothing"
    assert all(callable(resolve(f"number.{name}")[0]) for name in NUMBERS)


def test_what_was_read_can_be_written_again_and_copied(tmp_path):
    write_program(Panels().eval(), panels(), tmp_path / "first")
    program = read_program(tmp_path / "first")
    assert list(program.state_dict()) == list(copy.deepcopy(program).state_dict())
    write_program(copy.deepcopy(program), panels(), tmp_path / "second")
    expected, got = program(*panels(3)), read_program(tmp_path / "second")(*panels(3))
    assert all(torch.equal(expected[task], got[task]) for task in expected)
