"""What a balancing rule's weights are put on: shared weights, and not a task's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from histotl.core.errors import UsageError
from histotl.learn._balancer import Balancer
from histotl.learn._gradients import gradients, gramian, shared
from histotl.learn._trainer import Data, Hooks, make_batch
from histotl.learn.bags import Bags
from histotl.learn.balancing.base import FromFunction, FromGramian, FromLosses, Setting, stacked
from histotl.learn.fit import Labelled, fit
from histotl.learn.network import Architecture, Network
from histotl.learn.objective import Objective
from histotl.learn.rows import ArrayRows
from tests.learn.small import ALL, SIZE, YES, Small, rows, small

ROWS = np.arange(48)


class Recorder:
    """A rule with fixed weights that remembers what it was asked."""

    def __init__(self, weights: dict[str, float]) -> None:
        self.wanted, self.gramians, self.losses = weights, [], []  # type: ignore[var-annotated]

    def start(self, setting: Setting) -> Recorder:
        self.setting = setting
        return self

    def weights(self, gramian: np.ndarray, losses: dict[str, float]) -> np.ndarray:
        self.gramians.append(gramian)
        self.losses.append(losses)
        return np.array([self.wanted[name] for name in losses])


def balanced(run: Small, rule: object, where: str) -> dict[str, torch.Tensor]:
    """Gradients that a rule makes."""
    setting = Setting(priors=run.objective.priors)
    Balancer(run.network, rule, setting, where).backward(run.batch(ROWS))  # type: ignore[arg-type]
    return {name: p.grad.clone() for name, p in run.network.named_parameters() if p.grad is not None}


def plain(run: Small, task: str) -> dict[str, torch.Tensor]:
    batch, named = run.batch(ROWS), dict(run.network.named_parameters())
    found = gradients(batch.losses(batch.run())[task], list(named.values()))
    return {name: torch.zeros_like(p) if g is None else g for (name, p), g in zip(named.items(), found, strict=True)}


@pytest.mark.parametrize("where", ["features", "parameters"])
@pytest.mark.parametrize("sharing", ["hard", "mtan", "mmoe"])
def test_weights_act_on_what_is_shared_and_a_tasks_own_part_gets_its_plain_gradient(sharing: str, where: str) -> None:
    run = small(sharing=sharing, dropout=0.0)
    rule = Recorder({"yes": 0.5, "size": 3.0, "type": 0.0})
    found = balanced(run, rule, where)
    each = {task: plain(run, task) for task in ("yes", "size", "type")}
    own = [name for name in found if name.startswith("heads") or "gates" in name]
    assert own
    for name, value in found.items():
        weights = {"yes": 1.0, "size": 1.0, "type": 1.0} if name in own else rule.wanted
        expected = torch.stack([weights[task] * slopes[name] for task, slopes in each.items()]).sum(0)
        torch.testing.assert_close(value, expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("where", ["features", "parameters"])
def test_the_gramian_is_of_the_stated_gradients(where: str) -> None:
    run, rule = small((YES, SIZE), dropout=0.0), Recorder({"yes": 1.0, "size": 1.0})
    balanced(run, rule, where)
    batch = run.batch(ROWS)
    front = batch.front()
    losses = batch.losses(batch.finish(front))
    tensors = [front.common] if where == "features" else list(run.network.sharing.parameters())  # type: ignore[attr-defined]
    flat = [torch.cat([g.flatten() for g in gradients(loss, tensors)]) for loss in losses.values()]  # type: ignore[arg-type,union-attr]
    expected = torch.stack(flat).double() @ torch.stack(flat).double().T
    np.testing.assert_allclose(rule.gramians[0], expected.numpy(), rtol=1e-4)
    assert list(rule.losses[0].values()) == pytest.approx([loss.item() for loss in losses.values()])


@pytest.mark.parametrize("where", ["features", "parameters"])
def test_equal_weights_are_the_plain_sum_of_losses(where: str) -> None:
    run = small(dropout=0.3)
    run.network.train()
    torch.manual_seed(0)
    by_gradients = balanced(run, FromFunction(function=lambda g: torch.ones(len(g))), where)
    torch.manual_seed(0)
    by_losses = balanced(run, Plain(), where)
    for name, value in by_losses.items():
        torch.testing.assert_close(by_gradients[name], value, atol=1e-6, rtol=1e-4)


class Plain:
    def start(self, setting: Setting) -> FromLosses:
        return FromLosses(make=lambda losses: stacked(losses).sum())


@pytest.mark.parametrize("where", ["features", "parameters"])
def test_absent_tasks_are_not_in_the_gramian_and_get_no_gradient(where: str) -> None:
    run, rule = small(ALL, hide=["size"], dropout=0.0), Recorder({"yes": 2.0, "type": 1.0})
    found = balanced(run, rule, where)
    assert list(rule.losses[0]) == ["yes", "type"]
    assert rule.gramians[0].shape == (2, 2)
    assert not [name for name in found if name.startswith("heads.1.")]
    alone = small((YES,), dropout=0.0)
    single = balanced(alone, Recorder({"yes": 7.0}), "parameters")
    expected = plain(alone, "yes")
    assert all(torch.equal(value, expected[name]) for name, value in single.items()), "one task has nothing to share"


@pytest.mark.parametrize("where", ["features", "parameters"])
def test_ties_and_losses_of_parts_are_added_as_they_are(where: str) -> None:
    x, targets = rows()
    objective = Objective((YES, SIZE), targets)
    shape = {"in_dim": 8, "hidden": 4, "dropout": 0.0, "outputs": objective.n_outputs()}
    network = Network(Architecture(aggregator="abmil(hidden=6, attention=4, dropout=0.0)", sharing="soft", **shape))
    bags = Bags.of(ArrayRows(x.numpy()), np.split(np.arange(96), 32))
    batch = make_batch(network, objective, Data(targets=objective.tensor(targets)[:32], bags=bags), np.arange(32))
    rule = FromFunction(function=lambda g: torch.tensor([0.5, 2.0]))
    loss = Balancer(network, rule, Setting(priors=objective.priors), where).backward(batch)  # type: ignore[arg-type]
    found = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    network.zero_grad()
    output = batch.run()
    losses = batch.losses(output)
    assert loss.item() == pytest.approx(sum(part.item() for part in losses.values()), rel=1e-5)
    (0.5 * losses["yes"] + 2.0 * losses["size"]).backward(retain_graph=True)
    for name, parameter in network.aggregator.named_parameters():  # type: ignore[union-attr]
        torch.testing.assert_close(found[f"aggregator.{name}"], parameter.grad, atol=1e-6, rtol=1e-4)
    network.zero_grad()
    (losses["yes"] + losses["size"] + network.sharing.penalty()).backward()
    for name, parameter in network.sharing.named_parameters():  # type: ignore[attr-defined]
        torch.testing.assert_close(found[f"sharing.{name}"], parameter.grad, atol=1e-6, rtol=1e-4)


def test_where_nothing_is_shared_or_gradients_are_not_finite_it_says_so() -> None:
    equal = FromGramian(solve=lambda g: np.ones(len(g)))

    class Starts:
        def start(self, setting: Setting) -> FromGramian:
            return equal

    for where in ("features", "parameters"):
        with pytest.raises(UsageError, match="nothing for a rule"):
            balanced(small(sharing="none"), Starts(), where)
    run = small()
    with torch.no_grad():
        run.network.sharing.trunk[1].weight.fill_(torch.inf)  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="diverged"):
        balanced(run, Starts(), "features")
    with pytest.raises(UsageError, match="shape"):
        balanced(small(), FromFunction(function=lambda g: torch.ones(len(g) + 1)), "features")


def test_shared_tensors_and_their_gramian() -> None:
    a, b = torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor([3.0], requires_grad=True)
    each = {"x": gradients((a * a).sum() + b.sum(), [a, b]), "y": gradients(a.sum(), [a, b])}
    assert shared(each) == [True, False]
    np.testing.assert_allclose(gramian(list(each.values())), [[21.0, 6.0], [6.0, 2.0]])


def test_a_function_of_the_gramian_trains_through_fit(labelled: object, quick: object) -> None:
    x, targets = rows()
    make = Labelled(bags=Bags.singles(ArrayRows(x.numpy()), np.arange(96)), targets=targets)
    seen: list[tuple[int, ...]] = []

    def weighting(gramian: torch.Tensor) -> torch.Tensor:
        assert gramian.dtype == torch.float64
        seen.append(tuple(gramian.shape))
        return torch.linalg.pinv(gramian).diag().sqrt()

    fitted = fit(make, make, tasks=ALL, config=quick, hooks=Hooks(weighting=weighting))  # type: ignore[arg-type]
    assert set(seen) == {(3, 3)}
    assert len(seen) == 60
    assert fitted.history[-1]["val"] < fitted.history[0]["val"]  # type: ignore[operator]
