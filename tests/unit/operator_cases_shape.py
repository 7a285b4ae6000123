"""Views, rearrangements, looking up and writing at places: for :mod:`tests.unit.stacked_calls`."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.unit.stacked_calls import Case, case, numbers, order, real, truths

ATEN = torch.ops.aten


def _shapes(x: Tensor) -> tuple[Tensor, ...]:
    views = x.view(6, 4), x.view(-1), x.view((2, 12)), x.reshape(4, -1), x.reshape((24,)), torch.reshape(x, (8, 3))
    flat = x.flatten(), x.flatten(1), torch.flatten(x, 0, 1), x.flatten(start_dim=-2), x.ravel()
    return (
        *views,
        *flat,
        x.unflatten(2, (2, 2)),
        x.unflatten(-1, (2, -1)),
        x.view_as(x.new_zeros(4, 6)),
        x.reshape_as(x.view(24)),
    )


def _rearranged(x: Tensor) -> tuple[Tensor, ...]:
    one = x.permute(2, 0, 1), x.permute((0, -1, 1)), torch.permute(x, (1, 2, 0)), x.transpose(0, 1), x.transpose(-1, -2)
    two = torch.transpose(x, 0, -1), x.swapaxes(0, 2), x.swapdims(1, 2), x.movedim(0, 2), x.movedim((0, 1), (-1, 0)), x.mT
    return (*one, *two, torch.moveaxis(x, 0, -1), x[0].t(), x[0].T, torch.t(x[1]), torch.adjoint(x))


def _ones(x: Tensor) -> tuple[Tensor, ...]:
    one = x.unsqueeze(0), x.unsqueeze(-1), x.unsqueeze(2), torch.unsqueeze(x, -2), x.squeeze(), x.squeeze(1), x.squeeze(-1)
    return (*one, x.squeeze(0), x.squeeze((1, 3)), torch.squeeze(x, dim=1), x[:, None], x[None], x[..., None])


def _grown(x: Tensor) -> tuple[Tensor, ...]:
    one = x.expand(3, 4), x.expand(2, 3, 4), x.expand(2, -1, 4), x.expand((3, 4)), x.expand_as(x.new_zeros(5, 3, 4))
    return (*one, x.repeat(2, 3), x.repeat(2, 1, 3), torch.tile(x, (2,)), x.tile((2, 2)), x.broadcast_to((3, 4)))


def _pieces(x: Tensor) -> tuple[Tensor, ...]:
    one = *x.split(2), *x.split([1, 3], dim=1), *torch.split(x, 3, dim=-1), *x.chunk(2), *x.chunk(3, dim=-1), *x.unbind(), *x
    two = *x.unbind(-1), *torch.chunk(x, 2, 1), x.select(0, 1), x.select(-1, 0), x.narrow(1, 1, 2), torch.narrow(x, 0, 0, 2)
    return (*one, *two, *torch.tensor_split(x, 2, dim=1), *x.hsplit(2), x.diagonal(), torch.diag_embed(x), x.unfold(1, 2, 1))


def _plain_places(x: Tensor) -> tuple[Tensor, ...]:
    ints = x[0], x[-1], x[0, 1], x[0, 1, 2], x[..., 0], x[:, -1], x[:, 0, :], x[0, ..., 1]
    slices = x[1:], x[:-1], x[::2], x[:, 1:3], x[..., 1:], x[:, :, ::3], x[1:1], x[-2:, None, 1], x[:]
    return (*ints, *slices, x[[0, 2]], x[:, [1, 0]], x[[0, 2], [1, 1]], x[..., [0, 3]], x[(0, 1)], x[None, 0], x[True])


def _numbered_places(x: Tensor, rows: Tensor) -> tuple[Tensor, ...]:
    one = x[rows], x[:, rows], x[..., rows], x[rows, rows], x[rows, :, rows], x[0, rows], x[rows, 0], x[rows, 1:, 0]
    two = x[rows, None], x[:, rows, rows], x[rows.unsqueeze(1), rows], x[rows.view(2, 2)], x[torch.arange(3), rows[:3]]
    return (*one, *two, x[:, 0, rows], x[0, :, rows])


def _masked_sums(x: Tensor, kept: Tensor) -> Tensor:
    kept = kept.clone()
    kept[:] = False
    kept[..., 1] = True
    return x[kept]


def _written(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    out = x * 1
    out[0] = y
    out[:, 1] = 2.0
    out[..., -1] += 1
    out[1:, :, 0] = y[1:3]
    out[2, 3, 1] = 5
    out[:, None, 2] = 0.5
    out[[0, 2], [1, 3]] = y[0, 0]
    out[[1, 2]] *= 2
    return out * 1, x * 1


def _written_at(x: Tensor, y: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    out, view = x * 1, y * 1
    out[rows] = y
    view[:, 1] = out[rows, 0]
    return out * 1, view


def _written_where(x: Tensor, kept: Tensor) -> Tensor:
    out = x * 1
    out[kept] = 0.0
    out[kept, ...] = -1.0
    return out * 1


def _view_written(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    base = x * 1
    view = base.view(3, 8)
    view[0] = 1.5
    base[1] = y
    view[:, :2] += 0.25
    return base * 1, view * 1


def _piece_of_chunk(x: Tensor) -> tuple[Tensor, ...]:
    gate, value = x.chunk(2, dim=-1)
    return gate.sigmoid() * value, torch.cat((value, gate), -1)


def _joined(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    one = torch.cat((x, y)), torch.cat([x, y], dim=-1), torch.concat((x, y), 1), torch.stack((x, y)), torch.stack([x, y], -1)
    two = torch.cat((x, y, x), dim=1), torch.stack((y, x), dim=1), torch.vstack((x, y)), torch.hstack((x, y))
    return (
        *one,
        *two,
        torch.cat((x, x.new_zeros(0)), 0),
        torch.concatenate((y, x), dim=-2),
        torch.cat([x]),
        torch.dstack((x, y)),
    )


def _gathered(x: Tensor, places: Tensor) -> tuple[Tensor, ...]:
    one = x.gather(1, places), torch.gather(x, -1, places), torch.take_along_dim(x, places, dim=1)
    two = torch.zeros_like(x).scatter(1, places, x), x.scatter(1, places, 2.0), torch.zeros_like(x).scatter_add(0, places, x)
    written = torch.zeros_like(x)
    written.scatter_(1, places, x)
    added = x * 1
    added.scatter_add_(1, places, x)
    return (*one, *two, written * 1, added, x.scatter(-1, places, 1.0))


def _one_hot(x: Tensor, classes: Tensor) -> Tensor:
    hot = torch.zeros(4, 5, dtype=torch.float64).scatter(1, classes.unsqueeze(1), 1.0)
    return hot @ x + torch.nn.functional.one_hot(classes, 5).double() @ x


def _selected(x: Tensor, rows: Tensor) -> tuple[Tensor, ...]:
    added = x.index_add(0, rows, x) if rows.numel() == x.shape[0] else x
    return x.index_select(0, rows), torch.index_select(x, -1, rows), added, x.index_fill(0, rows, 2.0)


def _sized(x: Tensor) -> tuple[Tensor, ...]:
    B, T, C = x.size()
    positions = torch.arange(T).unsqueeze(0)
    return x.view(B * T, C), x.reshape(-1, x.size(-1)), (x + positions.unsqueeze(-1)).view(B, -1), x.new_zeros(x.shape) + x


CASES: dict[str, Case] = {
    "shapes": case(_shapes, real(2, 3, 4)),
    "rearranged": case(_rearranged, real(2, 3, 4)),
    "ones": case(_ones, real(3, 1, 4, 1)),
    "grown": case(_grown, real(3, 1)),
    "pieces": case(_pieces, real(4, 4)),
    "plain places": case(_plain_places, real(3, 4, 4)),
    "numbered places": case(_numbered_places, real(4, 4, 4), numbers(4, 4)),
    "masked": case(lambda x, m: x[m.logical_or(~m)], real(3, 4), truths(3, 4), is_traced=False),
    "masked of one number": case(_masked_sums, real(3, 4), truths(3, 4), is_traced=False, owned=(1,)),
    "written": case(_written, real(3, 4, 4), real(4, 4), owned=(0,)),
    "written at": case(_written_at, real(4, 3), real(4, 3), order(4), owned=(0, 1)),
    "written where": case(_written_where, real(3, 4), truths(3, 4), owned=(0,), is_traced=False),
    "view written": case(_view_written, real(2, 3, 4), real(3, 4), owned=(0,)),
    "piece of chunk": case(_piece_of_chunk, real(3, 8)),
    "joined": case(_joined, real(3, 3), real(3, 3)),
    "gathered": case(_gathered, real(4, 4), numbers(4, 4, 4), owned=(0,)),
    "one hot": case(_one_hot, real(5, 3), numbers(5, 4)),
    "selected": case(_selected, real(4, 4), order(4)),
    "sized": case(_sized, real(2, 3, 4)),
    "one row": case(lambda x, i: (x[i], x[i, 0], x[:, i], x.select(0, 1)), real(4, 4), numbers(4), is_traced=False),
    "looked up": case(lambda t, i: (t[i], t[i.long(), 0]), real(5, 3), numbers(5, 2, 4)),
    "scalars": case(lambda x: (x.view(1), x.unsqueeze(0), x.reshape(1, 1), x.flatten(), x.squeeze(), x.expand(3)), real()),
    "broadcast": case(lambda x, y: torch.broadcast_tensors(x, y), real(3, 1), real(4)),
    "meshgrid": case(lambda x, y: torch.meshgrid(x, y, indexing="ij"), real(3), real(4)),
    "flip and roll": case(
        lambda x: (
            x.flip(0),
            x.flip((0, -1)),
            torch.flip(x, [1]),
            x.roll(1, 0),
            x.roll((1, 2), (0, 1)),
            x.roll(2),
            torch.roll(x, -1, dims=-1),
        ),
        real(3, 4),
    ),
    "triangles": case(lambda x: (x.tril(), x.triu(1), torch.tril(x, -1)), real(2, 4, 4)),
    "rot90": case(lambda x: torch.rot90(x, 1, (0, 1)), real(3, 4)),
    "repeat_interleave": case(
        lambda x: (x.repeat_interleave(2, 0), x.repeat_interleave(3, dim=-1), x.repeat_interleave(2)), real(3, 4)
    ),
    "shapes of a permutation": case(
        lambda x: (x.permute(1, 0, 2).reshape(3, 8), x.transpose(0, 1).flatten(1), x.mT.reshape(-1)), real(2, 3, 4)
    ),
    "vision patches": case(lambda x: x.view(2, 3, 2, 2, 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(2, 4, 12), real(2, 3, 4, 4)),
    "heads": case(lambda x: x.view(2, 3, 2, 4).transpose(1, 2).transpose(1, 2).contiguous().view(2, 3, 8), real(2, 3, 8)),
    "aten slice": case(
        lambda x: (ATEN.slice.Tensor(x, 1, 0, 2), ATEN.slice.Tensor(x, -1, 1), ATEN.select.int(x, 0, 1)), real(3, 4)
    ),
    "aten index": case(lambda x, i: (ATEN.index.Tensor(x, [None, i]), ATEN.index.Tensor(x, [i])), real(4, 4), numbers(4, 3)),
    "aten index_put": case(lambda x, i, y: ATEN.index_put.default(x, [i], y), real(4, 3), order(4), real(4, 3)),
    "aten view": case(
        lambda x: (ATEN.view.default(x, [12]), ATEN._unsafe_view.default(x, [4, 3]), ATEN.unbind.int(x, 0)[1]), real(3, 4)
    ),
    "aten split": case(lambda x: (*ATEN.split.Tensor(x, 2, 1), *ATEN.split_with_sizes.default(x, [1, 3], 1)), real(3, 4)),
    "pad sequence": case(lambda x, y: torch.nn.utils.rnn.pad_sequence([x, y], batch_first=True), real(3, 4), real(2, 4)),
    "as list": case(lambda x: torch.stack([row * index for index, row in enumerate(x)]), real(3, 4)),
    "view of a dtype": case(lambda x: x.view(torch.int64) if not x.requires_grad else x.detach().view(torch.int64), real(3, 4)),
}
