"""The Open Inference Protocol as bytes: what is read from a request, what is refused, and what an answer looks like."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.http.binary import HEADER
from serving.http.protocol import Target, answer_parts, model_metadata, read_call
from serving.queries import AccuracyMode, Budget, Decision, Mishit, Offer, OnMishit, Reason
from serving.records import DTYPES, Family, Kind, TaskSpec, TensorSpec
from serving.runtime.requests import InferAnswer, RefusalKind, Refused

FAMILY = Family(
    name="panels",
    inputs=(TensorSpec(name="image", dtype="FP32", shape=(2, 3)), TensorSpec(name="place", dtype="INT64", shape=())),
    tasks=(
        TaskSpec(name="shoe", kind=Kind.CLASSIFICATION, shape=(2,)),
        TaskSpec(name="count", kind=Kind.REGRESSION, shape=()),
        TaskSpec(name="first", kind=Kind.CLASSIFICATION, shape=(3,)),
    ),
)
TARGET = Target(family=FAMILY, tasks=FAMILY.task_names, max_rows=4)
IMAGE = {"name": "image", "datatype": "FP32", "shape": [2, 2, 3], "data": [0.5, 1, -2, 3e-3, 4, 5, 6, 7, 8, 9, 10, 11.25]}
PLACE = {"name": "place", "datatype": "INT64", "shape": [2], "data": [3, -4]}


def read(content, target=TARGET, *, raw=b"", header=None):
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return read_call(bytearray(body + raw), header if header is not None or not raw else str(len(body)), target, 5.0)


def request(**changes):
    return {"inputs": [IMAGE, PLACE]} | changes


def refusal(content, target=TARGET, **settings):
    with pytest.raises(Refused) as caught:
        read(content, target, **settings)
    return caught.value


def test_a_bare_request_asks_for_all_tasks_without_limits():
    call = read(request())
    image, place = call.request.inputs
    assert image.dtype == torch.float32
    assert image.flatten().tolist() == torch.tensor(IMAGE["data"]).tolist()
    assert image.shape == (2, 2, 3)
    assert place.tolist() == [3, -4]
    assert place.dtype == torch.int64
    assert (call.outputs, call.raw, call.request.id, call.request.version) == (FAMILY.task_names, frozenset(), None, None)
    assert call.request.query.tasks == set(FAMILY.task_names)
    assert (call.request.query.latency_ms, call.request.query.min_accuracy, call.request.received) == (None, None, 5.0)


def test_parameters_become_the_query():
    wanted = {
        "tasks": "first, shoe",
        "latency_ms": 20,
        "min_accuracy.shoe": 0.9,
        "accuracy_mode": "per_task",
        "budget": "equal",
        "on_mishit": "best_effort",
        "query_priority": -3,
    }
    call = read(request(id="abc", parameters=wanted))
    query = call.request.query
    assert query.tasks == {"first", "shoe"}
    assert query.min_accuracy == {"shoe": 0.9}
    assert (query.latency_ms, query.accuracy_mode, query.budget) == (20, AccuracyMode.PER_TASK, Budget.EQUAL)
    assert (query.on_mishit, query.priority, call.request.id) == (OnMishit.BEST_EFFORT, -3, "abc")
    assert call.outputs == ("shoe", "first")  # in the family's order, as the client gives none


def test_the_server_s_limit_holds_where_a_request_gives_none():
    target = Target(family=FAMILY, tasks=FAMILY.task_names, latency_ms=7.0)
    assert read(request(), target).request.query.latency_ms == 7.0
    assert read(request(parameters={"latency_ms": 9}), target).request.query.latency_ms == 9.0


def test_outputs_name_the_tasks_and_their_order():
    call = read(request(outputs=[{"name": "first"}, {"name": "shoe", "parameters": {"binary_data": True}}]))
    assert call.outputs == ("first", "shoe")
    assert call.raw == {"shoe"}
    assert call.request.query.tasks == {"first", "shoe"}
    both = request(outputs=[{"name": "first"}], parameters={"tasks": "first"})
    assert read(both).request.query.tasks == {"first"}


def test_of_a_version_only_its_tasks_can_be_asked_for():
    target = Target(family=FAMILY, tasks=("shoe",), version="abc")
    call = read(request(), target)
    assert (call.request.version, call.request.query.tasks, call.outputs) == ("abc", {"shoe"}, ("shoe",))
    assert refusal(request(parameters={"tasks": "count"}), target).code == "tasks"


def test_nested_data_is_the_same_as_flat():
    nested = IMAGE | {"data": np.array(IMAGE["data"]).reshape(2, 2, 3).tolist()}
    assert torch.equal(read(request(inputs=[PLACE, nested])).request.inputs[0], read(request()).request.inputs[0])


def raw_inputs(*order):
    """Inputs that are sent as bytes, and these bytes."""
    arrays = {"image": np.array(IMAGE["data"], "<f4"), "place": np.array(PLACE["data"], "<i8")}
    entries = []
    for entry in order:
        left = {key: value for key, value in entry.items() if key != "data"}
        entries.append(left | {"parameters": {"binary_data_size": arrays[entry["name"]].nbytes}})
    return entries, b"".join(arrays[entry["name"]].tobytes() for entry in order)


@pytest.mark.parametrize("order", [(IMAGE, PLACE), (PLACE, IMAGE)], ids=["family's order", "another"])
def test_bytes_behind_the_json_are_the_inputs_in_the_request_s_order(order):
    entries, raw = raw_inputs(*order)
    found = read({"inputs": entries}, raw=raw).request.inputs
    for one, other in zip(found, read(request()).request.inputs, strict=True):
        assert torch.equal(one, other)


def test_one_input_may_be_json_and_the_other_bytes():
    entries, raw = raw_inputs(PLACE)
    assert read({"inputs": [IMAGE, *entries]}, raw=raw).request.inputs[1].tolist() == PLACE["data"]


def test_unaligned_bytes_are_read():
    """The JSON in front of them has any length."""
    for blanks in range(4):
        entries, raw = raw_inputs(PLACE, IMAGE)
        content = json.dumps({"inputs": entries}).encode() + b" " * blanks
        assert read(content, raw=raw).request.inputs[1].tolist() == PLACE["data"]


WRONG = {
    "no JSON": (b"{", "json"),
    "other bytes": (b'{"id": "\xff"}', "json"),
    "a list": ([], "json"),
    "NaN": (b'{"inputs": [NaN]}', "json"),
    "a number beyond all": (b'{"inputs": [-Infinity]}', "json"),
    "half a character": (b'{"id": "\\ud800"}', "json"),
    "too deep": (b"[" * 100_000, "json"),
    "a number too long": (b'{"id": ' + b"1" * 5000 + b"}", "json"),
    "unknown field": (request(output=[]), "json"),
    "parameters as a list": (request(parameters=[1]), "json"),
    "id as a number": (request(id=3), "id"),
    "no inputs": ({}, "inputs"),
    "inputs as an object": (request(inputs={}), "inputs"),
    "an input missing": (request(inputs=[IMAGE]), "inputs"),
    "an input twice": (request(inputs=[IMAGE, IMAGE]), "inputs"),
    "an input of another name": (request(inputs=[IMAGE, PLACE | {"name": "x"}]), "inputs"),
    "an input that is none": (request(inputs=[IMAGE, 7]), "inputs"),
    "an unknown field of an input": (request(inputs=[IMAGE | {"dtype": "FP32"}, PLACE]), "inputs"),
    "datatype": (request(inputs=[IMAGE | {"datatype": "FP64"}, PLACE]), "datatype"),
    "no shape": (request(inputs=[IMAGE | {"shape": None}, PLACE]), "shape"),
    "no rows": (request(inputs=[IMAGE | {"shape": [0, 2, 3]}, PLACE]), "shape"),
    "a shape of booleans": (request(inputs=[IMAGE | {"shape": [True, 2, 3]}, PLACE]), "shape"),
    "another shape": (request(inputs=[IMAGE | {"shape": [2, 3, 2]}, PLACE]), "shape"),
    "rows that differ": (request(inputs=[IMAGE, PLACE | {"shape": [3], "data": [1, 2, 3]}]), "shape"),
    "no data": (request(inputs=[{key: IMAGE[key] for key in ("name", "datatype", "shape")}, PLACE]), "data"),
    "data as a number": (request(inputs=[IMAGE | {"data": 1.5}, PLACE]), "data"),
    "too few elements": (request(inputs=[IMAGE | {"data": [1.0]}, PLACE]), "data"),
    "no elements": (request(inputs=[IMAGE | {"data": []}, PLACE]), "data"),
    "strings": (request(inputs=[IMAGE | {"data": ["1"] * 12}, PLACE]), "data"),
    "booleans for numbers": (request(inputs=[IMAGE | {"data": [True] * 12}, PLACE]), "data"),
    "null": (request(inputs=[IMAGE | {"data": [None] * 12}, PLACE]), "data"),
    "ragged": (request(inputs=[IMAGE | {"data": [[[1, 2, 3], [1, 2]], [[1, 2, 3], [1, 2, 3]]]}, PLACE]), "data"),
    "nested too deep": (request(inputs=[IMAGE | {"data": [[[[1]] * 3] * 2] * 2}, PLACE]), "data"),
    "beyond FP32": (request(inputs=[IMAGE | {"data": [1e39] * 12}, PLACE]), "data"),
    "beyond every float": (request(inputs=[IMAGE | {"data": [10**400] * 12}, PLACE]), "data"),
    "beyond INT64": (request(inputs=[IMAGE, PLACE | {"data": [2**63, 0]}]), "data"),
    "fractions for INT64": (request(inputs=[IMAGE, PLACE | {"data": [1.0, 0]}]), "data"),
    "an unknown task": (request(parameters={"tasks": "shoe,nose"}), "tasks"),
    "an unknown output": (request(outputs=[{"name": "nose"}]), "tasks"),
    "tasks and outputs disagree": (request(outputs=[{"name": "shoe"}], parameters={"tasks": "first"}), "tasks"),
    "an unknown parameter": (request(parameters={"latency": 3}), "parameter"),
    "a parameter that is Triton's": (request(parameters={"priority": 3}), "parameter"),
    "an unknown parameter of an output": (
        request(outputs=[{"name": "shoe", "parameters": {"classification": 3}}]),
        "parameter",
    ),
    "a limit of nothing": (request(parameters={"latency_ms": 0}), "parameter"),
    "a limit as text": (request(parameters={"latency_ms": "20"}), "parameter"),
    "a limit beyond every float": (request(parameters={"latency_ms": 10**400}), "parameter"),
    "a floor above 1": (request(parameters={"min_accuracy": 1.5}), "parameter"),
    "both kinds of floor": (request(parameters={"min_accuracy": 0.5, "min_accuracy.shoe": 0.5}), "parameter"),
    "a floor of an unknown task": (request(parameters={"min_accuracy.nose": 0.5}), "parameter"),
    "a floor of a task that is not asked": (request(parameters={"tasks": "shoe", "min_accuracy.first": 0.5}), "parameter"),
    "an unknown mode": (request(parameters={"accuracy_mode": "mean"}), "parameter"),
    "an equal budget of no limit": (request(parameters={"budget": "equal"}), "parameter"),
    "a list as a parameter": (request(parameters={"budget": ["equal"]}), "parameter"),
    "a priority that is no whole number": (request(parameters={"query_priority": 1.5}), "parameter"),
    "a flag that is none": (request(parameters={"binary_data_output": 1}), "parameter"),
}


@pytest.mark.parametrize(("content", "code"), WRONG.values(), ids=WRONG)
def test_what_is_no_such_request_is_refused(content, code):
    found = refusal(content)
    assert (found.kind, found.code) == (RefusalKind.BAD_REQUEST, code)
    assert len(found.message) < 500


def test_everything_that_is_wrong_with_the_parameters_is_said():
    message = refusal(request(parameters={"latency_ms": "x", "min_accuracy.nose": 1, "rush": True})).message
    assert all(word in message for word in ("latency_ms", "nose", "rush"))


def test_too_many_rows_are_too_large():
    many = [IMAGE | {"shape": [5, 2, 3], "data": []}, PLACE | {"shape": [5]}]
    assert refusal(request(inputs=many)).kind is RefusalKind.TOO_LARGE


@pytest.mark.parametrize("header", ["0", "-1", "x", "", "99999", "1" * 5000, "²"])
def test_a_length_that_is_none_is_refused(header):
    assert refusal(request(), header=header).code == "header"


@pytest.mark.parametrize("wrong", ["too few bytes", "too many bytes", "size of another shape", "size as text", "NaN", "both"])
def test_bytes_that_are_not_the_inputs_are_refused(wrong):
    entries, raw = raw_inputs(IMAGE, PLACE)
    if wrong == "too few bytes":
        raw = raw[:-1]
    elif wrong == "too many bytes":
        raw += b"x"
    elif wrong == "NaN":
        raw = np.float32(math.nan).tobytes() + raw[4:]
    elif wrong == "both":
        entries[0]["data"] = IMAGE["data"]
    else:
        entries[0]["parameters"]["binary_data_size"] = 52 if wrong == "size of another shape" else "48"
    assert refusal({"inputs": entries}, raw=raw).code == "data"


def test_a_byte_that_is_no_bool_is_refused():
    family = Family(name="f", inputs=(TensorSpec(name="x", dtype="BOOL", shape=(2,)),), tasks=FAMILY.tasks)
    target = Target(family=family, tasks=family.task_names)
    entry = {"name": "x", "datatype": "BOOL", "shape": [1, 2], "parameters": {"binary_data_size": 2}}
    assert read({"inputs": [entry]}, target, raw=b"\x01\x00").request.inputs[0].tolist() == [[True, False]]
    assert refusal({"inputs": [entry]}, target, raw=b"\x01\x02").code == "data"


@settings(deadline=None, max_examples=60)
@given(data=st.data(), dtype=st.sampled_from(sorted(DTYPES)), rows=st.integers(1, 3))
def test_json_and_bytes_give_the_tensor_that_was_sent(data, dtype, rows):
    family = Family(name="f", inputs=(TensorSpec(name="x", dtype=dtype, shape=(2,)),), tasks=FAMILY.tasks)
    target = Target(family=family, tasks=family.task_names)
    kind = np.dtype(DTYPES[dtype])
    size = 2 * rows
    if kind.kind == "f":
        elements = st.floats(width=8 * kind.itemsize, allow_nan=False, allow_infinity=False)
    elif kind.kind == "b":
        elements = st.booleans()
    else:
        elements = st.integers(int(np.iinfo(kind).min), int(np.iinfo(kind).max))
    array = np.array(data.draw(st.lists(elements, min_size=size, max_size=size)), kind).reshape(rows, 2)
    entry = {"name": "x", "datatype": dtype, "shape": [rows, 2]}
    as_json = read({"inputs": [entry | {"data": array.tolist()}]}, target)
    as_bytes = read({"inputs": [entry | {"parameters": {"binary_data_size": array.nbytes}}]}, target, raw=array.tobytes())
    for call in (as_json, as_bytes):
        assert np.array_equal(call.request.inputs[0].numpy(), array)


def answer(**changes):
    outputs = {
        "shoe": torch.tensor([[0.1, 0.2], [1e-30, -3.0]]),
        "count": torch.tensor([1.5, 2.0]),
        "first": torch.tensor([[1.0, 2, 3], [4, 5, 6]]),
    }
    offer = Offer(
        variants=("aa", "bb"),
        tasks=(("shoe",), ("count", "first")),
        predicted_ms=3.0,
        load_ms=0.0,
        infer_ms=2.5,
        accuracy={"shoe": 0.5, "count": 0.6, "first": 1.0},
    )
    values = {
        "outputs": outputs,
        "decision": Decision(offer=offer),
        "queue_ms": 0.25,
        "measured_ms": 2.75,
        "batch_rows": 8,
        "late": False,
    }
    return InferAnswer(**(values | changes))


def test_an_answer_says_what_answered_and_how():
    body, headers = answer_parts(answer(), read(request(id="é")))
    found = json.loads(body)
    assert (found["model_name"], found["model_version"], found["id"]) == ("panels", "aa+bb", "é")
    assert found["parameters"] == {
        "predicted_latency_ms": 3.0,
        "measured_latency_ms": 2.75,
        "queue_ms": 0.25,
        "batch_rows": 8,
        "accuracy": 0.7,
        "mishit": False,
        "late": False,
    }
    assert [output["name"] for output in found["outputs"]] == ["shoe", "count", "first"]
    shoe = found["outputs"][0]
    assert (shoe["datatype"], shoe["shape"]) == ("FP32", [2, 2])
    assert torch.tensor(shoe["data"]).tolist() == answer().outputs["shoe"].flatten().tolist()
    assert headers == [(b"content-type", b"application/json")]


def test_an_answer_by_best_effort_says_why():
    decision = Decision(offer=answer().decision.offer, mishit=Mishit(reason=Reason.CONFLICT))
    found = json.loads(answer_parts(answer(decision=decision), read(request()))[0])["parameters"]
    assert (found["mishit"], found["mishit_reason"]) == (True, "conflict")


def test_outputs_as_bytes_stand_behind_the_json_in_the_order_asked():
    asked = [{"name": "first"}, {"name": "count", "parameters": {"binary_data": False}}, {"name": "shoe"}]
    body, headers = answer_parts(answer(), read(request(outputs=asked, parameters={"binary_data_output": True})))
    length = int(dict(headers)[HEADER.lower().encode()])
    found = json.loads(body[:length])["outputs"]
    assert [output.get("parameters", {}).get("binary_data_size") for output in found] == [24, None, 16]
    assert np.frombuffer(body[length : length + 24], "<f4").tolist() == [1, 2, 3, 4, 5, 6]
    assert np.frombuffer(body[length + 24 :], "<f4").tolist() == answer().outputs["shoe"].flatten().tolist()
    assert found[1]["data"] == [1.5, 2.0]


def test_metadata_has_a_row_axis_of_any_size():
    found = model_metadata(FAMILY, ["aa"], ("shoe", "count"))
    assert found["inputs"][0] == {"name": "image", "datatype": "FP32", "shape": [-1, 2, 3]}
    assert [output["shape"] for output in found["outputs"]] == [[-1, 2], [-1]]
    assert (found["name"], found["versions"], found["platform"]) == ("panels", ["aa"], "pytorch")
