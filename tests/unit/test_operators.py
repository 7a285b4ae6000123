"""The operators that a ``.umodel`` may name: laws over all that PyTorch registers, and lists of what must and must not pass."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from unified.submission import operators
from unified.submission.operators import COUNTER, INTERNAL, RefusedOperatorError, refusal, resolve, reviewed


def registered() -> list[str]:
    names = [name.removeprefix("aten::") for name in torch._C._dispatch_get_all_op_names() if name.startswith("aten::")]
    pairs = [name.partition(".") for name in names]
    return sorted(f"aten.{base}.{overload or 'default'}" for base, _, overload in pairs)


def allowed() -> list[str]:
    found = []
    for name in registered():
        try:
            found.append(resolve(name).name)
        except RefusedOperatorError:
            continue
    return found


def schema_of(name: str) -> torch._C.FunctionSchema:
    _, base, overload = name.split(".")
    return getattr(getattr(torch.ops.aten, base), overload)._schema


def test_nothing_allowed_writes_or_returns_what_is_no_tensor():
    names = allowed()
    assert len(names) > 700
    for name in names:
        schema = schema_of(name)
        writes = [a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write]
        assert not writes or name == COUNTER, name
        returns = {str(r.real_type) for r in schema.returns}
        assert returns <= {"Tensor", "List[Tensor]"} or name.split(".")[1].startswith("sym_"), name
        assert not any(r.alias_info is not None and r.alias_info.is_write for r in schema.returns) or name == COUNTER, name


def test_nothing_allowed_belongs_to_a_refused_family():
    words = (
        "empty",
        "strided",
        "resize",
        "backward",
        "cudnn",
        "mkldnn",
        "sparse",
        "quantize",
        "nested",
        "from_file",
        "pin_",
    )
    for name in allowed():
        base = name.split(".")[1]
        assert not any(word in base for word in words), name
        assert not base.startswith("_") or base in INTERNAL, name
        assert not base.endswith("_") or name == COUNTER, name


def test_the_reviewed_list_is_what_the_principle_allows():
    allowed_here, absent = set(), set()
    for name in [*registered(), *(name for name in reviewed() if name.startswith("py."))]:
        if refusal(name) is None:
            allowed_here.add(name)
    for name in reviewed():
        try:
            assert refusal(name) is None, name
        except RefusedOperatorError:
            absent.add(name)  # another version that is supported has it
    assert reviewed().keys() - absent <= allowed_here
    if torch.__version__.split("+")[0] == reviewed_on():
        assert not absent
        assert allowed_here == reviewed().keys()


def reviewed_on() -> str:
    head = Path(operators.__file__).with_name("operators.txt").read_text().splitlines()[1]
    return head.removeprefix("# Reviewed on PyTorch ").partition(". ")[0]


def test_an_operator_that_nobody_reviewed_is_refused(monkeypatch):
    monkeypatch.setattr(operators, "reviewed", dict)
    with pytest.raises(RefusedOperatorError, match="not on the list of reviewed operators"):
        operators.resolve.__wrapped__("aten.relu.default")


ORDINARY = """
    abs.default add.Tensor addmm.default adaptive_avg_pool2d.default all.dim amax.default any.default arange.start_step
    argmax.default avg_pool2d.default baddbmm.default batch_norm.default bernoulli.p bitwise_and.Tensor bmm.default
    cat.default cdist.default chunk.default clamp.default clone.default constant_pad_nd.default contiguous.default
    conv1d.default conv2d.default conv2d.padding conv3d.default conv_transpose2d.input copy.default
    cross_entropy_loss.default cumsum.default detach.default diagonal.default div.Tensor_mode dropout.default
    einsum.default elu.default embedding.default embedding_bag.padding_idx eq.Scalar erf.default exp.default
    expand.default feature_dropout.default fft_rfft.default flatten.using_ints flip.default full.default full_like.default
    gather.default gelu.default glu.default grid_sampler.default group_norm.default gru.input index.Tensor
    index_put.default index_select.default instance_norm.default layer_norm.default leaky_relu.default
    lift_fresh_copy.default linear.default log_softmax.int logsumexp.default lstm.input masked_fill.Scalar
    matmul.default max.dim max_pool2d.default maximum.default mean.dim mm.default mul.Tensor multinomial.default
    nll_loss_nd.default norm.ScalarOpt_dim normal_functional.default one_hot.default ones_like.default pad.default
    permute.default pixel_shuffle.default pow.Tensor_Scalar prelu.default prod.dim_int rand.default rand_like.default
    randn_like.default randperm.default relu.default repeat.default repeat_interleave.self_int reshape.default
    rms_norm.default rnn_tanh.input roll.default rsqrt.default scaled_dot_product_attention.default scatter.src
    scatter_add.default select.int select_scatter.default selu.default sigmoid.default silu.default slice.Tensor
    slice_scatter.default softmax.int softplus.default sort.default split.Tensor split_with_sizes.default squeeze.dims
    stack.default std.correction sub.Tensor sum.dim_IntList sym_size.int take_along_dim.default tanh.default
    to.dtype_layout topk.default transpose.int tril.default triu.default unbind.int unflatten.int unfold.default
    uniform.default unsqueeze.default upsample_bilinear2d.vec upsample_nearest2d.vec var.correction var_mean.correction
    view.default where.self zeros.default zeros_like.default _native_multi_head_attention.default _to_copy.default
    _transformer_encoder_layer_fwd.default _unsafe_view.default _weight_norm.default
