from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import logistic, wasserstein_distance

from histotl.core.registry import create
from histotl.learn.heads._grades import MIN_GAP
from histotl.learn.heads.ordinal import Ordinal
from histotl.learn.network import Architecture, Network

LOSSES = ("corn", "coral", "cumulative_link", "ce+regression", "emd2")


def ordinal(loss: str) -> Ordinal:
    return Ordinal(loss=loss)  # type: ignore[arg-type]


def test_coral_is_the_published_example() -> None:
    # The example in the documentation of coral-pytorch's coral_loss: 0.6920 for levels 1100, 1000, 1111.
    logits = torch.tensor([[2.1, 1.8, -2.1, -1.8], [1.9, -1.0, -1.5, -1.3], [1.9, 1.8, 1.7, 1.6]])
    rows = ordinal("coral").row_losses(logits, torch.tensor([2, 1, 4]), None)
    assert rows.mean().item() == pytest.approx(0.6920, abs=5e-5)


def test_coral_probabilities_fall_where_biases_are_out_of_order() -> None:
    p = ordinal("coral").probabilities(torch.logit(torch.tensor([[0.9, 0.4, 0.6, 0.1]], dtype=torch.float64)))
    np.testing.assert_allclose(p[0], [0.1, 0.5, 0.0, 0.3, 0.1], atol=1e-12)


def test_cumulative_link_is_proportional_odds_by_the_logistic_distribution() -> None:
    rng = np.random.default_rng(0)
    score, cuts = rng.normal(size=30), np.array([-1.0, 0.2, 1.7])
    gaps = np.log(np.expm1(np.diff(cuts) - MIN_GAP))
    outputs = torch.tensor(np.column_stack([score - cuts[0], np.tile(gaps, (30, 1))]))
    below = logistic.cdf(cuts[None] - score[:, None])
    expected = np.diff(np.column_stack([np.zeros(30), below, np.ones(30)]), axis=1)
    head = ordinal("cumulative_link")
    np.testing.assert_allclose(head.probabilities(outputs), expected, atol=1e-12)
    target = torch.arange(30) % 4
    rows = head.row_losses(outputs, target, None)
    np.testing.assert_allclose(rows, -np.log(expected[np.arange(30), target]), rtol=1e-9)


def test_cumulative_link_keeps_its_digits_in_the_tails() -> None:
    outputs = torch.tensor([[80.0, 0.0]], dtype=torch.float64)
    # P(lowest) = sigmoid(-80), of which 1 - sigmoid(80) has no digit left.
    assert ordinal("cumulative_link").row_losses(outputs, torch.tensor([0]), None).item() == pytest.approx(80.0)


def test_emd2_is_the_squared_difference_of_cumulative_distributions() -> None:
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(20, 5, generator=generator, dtype=torch.float64)
    target = torch.randint(0, 5, (20,), generator=generator)
    rows, p = ordinal("emd2").row_losses(outputs, target, None), outputs.softmax(1).numpy()
    grades = np.arange(5)
    for row, mass, y in zip(rows, p, target.tolist(), strict=True):
        differences = np.cumsum(mass) - (grades >= y)
        assert row.item() == pytest.approx(float((differences**2).sum()))
        # Without the square it is the earth mover's distance itself.
        distance = wasserstein_distance(grades, grades, mass, np.eye(5)[y])
        assert np.abs(differences).sum() == pytest.approx(distance)


def test_class_and_value_is_the_sum_of_both_losses() -> None:
    outputs = torch.tensor([[0.0, 0.0, 0.0, 2.5]], dtype=torch.float64)
    head = create("head", "ordinal(loss='ce+regression', value_weight=0.5)")
    assert isinstance(head, Ordinal)
    assert head.row_losses(outputs, torch.tensor([1]), None).item() == pytest.approx(np.log(3) + 0.5 * 1.5**2)
    # Its class is the most probable one, that of the others the median.
    p = np.array([[0.4, 0.25, 0.35]])
    assert head.decide(p).tolist() == [0]
    assert ordinal("corn").decide(p).tolist() == [1]


@pytest.mark.parametrize("loss", LOSSES)
def test_class_weights_scale_rows(loss: str) -> None:
    head = ordinal(loss)
    outputs = torch.randn(30, head.n_outputs(4), generator=torch.Generator().manual_seed(1))
    target, weight = torch.arange(30) % 4, torch.arange(1.0, 5.0)
    torch.testing.assert_close(
        head.row_losses(outputs, target, weight), head.row_losses(outputs, target, None) * weight[target]
    )


@pytest.mark.parametrize("loss", ["coral", "cumulative_link"])
def test_one_score_orders_all_rows(loss: str) -> None:
    head = ordinal(loss)
    shape = Architecture(
        in_dim=6,
        aggregator="",
        hidden=0,
        dropout=0.0,
        outputs=(("g", 3), ("other", 1)),
        heads=(("g", f"ordinal(loss='{loss}')"),),
    )
    network = Network(shape, seed=1).eval()
    with torch.no_grad():
        network.heads[0].bias.copy_(torch.tensor([1.0, 0.0, -1.0]))
        outputs = network.answer(torch.randn(50, 6, generator=torch.Generator().manual_seed(0)) * 30)["g"]
    expected = head.probabilities(outputs.double()) @ torch.arange(4.0, dtype=torch.float64)
    assert (expected[torch.argsort(outputs[:, 0])].diff() >= 0).all()
    # First weights depend on the seed and the task's own name alone.
    alone = Network(Architecture(**{**vars(shape), "outputs": (("g", 3),)}), seed=1)
    assert torch.equal(alone.heads[0].weight, network.heads[0].weight)
