"""Sums, sorting and products: for :mod:`tests.unit.stacked_calls`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.unit.stacked_calls import Case, case, inner, numbers, positive, real, truths

ATEN = torch.ops.aten
DIMS = (0, 1, -1, -2, (0, 1), (0, -1), None)
SEVERAL = ("sum", "mean", "amax", "amin", "std", "var", "nansum", "nanmean")
ONE = ("prod", "argmax", "argmin", "cumsum", "cumprod", "softmax", "log_softmax", "logcumsumexp")
PAIRS = ("max", "min", "median", "mode", "sort", "cummax", "cummin", "nanmedian")


def _several(name: str):
    def function(x: Tensor) -> tuple[Tensor, ...]:
        method = getattr(x, name)
        some = [method(dim, keepdim=kept) for dim in DIMS[:-1] for kept in (False, True)]
        return (*some, method(dim=-1), method(), getattr(torch, name)(x, 1), getattr(torch, name)(x, (0, 2), True))

    return function


def _one(name: str):
    return lambda x: (getattr(x, name)(1), getattr(x, name)(dim=-1), getattr(torch, name)(x, 0), getattr(torch, name)(x, -2))


def _pairs(name: str):
    return lambda x: (*getattr(x, name)(1), *getattr(torch, name)(x, dim=-1), getattr(x, name)(dim=0)[0])


def _named(x: Tensor) -> tuple[Tensor, ...]:
    best = x.topk(2)
    return x.max(1).values, x.min(dim=0).indices, x.sort(dim=0).values, best.values, best.indices, torch.linalg.qr(x[0]).R.abs()


def _whole(x: Tensor) -> tuple[Tensor, ...]:
    ends = x.max(), x.min(), x.argmax(), x.argmin(), x.median(), x.prod(), x.all(), x.any(), torch.max(x), torch.argmax(x)
    return (*ends, x.sum(), x.mean(), x.std(), x.var(), x.norm(), x.amax(), x.count_nonzero(), x.logsumexp((0, 1, 2)))


def _norms(x: Tensor) -> tuple[Tensor, ...]:
    one = (
        x.norm(dim=-1),
        x.norm(p=1, dim=1),
        x.norm(2, 0, True),
        torch.linalg.vector_norm(x, dim=1),
        torch.linalg.norm(x, dim=-1),
    )
    two = torch.linalg.vector_norm(x), torch.linalg.vector_norm(x, 1, dim=(0, 1), keepdim=True), torch.norm(x)
    return (*one, *two, F.normalize(x, dim=-1), F.normalize(x, p=1.0, dim=0), F.cosine_similarity(x, x + 1, dim=1))


def _orders(x: Tensor) -> tuple[Tensor, ...]:
    one = *x.topk(2), *x.topk(2, dim=0), *torch.topk(x, 1, largest=False), x.argsort(), x.argsort(dim=0, descending=True)
    return (
        *one,
        *x.kthvalue(2),
        *torch.sort(x, dim=1, descending=True),
        *x.sort(stable=True),
        torch.msort(x),
        *x.aminmax(dim=0),
    )


def _spreads(x: Tensor) -> tuple[Tensor, ...]:
    one = (
        x.std(-1, unbiased=False),
        x.var(dim=0, correction=0),
        x.var(1, False),
        *torch.std_mean(x, 1),
        *torch.var_mean(x, (0, 1)),
    )
    return (*one, torch.std(x, dim=-1, keepdim=True), x.var(unbiased=False), *torch.var_mean(x, dim=1, correction=0))


def _soft(x: Tensor) -> tuple[Tensor, ...]:
    one = (
        F.softmax(x, -1),
        F.softmax(x, dim=0),
        F.log_softmax(x, dim=1),
        torch.softmax(x, -1, dtype=torch.float64),
        F.softmin(x, 0),
    )
    return (*one, x.logsumexp(-1), torch.logsumexp(x, (0, 1), keepdim=True), F.glu(x), F.glu(x, 0), nn_softmax2d(x))


def nn_softmax2d(x: Tensor) -> Tensor:
    return torch.nn.Softmax2d()(x)


def _truth(x: Tensor) -> tuple[Tensor, ...]:
    return x.all(0), x.any(-1), x.all(dim=1, keepdim=True), torch.all(x), torch.any(x, 0), x.sum(), x.sum(0), x.count_nonzero(1)


def _addmms(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, ...]:
    return torch.addmm(a, b, c), torch.addmm(a, b, c, beta=0.5, alpha=2.0), a.addmm(b, c), torch.addmv(a[:, 0], b, c[:, 0])


def _einsum(text: str):
    return lambda *operands: torch.einsum(text, *operands)


SHAPES = {
    "1-1": ((4,), (4,)), "2-1": ((3, 4), (4,)), "1-2": ((4,), (4, 3)), "2-2": ((2, 4), (4, 3)), "3-1": ((2, 3, 4), (4,)),
    "1-3": ((4,), (2, 4, 3)), "3-2": ((2, 3, 4), (4, 5)), "2-3": ((3, 4), (2, 4, 5)), "3-3": ((2, 3, 4), (2, 4, 5)),
    "4-1": ((2, 2, 3, 4), (4,)), "1-4": ((4,), (2, 2, 4, 3)), "4-2": ((2, 2, 3, 4), (4, 5)), "2-4": ((3, 4), (2, 2, 4, 5)),
    "4-3": ((2, 2, 3, 4), (2, 4, 5)), "3-4": ((2, 3, 4), (2, 2, 4, 5)), "4-4": ((2, 2, 3, 4), (2, 1, 4, 5)),
}  # fmt: skip
EINSUMS = {
    "ij,jk->ik": ((2, 3), (3, 4)), "bij,bjk->bik": ((2, 3, 4), (2, 4, 5)), "ij,jk": ((2, 3), (3, 4)), "i,i->": ((3,), (3,)),
    "...ij,jk->...ik": ((2, 3, 4), (4, 5)), "bhid,bhjd->bhij": ((2, 2, 3, 4), (2, 2, 5, 4)), "ii": ((3, 3),),
    "ij->ji": ((2, 3),),
    "bi, ij, bj -> b": ((2, 3), (3, 4), (2, 4)), "i,j->ij": ((2,), (3,)), "...i,...i->...": ((2, 3), (2, 3)),
    "nchw,kc->nkhw": ((2, 3, 2, 2), (4, 3)),
}  # fmt: skip

CASES: dict[str, Case] = (
    {name: case(_several(name), real(2, 3, 4)) for name in SEVERAL}
    | {name: case(_one(name), real(2, 3, 4)) for name in ONE}
    | {name: case(_pairs(name), real(2, 3, 4)) for name in PAIRS}
    | {f"matmul {name}": case(torch.matmul, *(real(*shape) for shape in shapes)) for name, shapes in SHAPES.items()}
    | {f"einsum {text}": case(_einsum(text), *(real(*shape) for shape in shapes)) for text, shapes in EINSUMS.items()}
    | {
        "named results": case(_named, real(2, 3, 4)),
        "whole": case(_whole, real(2, 3, 4)),
        "reductions of a number": case(
            lambda x: (x.sum(), x.mean(), x.max(), x.softmax(0), x.cumsum(0), x.sort()[0], x.all(), x.sum(0), x.argmax()),
            real(),
        ),
        "vector norms": case(_norms, real(2, 3, 4)),
        "orders": case(_orders, real(3, 4)),
        "spreads": case(_spreads, real(2, 3, 4)),
        "soft": case(_soft, real(2, 4, 2, 2)),
        "truth": case(_truth, truths(3, 4)),
        "sum of numbers": case(
            lambda x: (x.sum(), x.sum(0), x.float().mean(1), x.max(1)[1], x.sum(0, dtype=torch.float32)), numbers(9, 3, 4)
        ),
        "max of two": case(lambda x, y: (torch.max(x, y), torch.min(x, y), x.max(y)), real(3, 4), real(4)),
        "addmm": case(_addmms, real(2, 3), real(2, 4), real(4, 3)),
        "addmm vector": case(torch.addmm, real(3), real(2, 4), real(4, 3)),
        "baddbmm": case(torch.baddbmm, real(2, 3, 5), real(2, 3, 4), real(2, 4, 5)),
        "addbmm": case(torch.addbmm, real(3, 5), real(2, 3, 4), real(2, 4, 5)),
        "mm": case(lambda a, b: (torch.mm(a, b), a.mm(b), a @ b, a.matmul(b)), real(2, 3), real(3, 4)),
        "bmm": case(lambda a, b: (torch.bmm(a, b), a.bmm(b), a @ b), real(2, 3, 4), real(2, 4, 3)),
        "mv": case(lambda a, b: (a.mv(b), torch.mv(a, b)), real(2, 3), real(3)),
        "dot": case(lambda a, b: (a.dot(b), torch.inner(a, b), torch.outer(a, b), torch.vdot(a, b)), real(3), real(3)),
        "inner": case(torch.inner, real(2, 3), real(4, 3)),
        "tensordot": case(lambda a, b: torch.tensordot(a, b, dims=([1], [0])), real(2, 3), real(3, 4)),
        "bilinear": case(F.bilinear, real(5, 3), real(5, 4), real(2, 3, 4), real(2)),
        "cdist": case(torch.cdist, real(5, 3), real(4, 3)),
        "linear 1": case(F.linear, real(4), real(3, 4), real(3)),
        "linear 2": case(F.linear, real(2, 4), real(3, 4), real(3)),
        "linear 3": case(F.linear, real(2, 5, 4), real(3, 4), real(3)),
        "linear 4": case(F.linear, real(2, 2, 5, 4), real(3, 4)),
        "linear of a permutation": case(lambda x, w: F.linear(x.transpose(1, 2), w), real(2, 4, 5), real(3, 4)),
        "aten linear": case(ATEN.linear.default, real(2, 4), real(3, 4), real(3)),
        "aten sum": case(
            lambda x: (ATEN.sum.default(x), ATEN.sum.dim_IntList(x, [1], True), ATEN.mean.dim(x, [-1]), ATEN.mean.default(x)),
            real(3, 4),
        ),
        "aten softmax": case(
            lambda x: (ATEN._softmax.default(x, -1, False), ATEN.softmax.int(x, 1), ATEN._log_softmax.default(x, 0, False)),
            real(3, 4),
        ),
        "aten max": case(
            lambda x: (ATEN.max.default(x), *ATEN.max.dim(x, 1), ATEN.amax.default(x, [-1]), ATEN.argmax.default(x)), real(3, 4)
        ),
        "aten addmm": case(ATEN.addmm.default, real(3), real(2, 4), real(4, 3)),
        "inverse": case(lambda x: torch.linalg.inv(x @ x.mT + 4 * torch.eye(3, dtype=torch.float64)), real(3, 3)),
        "multi_dot": case(lambda a, b, c: torch.linalg.multi_dot((a, b, c)), real(2, 3), real(3, 4), real(4, 2)),
        "kl by hand": case(lambda a, b: (b * (b.log() - a.log_softmax(-1))).sum(-1).mean(), real(3, 4), positive(3, 4)),
        "binary entropy by hand": case(lambda p, t: -(t * p.log() + (1 - t) * (1 - p).log()).mean(), inner(3, 4), inner(3, 4)),
    }
)
