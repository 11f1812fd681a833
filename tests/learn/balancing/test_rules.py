from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from histotl.core.errors import UsageError
from histotl.core.registry import available, create
from histotl.learn.balancing.base import Setting
from tests.learn.small import small

RULES = available("balancing")
PAIR = Setting(priors={"a": 2.0, "b": 0.5}, epoch=2)


def start(spec: str, setting: Setting = PAIR) -> object:
    return create("balancing", spec).start(setting)  # type: ignore[attr-defined]


def losses(**values: float) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value, requires_grad=True) for name, value in values.items()}


def weights(rule: object, **values: float) -> dict[str, float]:
    """What the total weighs each loss with; the step is finished with the same losses."""
    given = losses(**values)
    rule.total(given).backward()  # type: ignore[attr-defined]
    rule.after_step(lambda: {name: loss.detach() for name, loss in given.items()})  # type: ignore[attr-defined]
    return {name: loss.grad.item() for name, loss in given.items() if loss.grad is not None}


def test_equal_is_the_plain_sum_of_comparable_losses() -> None:
    assert weights(start("equal"), a=3.0, b=0.1) == {"a": 1.0, "b": 1.0}


def test_static_weighs_plain_losses_or_comparable_ones() -> None:
    assert weights(start("static"), a=3.0, b=0.1) == {"a": 2.0, "b": 0.5}
    assert weights(start("static(weights=(1.0, 4.0))"), a=3.0, b=0.1) == {"a": 2.0, "b": 2.0}
    assert weights(start("static(weights=(1.0, 4.0), normalised=True)"), b=0.1) == {"b": 4.0}
    with pytest.raises(UsageError, match=r"3 static weights for 2 tasks \(a, b\)"):
        start("static(weights=(1.0, 2.0, 3.0))")


def test_uncertainty_learns_the_level_of_each_loss() -> None:
    rule = start("uncertainty(rate=0.05)")
    assert weights(rule, a=4.0, b=0.25) == {"a": 0.5, "b": 0.5}
    for _ in range(300):
        found = weights(rule, a=4.0, b=0.25)
    # At its optimum s = log(loss), and the weight is 1 / (2 loss).
    assert found == pytest.approx({"a": 1 / 8, "b": 2.0}, rel=0.02)
    before = rule.levels["b"].item()  # type: ignore[attr-defined]
    weights(rule, a=9.0)
    assert rule.levels["b"].item() == before, "a task without labels has learnt"  # type: ignore[attr-defined]


def test_dwa_follows_the_published_ratio() -> None:
    rule = start("dwa(temperature=2.0)")
    for value in (4.0, 2.0, 2.0, 1.0):  # two epochs of two steps: means 3.0 and 1.5 against 1.0 and 1.0
        assert weights(rule, a=value, b=1.0) == pytest.approx({"a": 1.0, "b": 1.0})
    odds = np.exp(np.array([0.5, 1.0]) / 2)
    expected = 2 * odds / odds.sum()
    assert weights(rule, a=1.0, b=1.0) == pytest.approx({"a": expected[0], "b": expected[1]}, rel=1e-5)
    assert weights(rule, b=1.0) == pytest.approx({"b": 1.0})


def test_dwa_knows_nothing_of_a_task_that_was_absent_for_an_epoch() -> None:
    rule = start("dwa")
    for given in ({"a": 4.0, "b": 1.0}, {"a": 4.0, "b": 1.0}, {"a": 1.0}, {"a": 1.0}):
        weights(rule, **given)
    assert rule.ratios == {"a": 0.25, "b": 1.0}  # type: ignore[attr-defined]


def test_log_sum_knows_no_scale_and_refuses_negative_losses() -> None:
    assert weights(start("log_sum"), a=4.0, b=0.5) == pytest.approx({"a": 0.25, "b": 2.0})
    assert math.isfinite(weights(start("log_sum"), a=0.0, b=0.5)["a"])
    for name in ("log_sum", "famo"):
        with pytest.raises(UsageError, match=r"task 'b' has loss -0\.5"):
            start(name).total(losses(a=1.0, b=-0.5))  # type: ignore[attr-defined]


