"""Explanations against their definitions, in float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from histotl.core.errors import UsageError
from histotl.core.registry import create
from histotl.learn.explain.base import Explainer, Question, for_questions
from histotl.learn.explain.leave_one_out import one_by_one
from histotl.learn.faithfulness import drops, drops_of, summarise
from histotl.learn.network import Architecture, Network
from histotl.learn.readout import RANDOM, readout_of
from histotl.learn.task import Task

OUTPUTS = (("type", 3), ("dysplasia", 1))
ABMIL = "abmil(hidden=8, attention=4)"


@torch.no_grad()
def shake(network: Network, generator: torch.Generator) -> None:
    """Make weights large."""
    for parameter in network.parameters():
        parameter.add_(torch.randn(parameter.shape, dtype=torch.float64, generator=generator) * 0.6)


def asked(aggregator: str = ABMIL, *, hidden: int = 0, n: int = 30, task: str = "type", seed: int = 0) -> Question:
    """A network with weights large enough that its attention is uneven, and a bag."""
    shapes = Architecture(in_dim=6, aggregator=aggregator, hidden=hidden, dropout=0.0, outputs=OUTPUTS)
    network = for_questions(Network(shapes, seed))
    generator = torch.Generator().manual_seed(seed)
    shake(network, generator)
    with torch.no_grad():
        network.mean.add_(0.3)
        network.bag_std.mul_(1.7)
        network.bag_mean.add_(0.2)
    x = torch.randn(n, 6, dtype=torch.float64, generator=generator) * 2
    width = dict(OUTPUTS)[task]
    return Question(network=network, x=x, coords=None, task=task, readout=torch.eye(width, dtype=torch.float64))


def scores(spec: str, question: Question) -> torch.Tensor:
    explainer: Explainer = create("explain", spec)
    return explainer.scores(question)


@pytest.mark.parametrize("aggregator", [ABMIL, "mean"])
@pytest.mark.parametrize("task", ["type", "dysplasia"])
def test_contributions_sum_to_the_logit_less_its_bias(aggregator: str, task: str) -> None:
    question = asked(aggregator, task=task)
    parts = scores("contribution", question)
    wanted = question.answer() - question.network.bias(task)
    assert torch.allclose(parts.sum(dim=0), wanted, atol=1e-10, rtol=0)
    assert parts.std() > 0.01


def test_contributions_are_refused_where_they_are_not_exact() -> None:
    with pytest.raises(UsageError, match="is not linear") as caught:
        scores("contribution", asked(hidden=16))
    assert "--hidden 0" in str(caught.value.hint)


@pytest.mark.parametrize("hidden", [0, 16])
@pytest.mark.parametrize("aggregator", [ABMIL, "mean"])
@pytest.mark.parametrize("n", [2, 3, 30])
def test_closed_form_leave_one_out_is_brute_force(aggregator: str, hidden: int, n: int) -> None:
    question = asked(aggregator, hidden=hidden, n=n)
    brute = question.answer() - one_by_one(question, torch.arange(n))
    assert torch.allclose(scores("leave_one_out", question), brute, atol=1e-10, rtol=0)


def test_a_tile_with_nearly_all_weight_is_taken_out_for_real() -> None:
    question = asked(hidden=16, n=5)
    with torch.no_grad():
        question.network.aggregator.attend.score.weight.mul_(200)
    weights = question.pooled().weights
    assert weights is not None
    assert weights.max() > 1 - 1e-12
    brute = question.answer() - one_by_one(question, torch.arange(5))
    assert torch.allclose(scores("leave_one_out", question), brute, atol=1e-10, rtol=0)


def test_leave_one_out_without_a_formula_asks_again_and_says_when_that_is_too_much(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    question = asked(hidden=16, n=12)
    closed = scores("leave_one_out", question)
    pooled = question.pooled
    monkeypatch.setattr(Question, "pooled", lambda self: replace(pooled(), values=None))
    assert torch.allclose(scores("leave_one_out", question), closed, atol=1e-10, rtol=0)
    with pytest.raises(UsageError, match="would answer 12 times"):
        scores("leave_one_out(most=11)", question)
    assert scores("leave_one_out", asked(n=1)).isnan().all()


@pytest.mark.parametrize(
    ("aggregator", "hidden", "tolerance"), [("mean", 0, 1e-10), ("mean", 16, 1e-6), (ABMIL, 16, 2e-2)]
)
def test_integrated_gradients_are_complete(aggregator: str, hidden: int, tolerance: float) -> None:
    question = asked(aggregator, hidden=hidden)
    found = scores("integrated_gradients(steps=64)", question).sum(dim=0)
    neutral = question.of_tiles(question.network.mean.expand_as(question.x))
    wanted = question.answer() - neutral
    assert wanted.abs().max() > 0.1
    # The rectifier of the tile embedding has corners, which no quadrature likes.
    assert torch.allclose(found, wanted, atol=tolerance * float(wanted.abs().max()), rtol=0)


def test_gradient_times_input_is_exact_for_a_linear_network() -> None:
    question = asked("mean")
    integrated, plain = scores("integrated_gradients", question), scores("grad_x_input", question)
    assert torch.allclose(integrated, plain, atol=1e-12)


def test_attention_is_the_networks_own_and_refused_where_it_says_nothing() -> None:
    question = asked()
    found, weights = scores("attention", question), question.pooled().weights
    assert weights is not None
    assert torch.equal(found[:, 1], weights)
    with pytest.raises(UsageError, match="every tile has the same weight"):
        scores("attention", asked("mean"))


def needle(seed: int = 0) -> tuple[Question, np.ndarray]:
    """A network whose attention also looks at loud tiles that say the opposite, and a bag with known needles."""
    question = asked(hidden=0, n=60, task="dysplasia", seed=1)
    net = question.network
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(60, 6)) * 0.3
    is_needle, is_decoy = np.arange(60) < 6, (np.arange(60) >= 6) & (np.arange(60) < 14)
    x[is_needle, 0] += 3
    x[is_decoy, 1] += 4
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(0)
        net.mean.zero_()
        net.bag_mean.zero_()
        net.bag_std.fill_(1)
        net.aggregator.embed.linear.weight[0, 0] = net.aggregator.embed.linear.weight[1, 1] = 1
        net.aggregator.attend.gates.weight[0, :2] = 1  # the attention likes both kinds
        net.aggregator.attend.score.weight[0, 0] = 4
        net.heads[1].weight[0, 0], net.heads[1].weight[0, 1] = 2.0, -1.0
    return replace(question, x=torch.from_numpy(x)), is_needle


def test_contributions_find_the_needles_at_least_as_well_as_attention() -> None:
    for seed in range(5):
        question, truth = needle(seed)
        auc = {m: roc_auc_score(truth, scores(m, question)[:, 0].numpy()) for m in ("contribution", "attention")}
        assert auc["contribution"] > 0.99
        assert auc["contribution"] >= auc["attention"]
        assert auc["attention"] < 0.99, "decoys must deceive the attention, or the test says nothing"


def test_faithfulness_believes_what_moves_the_answer() -> None:
    methods = {name: create("explain", name) for name in ("contribution", "leave_one_out", "attention")}
    found = [drops([needle(seed)[0]], methods, seed=seed) for seed in range(8)]
    table = summarise(found, [f"P{i}" for i in range(8)], resamples=200, seed=0)
    assert table["contribution"].score.low > table[RANDOM].score.high
    assert table["contribution"].score.value > table["attention"].score.value
    assert table["leave_one_out"].score.low > 0
    assert table[RANDOM].score.low < 0 < table[RANDOM].score.high or abs(table[RANDOM].score.value) < 0.1
    first, last = drops_of([needle()[0]], torch.from_numpy(needle()[1][:, None].astype(float)))
    assert first > last


def test_read_outs() -> None:
    kinds = {
        "binary": (Task(name="t", kind="binary", classes=("n", "y")), 1, ("y",)),
        "multiclass": (Task(name="t", kind="multiclass", classes=("a", "b", "c")), 3, ("a", "b", "c")),
        "ordinal": (Task(name="t", kind="ordinal", classes=("a", "b", "c")), 2, ("expected",)),
        "regression": (Task(name="t", kind="regression"), 1, ("",)),
    }
    for task, width, names in kinds.values():
        readout = readout_of(task, width)
        assert readout.names == names
        assert readout.matrix.shape == (width, len(names))
    three = readout_of(kinds["multiclass"][0], 3)
    logits = torch.tensor([[1.0, 5.0, 0.0]], dtype=torch.float64)
    assert torch.allclose((logits + 7) @ three.matrix, logits @ three.matrix), "a softmax does not see a common shift"
    assert torch.equal(three.towards_answer((logits @ three.matrix)[0])[:, 0], three.matrix[:, 1])
    one = readout_of(kinds["binary"][0], 1)
    assert float(one.towards_answer(torch.tensor([-0.5]))) == -1


def told(how: str, *, hidden: int = 0, seed: int = 0) -> tuple[Question, torch.Tensor]:
    """A question about a bag of which something is known, and what else might have been known of it."""
    shapes = Architecture(
        in_dim=6, aggregator=ABMIL, hidden=hidden, dropout=0.0, outputs=OUTPUTS, covariates=(("age", how, 2),)
    )
    question = asked(hidden=hidden, n=12, seed=seed)
    network = for_questions(Network(shapes, seed))
    generator = torch.Generator().manual_seed(seed)
    shake(network, generator)
    with torch.no_grad():
        network.bag_mean.add_(0.2)
    one, other = torch.randn(2, 1, 2, dtype=torch.float64, generator=generator)
    return replace(question, network=network, covariates=one), other


@pytest.mark.parametrize("how", ["concat", "film"])
def test_contributions_leave_out_what_covariates_say(how: str) -> None:
    question, other = told(how)
    parts = scores("contribution", question)
    network = question.network
    rest = network.answer(network.bag_mean[None], question.covariates)["type"][0]
    assert torch.allclose(parts.sum(dim=0) + rest, question.answer(), atol=1e-10, rtol=0)
    changed = scores("contribution", replace(question, covariates=other))
    # Put beside the tiles, the age adds to the answer; modulating them, it changes what they mean.
    assert torch.allclose(parts, changed, atol=1e-10, rtol=0) == (how == "concat")
    assert not torch.allclose(question.answer(), replace(question, covariates=other).answer(), atol=1e-3)


@pytest.mark.parametrize("how", ["concat", "film"])
@pytest.mark.parametrize("hidden", [0, 16])
def test_tiles_are_explained_with_the_covariates_as_they_are(how: str, hidden: int) -> None:
    question, _ = told(how, hidden=hidden)
    brute = question.answer() - one_by_one(question, torch.arange(question.n))
    assert torch.allclose(scores("leave_one_out", question), brute, atol=1e-10, rtol=0)
    nothing = question.of_tiles(question.network.mean.expand(question.n, -1)).detach()
    found = scores("integrated_gradients(steps=200)", question).sum(dim=0)
    assert torch.allclose(found, question.answer() - nothing, atol=0.02)
