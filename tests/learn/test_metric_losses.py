"""Losses of pairs against loops over them, and what is known of them."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from histotl.learn.metric_losses import (
    batch_hard_triplet,
    cauchy_hash,
    cauchy_rounding,
    in_groups,
    pairs,
    supervised_contrast,
)

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
LOSSES: dict[str, Loss] = {
    "contrast": lambda rows, target: supervised_contrast(F.normalize(rows, dim=1), target, 0.2),
    "triplet": lambda rows, target: batch_hard_triplet(F.normalize(rows, dim=1), target, 0.3),
    "hash": lambda rows, target: cauchy_hash(rows, target, 2.0),
    "rounding": lambda rows, target: cauchy_rounding(rows, 2.0),
}
OF_PAIRS = ("contrast", "triplet", "hash")


def sample(n: int = 13, w: int = 5, k: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, w, generator=generator, dtype=torch.float64)
    return rows, torch.randint(0, k, (n,), generator=generator)


def test_contrast_is_the_sum_of_its_paper() -> None:
    rows, target = sample()
    unit = F.normalize(rows, dim=1)
    found = supervised_contrast(unit, target, 0.2)
    for i in range(len(rows)):
        others = [a for a in range(len(rows)) if a != i]
        below = sum(math.exp(float(unit[i] @ unit[a]) / 0.2) for a in others)
        positives = [p for p in others if target[p] == target[i]]
        terms = [-math.log(math.exp(float(unit[i] @ unit[p]) / 0.2) / below) for p in positives]
        assert float(found[i]) == pytest.approx(sum(terms) / len(terms), rel=1e-12)


def test_triplet_looks_at_the_hardest_pair() -> None:
    rows, target = sample(seed=1)
    unit = F.normalize(rows, dim=1)
    found = batch_hard_triplet(unit, target, 0.3)
    for i in range(len(rows)):
        far = [float((unit[i] - unit[a]).norm()) for a in range(len(rows)) if a != i and target[a] == target[i]]
        near = [float((unit[i] - unit[a]).norm()) for a in range(len(rows)) if target[a] != target[i]]
        assert float(found[i]) == pytest.approx(max(0.0, 0.3 + max(far) - min(near)), abs=1e-9)


def test_cauchy_loss_weighs_both_kinds_of_pairs_alike() -> None:
    rows, target = sample(seed=2)
    costs: dict[bool, list[float]] = {True: [], False: []}
    for i in range(len(rows)):
        for j in range(len(rows)):
            if i == j:
                continue
            cosine = float(rows[i] @ rows[j] / rows[i].norm() / rows[j].norm())
            d, same = 5 / 2 * (1 - cosine), bool(target[i] == target[j])
            likely = 2.0 / (2.0 + d)
            costs[same].append(-math.log(likely if same else 1 - likely))
    wanted = sum(sum(each) / len(each) for each in costs.values())
    assert float(cauchy_hash(rows, target, 2.0).mean()) == pytest.approx(wanted, rel=1e-9)


def test_codes_of_one_and_minus_one_lose_nothing_and_have_hamming_distances() -> None:
    rows = torch.sign(sample(w=8, seed=3)[0])
    assert cauchy_rounding(rows, 2.0).abs().max() < 1e-12
    assert cauchy_rounding(rows * torch.linspace(0.1, 1, 8), 2.0).min() > 0.01
    two, alike = rows[:2], torch.zeros(2, dtype=torch.int64)
    hamming = float((two[0] != two[1]).sum())
    # Two rows of one class: the mean of the loss is the cost of their pair.
    assert float(cauchy_hash(two, alike, 2.0).mean()) == pytest.approx(math.log1p(hamming / 2.0), rel=1e-9)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_right(name: str) -> None:
    rows, target = sample(n=7, seed=4)
    assert torch.autograd.gradcheck(lambda x: LOSSES[name](x, target), rows.requires_grad_())


@pytest.mark.parametrize("name", LOSSES)
def test_the_order_of_rows_does_not_matter(name: str) -> None:
    rows, target = sample()
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(LOSSES[name](rows[order], target[order]), LOSSES[name](rows, target)[order])


@pytest.mark.parametrize("name", OF_PAIRS)
def test_a_missing_label_is_an_absent_row(name: str) -> None:
    rows, target = sample()
    gaps = target.clone()
    gaps[[0, 4, 5]] = -1
    known = gaps >= 0
    found = LOSSES[name](rows, gaps)
    torch.testing.assert_close(found[known], LOSSES[name](rows[known], target[known]))
    assert (found[~known] == 0).all()
    rows.requires_grad_()
    LOSSES[name](rows, gaps).sum().backward()
    assert rows.grad is not None
    assert (rows.grad[~known] == 0).all()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("target", [[0], [1, 1, 1], [0, 1], [-1, -1], [0, 1, 2]])
def test_few_rows_and_few_classes_are_finite(name: str, target: list[int]) -> None:
    rows = torch.randn(len(target), 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    losses = LOSSES[name](rows, torch.tensor(target))
    assert losses.shape == (len(target),)
    losses.sum().backward()
    assert torch.isfinite(losses).all()
    assert rows.grad is not None
    assert torch.isfinite(rows.grad).all()
    if name == "triplet":
        assert (losses == 0).all(), "no row has both a friend and a stranger"


@pytest.mark.parametrize("name", LOSSES)
def test_equal_rows_are_finite(name: str) -> None:
    rows = torch.ones(6, 4, requires_grad=True)
    losses = LOSSES[name](rows, torch.arange(6) % 2)
    losses.sum().backward()
    assert torch.isfinite(losses).all()
    assert rows.grad is not None
    assert torch.isfinite(rows.grad).all()


def test_separated_classes_cost_nothing() -> None:
    unit = torch.eye(3, dtype=torch.float64).repeat_interleave(2, dim=0)
    target = torch.arange(6) // 2
    # Other classes are sqrt(2) away, the own one is not.
    assert (batch_hard_triplet(unit, target, 1.4) == 0).all()
    assert (batch_hard_triplet(unit, target, 1.5) > 0).all()
    # One friend each: it is found with certainty.
    assert supervised_contrast(unit, target, 0.02).max() < 1e-12
    # Of three friends each is found with a third.
    many = torch.eye(2, dtype=torch.float64).repeat_interleave(4, dim=0)
    found = supervised_contrast(many, torch.arange(8) // 4, 0.02)
    torch.testing.assert_close(found, torch.full((8,), math.log(3), dtype=torch.float64))


def test_groups_take_every_other_row() -> None:
    rows, target = sample(n=11)
    whole = in_groups(LOSSES["contrast"], rows, target, 11)
    assert torch.equal(whole, LOSSES["contrast"](rows, target))
    found = in_groups(LOSSES["contrast"], rows, target, 4)
    for i in range(3):
        torch.testing.assert_close(found[i::3], LOSSES["contrast"](rows[i::3], target[i::3]))


def test_no_row_is_its_own_pair() -> None:
    same, other = pairs(torch.tensor([0, 0, 1, -1]))
    assert same.tolist() == [[False, True, False, False], [True, False, False, False], [False] * 4, [False] * 4]
    assert other.tolist() == [[False, False, True, False]] * 2 + [[True, True, False, False], [False] * 4]
