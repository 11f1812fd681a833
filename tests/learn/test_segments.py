from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from histotl.learn import segments

SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=6)

Op = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

# Operation, and the same on one bag.
OPS: dict[str, tuple[Op, Callable[[torch.Tensor], torch.Tensor]]] = {
    "sum": (segments.segment_sum, lambda bag: bag.sum(0)),
    "mean": (segments.segment_mean, lambda bag: bag.mean(0)),
    "max": (segments.segment_max, lambda bag: bag.amax(0)),
    "lse": (
        lambda x, offsets: segments.segment_lse(x, offsets, 3.0),
        lambda bag: ((3 * bag).exp().mean(0)).log() / 3,
    ),
    "topk": (
        lambda x, offsets: segments.segment_topk_mean(x, offsets, 3),
        lambda bag: bag.sort(dim=0, descending=True).values[:3].mean(0),
    ),
    "quantile": (
        lambda x, offsets: segments.segment_quantile(x, offsets, (0.0, 0.3, 1.0)),
        lambda bag: torch.quantile(bag, torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64), dim=0),
    ),
}


def pack(sizes: list[int], width: int = 3) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    x = torch.randn(sum(sizes), width, generator=torch.Generator().manual_seed(sum(sizes))).double()
    return x, torch.tensor([0, *sizes]).cumsum(0), list(torch.split(x, sizes))


@pytest.mark.parametrize("name", OPS)
@given(sizes=SIZES)
@settings(max_examples=15, deadline=None)
def test_packed_equals_bag_by_bag_with_gradients(name: str, sizes: list[int]) -> None:
    packed, single = OPS[name]
    x, offsets, _ = pack(sizes)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    found = packed(ours, offsets)
    wanted = torch.stack([single(bag) for bag in torch.split(theirs, sizes)])
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    (slope,) = torch.autograd.grad(found.square().sum(), ours)
    (wanted_slope,) = torch.autograd.grad(wanted.square().sum(), theirs)
    torch.testing.assert_close(slope, wanted_slope, rtol=0, atol=1e-11)


@pytest.mark.parametrize("rows", [0, 1, 4])
@given(sizes=SIZES)
@settings(max_examples=15, deadline=None)
def test_softmax_and_weighted_sum(rows: int, sizes: list[int]) -> None:
    x, offsets, bags = pack(sizes)
    shape = (len(x), rows) if rows else (len(x),)
    scores = (50 * torch.randn(shape, generator=torch.Generator().manual_seed(1))).double()
    weights = segments.segment_softmax(scores, offsets)
    parts = [part.softmax(0) for part in torch.split(scores, sizes)]
    torch.testing.assert_close(weights, torch.cat(parts), rtol=0, atol=1e-12)
    sums = [part.mT @ bag if rows else part @ bag for part, bag in zip(parts, bags, strict=True)]
    torch.testing.assert_close(
        segments.segment_weighted_sum(x, weights, offsets), torch.stack(sums), rtol=0, atol=1e-12
    )


def test_gradients_of_softmax_and_weighted_sum() -> None:
    x, offsets, _ = pack([1, 4, 2])
    scores = torch.randn(7, 2).double().requires_grad_()
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: segments.segment_softmax(s, offsets), (scores,))
    assert torch.autograd.gradcheck(lambda a, w: segments.segment_weighted_sum(a, w, offsets), (x, scores))


def test_tiles_need_no_gradient() -> None:
    x, offsets, _ = pack([1, 4, 2])
    weights = torch.rand(7).double().requires_grad_()
    segments.segment_weighted_sum(x, weights, offsets).sum().backward()
    torch.testing.assert_close(weights.grad, x.sum(1))


@given(sizes=SIZES)
@settings(max_examples=15, deadline=None)
def test_ranks_and_owners(sizes: list[int]) -> None:
    x, offsets, bags = pack(sizes, 1)
    ranks = [(-bag[:, 0]).argsort().argsort() for bag in bags]
    assert torch.equal(segments.segment_ranks(x[:, 0], offsets), torch.cat(ranks))
    assert segments.owners(offsets).tolist() == [b for b, size in enumerate(sizes) for _ in range(size)]


def test_the_largest_of_wide_rows_is_the_same_bag_by_bag(monkeypatch: pytest.MonkeyPatch) -> None:
    x, offsets, _ = pack([30, 1, 20], 9)
    x = x.round()  # many equal values
    bag_by_bag = segments.segment_argmax(x, offsets)
    monkeypatch.setattr(segments, "NARROW", 9)
    assert torch.equal(bag_by_bag, segments.segment_argmax(x, offsets))


def test_the_first_of_equal_values_is_the_largest() -> None:
    x = torch.tensor([[1.0, 2.0], [1.0, 2.0], [3.0, 0.0], [3.0, 0.0]])
    assert segments.segment_argmax(x, torch.tensor([0, 2, 4])).tolist() == [[0, 0], [2, 2]]
    assert segments.segment_ranks(x[:, 0], torch.tensor([0, 2, 4])).tolist() == [0, 1, 0, 1]


def test_quantiles_of_more_numbers_than_torch_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    x, offsets, _ = pack([9, 4], 7)
    whole = segments.segment_quantile(x, offsets, (0.25, 0.5))
    monkeypatch.setattr(segments, "QUANTILE_CELLS", 20)
    assert torch.equal(segments.segment_quantile(x, offsets, (0.25, 0.5)), whole)