"""


@pytest.mark.parametrize("name", ORDINARY.split())
def test_ordinary_operators_pass(name):
    assert resolve(f"aten.{name}").name == f"aten.{name}"


REFUSED = """
    add.out as_strided.default as_strided_scatter.default batch_norm_update_stats.default bincount.default
    cudnn_convolution.default data.default empty.memory_format empty_like.default empty_strided.default equal.default
    from_file.default is_nonzero.default item.default _local_scalar_dense.default masked_select.default
    mkldnn_convolution.default native_batch_norm.default new_empty.default nonzero.default pin_memory.default
    quantize_per_tensor.default record_stream.default relu_.default resize_.default resize_as_.default set_.source_Tensor
    set_data.default to_sparse.default unique_dim.default view.nothing zero_.default __and__.Tensor __class__.default
    lu_unpack.default linalg_lu_solve.default grid_sampler_2d.default range.step
    binomial.default cov.default linalg_eigvals.default lstm.data nonzero_numpy.default random.default view.dtype
    special_chebyshev_polynomial_t.default multilabel_margin_loss.default
    _foreach_add.List _philox.default _reshape_alias.default softmax name.default
"""


@pytest.mark.parametrize("name", REFUSED.split())
def test_others_are_refused_with_a_reason(name):
    with pytest.raises(RefusedOperatorError, match=r"operator 'aten\..*', which \w+"):
        resolve(f"aten.{name}")


@pytest.mark.parametrize(
    "name",
    [
        "",
        "aten",
        "aten..",
        "torch.os.system",
        "prims.add.default",
        "aten.add.Tensor\n",
        "aten.add." + "T" * 999,
        "py.eval",
    ],
)
def test_what_is_no_name_of_an_operator(name):
    with pytest.raises(RefusedOperatorError):
        resolve(name)


def test_sizes_do_not_grow_without_end():
    assert resolve("py.mul").function(3, 4) == 12
    with pytest.raises(OverflowError):
        resolve("py.mul").function(1 << 40, 1 << 40)
    assert resolve("py.floor").function(2.5) == 2
    assert resolve("py.ceil").function(2.5) == 3


def zeros(*shape: int) -> torch.Tensor:
    return torch.zeros(shape)


#: Calls that ended the process, or gave back memory that was not filled, when they were made as PyTorch has them.
HOSTILE_CALLS = {
    "_weight_norm.default": (zeros(2, 0, 4), zeros(2, 0, 4)),
    "pdist.default": (zeros(0, 3),),
    "binary_cross_entropy.default": (zeros(1, 1), zeros(2, 0, 4), None, -1),
    "soft_margin_loss.default": (zeros(1, 1), zeros(2, 0, 4), -1),
    "replication_pad2d.default": (zeros(1, 1, 3, 3), [(1 << 63) - 1] * 4),
    "replication_pad1d.default": (zeros(1, 3, 3), [-10, 20]),
    "pad.default": (zeros(1, 3, 3), [-10, 20], "replicate"),
    "grid_sampler.default": (zeros(1, 1, 2, 2), zeros(1, 2, 2, 2), 7, 0, False),
    "embedding_bag.default": (zeros(4, 4), zeros(1).bool(), zeros(2, 0, 4).long(), True, 1 << 62, True),
    "lstm.input": (zeros(1, 2, 3), [zeros(1, 2, 3)] * 2, [zeros(12, 3)] * 6, False, 1 << 33, 0.0, True, True, True),
    "_upsample_bilinear2d_aa.default": (zeros(1, 1, 4, 4), [17, 400], False, 0.5, 0.01),
}


@pytest.mark.parametrize("name", HOSTILE_CALLS)
def test_an_operator_that_checks_too_little_is_checked_before_it_is_called(name):
    with pytest.raises((ValueError, RuntimeError), match="expected"):
        resolve(f"aten.{name}").function(*HOSTILE_CALLS[name])


@pytest.mark.parametrize("offsets", [[0, -(10**12), 3], [0, 10**12, 3], [0, 3, 1], [0, 1, 1]])
def test_offsets_that_a_graph_computes_lead_to_no_memory_but_the_indices(offsets):
    table, indices, ordered = torch.randn(4, 8), torch.tensor([0, 1, 2]), [min(max(offset, 0), 3) for offset in offsets]
    ordered = [max(ordered[: index + 1]) for index in range(3)]
    for mode in (0, 1, 2):
        found = resolve("aten.embedding_bag.default").function(table, indices, torch.tensor(offsets), False, mode)[0]
        expected = torch.embedding_bag(table, indices, torch.tensor(ordered), False, mode)[0]
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
