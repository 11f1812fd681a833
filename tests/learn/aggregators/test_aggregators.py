from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from histotl.core.errors import UsageError
from histotl.core.registry import available, canonical, create
from histotl.learn.aggregators.base import AggregatorModule

SPECS = {name: name for name in available("aggregator")} | {"abmil": "abmil(hidden=8, attention=4)"}


def build(spec: str, dim: int = 6) -> AggregatorModule:
    torch.manual_seed(0)
    return create("aggregator", spec).build(dim, (("a", 1),)).double().eval()  # type: ignore[attr-defined,no-any-return]


def pack(sizes: list[int], dim: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(sum(sizes))
    return torch.randn(sum(sizes), dim, generator=generator).double(), torch.tensor([0, *sizes]).cumsum(0)


@pytest.mark.parametrize("spec", SPECS.values())
@pytest.mark.parametrize("sizes", [[1], [7], [1, 7, 300, 2], [1] * 20])
def test_packed_bags_equal_single_bags(spec: str, sizes: list[int]) -> None:
    module, (x, offsets) = build(spec), pack(sizes)
    packed = module(x, offsets)
    for b, size in enumerate(sizes):
        part = x[offsets[b] : offsets[b + 1]]
        alone = module(part, torch.tensor([0, size]))
        torch.testing.assert_close(packed.bags[b], alone.bags[0], rtol=0, atol=1e-10)
        if packed.weights is not None and alone.weights is not None:
            torch.testing.assert_close(packed.weights[offsets[b] : offsets[b + 1]], alone.weights, rtol=0, atol=1e-10)
            assert alone.weights.sum().item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("spec", SPECS.values())
def test_packed_gradients_equal_a_loop(spec: str) -> None:
    sizes = [3, 1, 12]
    module, (x, offsets) = build(spec), pack(sizes)
    gradients = []
    for bags in (
        [(x, offsets)],
        [(x[a:b], torch.tensor([0, b - a])) for a, b in itertools.pairwise(offsets.tolist())],
    ):
        parameters = list(module.parameters())  # type: ignore[attr-defined]
        leaves = [rows.clone().requires_grad_() for rows, _ in bags]
        total = sum(module(rows, o).bags.square().sum() for rows, (_, o) in zip(leaves, bags, strict=True))
        found = torch.autograd.grad(total, [*leaves, *parameters])  # type: ignore[arg-type]
        gradients.append([torch.cat(found[: len(leaves)]), *found[len(leaves) :]])
    for packed, looped in zip(*gradients, strict=True):
        torch.testing.assert_close(packed, looped, rtol=0, atol=1e-10)


@pytest.mark.parametrize("spec", SPECS.values())
@given(order=st.permutations(range(9)))
@settings(max_examples=20, deadline=None)
def test_order_of_tiles_does_not_matter(spec: str, order: list[int]) -> None:
    module, (x, offsets) = build(spec), pack([9])
    before, after = module(x, offsets), module(x[order], offsets)
    torch.testing.assert_close(before.bags, after.bags, rtol=0, atol=1e-10)
    if before.weights is not None and after.weights is not None:
        torch.testing.assert_close(before.weights[order], after.weights, rtol=0, atol=1e-10)


@pytest.mark.parametrize("spec", SPECS.values())
def test_doubled_tiles_leave_the_bag_as_it_is(spec: str) -> None:
    module, (x, offsets) = build(spec), pack([5])
    twice = module(torch.cat([x, x]), 2 * offsets)
    torch.testing.assert_close(module(x, offsets).bags, twice.bags, rtol=0, atol=1e-10)


def test_abmil_by_hand() -> None:
    module, (x, offsets) = build("abmil(hidden=8, attention=4)"), pack([4])
    h = torch.relu(x @ module.embed[0].weight.T + module.embed[0].bias)  # type: ignore[attr-defined]
    gates = h @ module.gates.weight.T + module.gates.bias  # type: ignore[attr-defined]
    score = (torch.tanh(gates[:, :4]) * torch.sigmoid(gates[:, 4:])) @ module.score.weight[0]  # type: ignore[attr-defined]
    weights = torch.exp(score) / torch.exp(score).sum()
    found = module(x, offsets)
    torch.testing.assert_close(found.weights, weights)
    torch.testing.assert_close(found.bags[0], (weights[:, None] * h).sum(dim=0))


def test_wrong_widths_are_refused_and_specs_round_trip() -> None:
    with pytest.raises(UsageError, match="hidden=0"):
        create("aggregator", "abmil(hidden=0)")
    for spec in SPECS.values():
        component = create("aggregator", spec)
        assert create("aggregator", canonical(component)) == component
