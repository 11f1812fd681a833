"""Laws that hold for every registered aggregator: nothing depends on the pack, on the order of tiles, or on chance."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from histotl.core.errors import StoreError, UsageError
from histotl.core.registry import canonical, create
from histotl.learn.aggregators.base import Aggregated
from histotl.learn.bags import Bags
from histotl.learn.network import Architecture, Network
from histotl.learn.objective import Objective
from histotl.learn.rows import ArrayRows
from histotl.learn.task import Task
from tests.learn.aggregators.specs import NAMES, NEED_COORDS, SPECS, build, pack, small

EXACT = {"rtol": 0.0, "atol": 1e-10}


def same(one: Aggregated, other: Aggregated) -> None:
    torch.testing.assert_close(one.bags, other.bags, **EXACT)
    for name, answer in one.direct.items():
        torch.testing.assert_close(answer, other.direct[name], **EXACT)


def signal(found: Aggregated) -> torch.Tensor:
    """A number that depends on all that an aggregator gives."""
    return found.bags.square().sum() + sum(answer.square().sum() for answer in found.direct.values())


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("sizes", [[1], [7], [1, 7, 300, 2], [1] * 20])
def test_packed_bags_equal_single_bags(spec: str, sizes: list[int]) -> None:
    module, (x, offsets, coords) = build(spec), pack(sizes)
    packed = module(x, offsets, coords)
    for b, (start, stop) in enumerate(itertools.pairwise(offsets.tolist())):
        alone = module(x[start:stop], torch.tensor([0, stop - start]), coords[start:stop])
        torch.testing.assert_close(packed.bags[b], alone.bags[0], **EXACT)
        for name, answer in packed.direct.items():
            torch.testing.assert_close(answer[b], alone.direct[name][0], **EXACT)
        for name, parts in packed.parts.items():
            torch.testing.assert_close(parts[start:stop], alone.parts[name], **EXACT)
            torch.testing.assert_close(parts[start:stop].sum(0) + packed.offset[name], packed.direct[name][b], **EXACT)
        if packed.weights is not None and alone.weights is not None:
            torch.testing.assert_close(packed.weights[start:stop], alone.weights, **EXACT)
            torch.testing.assert_close(alone.weights.sum(0), torch.ones_like(alone.weights[0]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("spec", SPECS)
def test_packed_gradients_equal_a_loop(spec: str) -> None:
    sizes = [3, 1, 12]
    module, (x, offsets, coords) = build(spec), pack(sizes)
    parameters = list(module.parameters())  # type: ignore[attr-defined]
    gradients = []
    for cut in ([(0, sum(sizes), offsets)], [(a, b, torch.tensor([0, b - a])) for a, b in itertools.pairwise(offsets)]):
        leaves = [x[a:b].clone().requires_grad_() for a, b, _ in cut]
        total = sum(signal(module(leaf, o, coords[a:b])) for leaf, (a, b, o) in zip(leaves, cut, strict=True))
        found = torch.autograd.grad(total, [*leaves, *parameters], allow_unused=True)  # type: ignore[arg-type]
        gradients.append([torch.cat(found[: len(leaves)]), *found[len(leaves) :]])
    assert gradients[0][0].abs().sum() > 0
    for packed, looped in zip(*gradients, strict=True):
        assert (packed is None) == (looped is None)
        if packed is not None:
            torch.testing.assert_close(packed, looped, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("spec", SPECS)
@given(order=st.permutations(range(9)))
@settings(max_examples=10, deadline=None)
def test_order_of_tiles_does_not_matter(spec: str, order: list[int]) -> None:
    module, (x, offsets, coords) = build(spec), pack([9])
    before, after = module(x, offsets, coords), module(x[order], offsets, coords[order])
    same(before, after)
    if before.weights is not None and after.weights is not None:
        torch.testing.assert_close(before.weights[order], after.weights, **EXACT)


@pytest.mark.parametrize("spec", SPECS)
def test_place_of_the_slide_does_not_matter_and_two_calls_are_equal(spec: str) -> None:
    module, (x, offsets, coords) = build(spec), pack([5, 40])
    before, moved = module(x, offsets, coords), module(x, offsets, coords + torch.tensor([70_000, 1_300]))
    same(before, moved)
    again = module(x, offsets, coords)
    assert torch.equal(before.bags, again.bags)
    assert all(torch.equal(answer, again.direct[name]) for name, answer in before.direct.items())


@pytest.mark.parametrize("spec", SPECS)
def test_places_on_different_slides_of_a_bag_have_nothing_to_do_with_each_other(spec: str) -> None:
    """Two slides of 30 tiles in one bag, at the same corners; then the second lies elsewhere and comes first."""
    module, (x, _, coords) = build(spec), pack([30, 30])
    offsets, slide = torch.tensor([0, 60]), torch.tensor([[4]] * 30 + [[9]] * 30)
    before = module(x, offsets, torch.cat([coords, slide], dim=1))
    moved = torch.cat([coords[:30], coords[30:] + torch.tensor([443 * 3, 1_300])])
    order = torch.cat([torch.arange(30, 60), torch.arange(30)])
    same(before, module(x[order], offsets, torch.cat([moved, slide], dim=1)[order]))


@pytest.mark.parametrize("name", sorted(NEED_COORDS))
def test_neighbours_are_of_the_same_slide(name: str) -> None:
    """The same tiles are another bag when they lie on one slide."""
    module, (x, _, coords) = build(small(name)), pack([30, 30])
    offsets, slide = torch.tensor([0, 60]), torch.tensor([[4]] * 30 + [[9]] * 30)
    apart, together = (module(x, offsets, places) for places in (torch.cat([coords, slide], dim=1), coords))
    assert (apart.bags - together.bags).abs().max() > 1e-6


@pytest.mark.parametrize("name", sorted(NEED_COORDS))
def test_places_matter_where_they_are_looked_at(name: str) -> None:
    module, (x, offsets, coords) = build(small(name)), pack([40])
    other = module(x, offsets, coords[torch.randperm(40, generator=torch.Generator().manual_seed(1))])
    assert (module(x, offsets, coords).bags - other.bags).abs().max() > 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_bags_without_coordinates(name: str) -> None:
    module, (x, offsets, _) = build(small(name)), pack([5, 4])
    if name in NEED_COORDS:
        with pytest.raises(UsageError, match=f"'{name}' needs the place"):
            module(x, offsets)
    else:
        assert torch.isfinite(module(x, offsets).bags).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_bag_of_50000_tiles(name: str) -> None:
    # An n x n matrix of it would take 10 GB: whatever makes one fails here.
    more = {"heads": 1} if "heads=" in small(name) else {}
    module, (x, offsets, coords) = build(small(name, **more)).float(), pack([50_000, 1])  # type: ignore[attr-defined]
    with torch.inference_mode():
        found = module(x.float(), offsets, coords)
    assert torch.isfinite(found.bags).all()
    assert found.bags.shape[0] == 2
    if found.weights is not None:
        sums = found.weights[:50_000].sum(0)
        torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0, atol=1e-4)


@pytest.mark.parametrize("spec", [small(name) for name in ("mean", "max", "lse", "abmil", "additive", "task_tokens")])
def test_doubled_tiles_leave_the_bag_as_it_is(spec: str) -> None:
    module, (x, offsets, _) = build(spec), pack([5])
    same(module(x, offsets), module(torch.cat([x, x]), 2 * offsets))


def test_an_empty_bag_is_refused() -> None:
    rows = ArrayRows(np.zeros((3, 2), np.float32))
    with pytest.raises(StoreError, match="bag 1 holds no tile"):
        Bags.of(rows, [np.array([0, 1]), np.array([], dtype=np.int64), np.array([2])])


TASKS = (
    Task(name="type", kind="multiclass", classes=("a", "b", "c")),
    Task(name="dysplasia", kind="binary", classes=("no", "yes")),
    Task(name="grade", kind="ordinal", classes=("1", "2", "3", "4")),
    Task(name="share", kind="regression"),
)
LABELS = {
    "type": np.array([0.0, 1, 2, np.nan]),
    "dysplasia": np.array([np.nan, 1.0, 0, 1]),
    "grade": np.array([3.0, np.nan, 1, 0]),
    "share": np.array([0.1, 0.7, 0.4, np.nan]),
}


@pytest.mark.parametrize("spec", SPECS)
def test_a_training_step_of_mixed_tasks_with_missing_labels(spec: str) -> None:
    objective = Objective(TASKS, LABELS)
    shapes = {"in_dim": 6, "aggregator": spec, "hidden": 5, "dropout": 0.5, "outputs": objective.n_outputs()}
    network, (x, offsets, coords) = Network(Architecture(**shapes)), pack([9, 1, 30, 2])  # type: ignore[arg-type]
    torch.manual_seed(0)
    output = network(x.float(), offsets, coords)
    targets = objective.tensor(LABELS)
    losses = objective.losses(output.tasks, targets)
    assert losses.keys() == LABELS.keys()
    extra = network.auxiliary(output, objective.judge(targets))
    total = objective.total(losses) + (0 if extra is None else extra)
    total.backward()
    untrained = {name for name, p in network.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()}
    # Answers given by the aggregator itself leave the network's own trunk and heads without a task.
    assert not {name for name in untrained if name.startswith("aggregator.")}
    assert not untrained or output.pooled is None or output.pooled.direct
    # Nothing labelled in a step: the parts' own losses are zero, not NaN.
    nothing = network.auxiliary(network(x.float(), offsets, coords), objective.judge(torch.full_like(targets, np.nan)))
    assert nothing is None or torch.isfinite(nothing)


@pytest.mark.parametrize("spec", SPECS)
def test_specs_round_trip(spec: str) -> None:
    component = create("aggregator", spec)
    assert create("aggregator", canonical(component)) == component