def test_random_weights_sum_to_the_tasks_and_come_from_the_seed() -> None:
    first, second, other = (start("rlw", Setting(priors=PAIR.priors, seed=seed)) for seed in (1, 1, 2))
    drawn = [[weights(rule, a=1.0, b=1.0) for _ in range(4)] for rule in (first, second, other)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert all(sum(step.values()) == pytest.approx(2.0) for step in drawn[0])
    assert drawn[0][0] != drawn[0][1]
    # A step without labels of a task does not shift the later ones.
    again = start("rlw", Setting(priors=PAIR.priors, seed=1))
    assert weights(again, b=1.0) == pytest.approx({"b": 1.0})
    assert weights(again, a=1.0, b=1.0) == drawn[0][1]


def test_famo_weighs_by_inverse_losses_and_lowers_what_falls_fast() -> None:
    rule = start("famo")
    found = weights(rule, a=4.0, b=0.5)
    assert found == pytest.approx({"a": 2 / 9, "b": 16 / 9}, rel=1e-4)  # sum T, ratio of 1/loss
    for _ in range(30):
        given = losses(a=1.0, b=1.0)
        rule.total(given)  # type: ignore[attr-defined]
        rule.after_step(lambda: {"a": torch.tensor(0.5), "b": torch.tensor(0.99)})  # type: ignore[attr-defined]
    found = weights(rule, a=1.0, b=1.0)
    assert found["a"] < 0.8 < 1.2 < found["b"]
    logit = rule.logits["b"].item()  # type: ignore[attr-defined]
    weights(rule, a=1.0)
    assert rule.logits["b"].item() == logit  # type: ignore[attr-defined]


def gradnorm(steps: int, **values: float) -> np.ndarray:
    rule = start("gradnorm")
    for step in range(steps):
        found = rule.weights(np.diag([16.0, 1.0]), {"a": 1.0, "b": 1.0} if not step else values)  # type: ignore[attr-defined]
    return np.asarray(found)


def test_gradnorm_equalises_lengths_and_favours_what_lags() -> None:
    np.testing.assert_array_equal(gradnorm(1), [1, 1])
    even = gradnorm(400, a=0.5, b=0.5)
    assert even.sum() == pytest.approx(2)
    assert 4 * even[0] == pytest.approx(even[1], rel=0.1)  # lengths 4 and 1
    lagging = gradnorm(400, a=0.9, b=0.1)
    assert 4 * lagging[0] > 3 * lagging[1]


def test_gradnorm_of_a_step_without_a_task_leaves_its_weight_in_proportion() -> None:
    rule = start("gradnorm", Setting(priors={"a": 1.0, "b": 1.0, "c": 1.0}))
    gramian = np.diag([16.0, 1.0])
    for _ in range(20):
        np.testing.assert_allclose(rule.weights(gramian, {"a": 1.0, "b": 1.0}).sum(), 2)  # type: ignore[attr-defined]
    assert sum(rule.learnt.values()) == pytest.approx(3)  # type: ignore[attr-defined]
    assert rule.learnt["a"] < rule.learnt["c"] < rule.learnt["b"]  # type: ignore[attr-defined]


def test_mgda_with_unit_gradients_or_losses() -> None:
    gramian = np.diag([16.0, 1.0])
    plain, unit, by_loss = (start(f"mgda(normalise={how!r})") for how in ("none", "l2", "loss"))
    np.testing.assert_allclose(plain.weights(gramian, {"a": 1.0, "b": 1.0}), 2 * np.array([1, 16]) / 17, rtol=1e-6)  # type: ignore[attr-defined]
    np.testing.assert_allclose(unit.weights(gramian, {"a": 1.0, "b": 1.0}), 2 * np.array([1, 4]) / 5, rtol=1e-6)  # type: ignore[attr-defined]
    np.testing.assert_allclose(by_loss.weights(gramian, {"a": 4.0, "b": 1.0}), 2 * np.array([1, 4]) / 5, rtol=1e-6)  # type: ignore[attr-defined]


def test_pcgrad_takes_its_orders_from_the_seed() -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((4, 3))
    runs = [start("pcgrad", Setting(priors=PAIR.priors, seed=seed)) for seed in (1, 1, 2)]
    found = [np.stack([run.weights(rows @ rows.T, dict.fromkeys("abcd", 1.0)) for _ in range(5)]) for run in runs]  # type: ignore[attr-defined]
    np.testing.assert_array_equal(found[0], found[1])
    assert not np.allclose(found[0], found[2])


@pytest.mark.parametrize("where", ["features", "parameters"])
@pytest.mark.parametrize("name", RULES)
def test_every_rule_trains_every_task(name: str, where: str) -> None:
    run = small(balancing=name, gradients=where, dropout=0.1)
    before = run.batch(np.arange(96)).again()
    run.train(150)
    run.network.eval()
    after = run.batch(np.arange(96)).again()
    for task, loss in after.items():
        assert float(loss) < 0.75 * float(before[task]), (task, after)


@pytest.mark.parametrize("name", RULES)
def test_a_task_without_labels_contributes_nothing(name: str) -> None:
    run = small(hide=["size"], balancing=name)
    before = run.weights()
    losses = run.train(8)
    assert np.isfinite(losses).all()
    for part, value in run.weights().items():
        assert torch.equal(value, before[part]) == part.startswith("heads.1."), part


def test_settings_out_of_range_are_refused() -> None:
    for spec in (
        "dwa(temperature=0.0)",
        "famo(rate=2.0)",
        "gradnorm(alpha=-1.0)",
        "cagrad(c=-0.1)",
        "uncertainty(rate=0.0)",
        "static(weights=(-1.0, 1.0))",
        "static(weights=(0.0, 0.0))",
        "mgda(normalise='l3')",
    ):
        with pytest.raises(UsageError) as caught:
            create("balancing", spec)
        assert caught.value.hint
