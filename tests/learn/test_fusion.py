"""Where covariates meet the tiles: laws of the module, contracts with aggregators, and what can be learnt from them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from histotl.core.errors import UsageError
from histotl.core.registry import available, create
from histotl.learn.bags import Bags
from histotl.learn.config import TrainConfig
from histotl.learn.covariate_specs import Covariate
from histotl.learn.covariate_values import CovariateValues
from histotl.learn.covariates import Blocks
from histotl.learn.fit import Fitted, Labelled, fit
from histotl.learn.fusion import Fusion
from histotl.learn.network import Architecture, Network, evaluating
from histotl.learn.rows import ArrayRows
from histotl.learn.task import Task
from tests.learn.aggregators.specs import SPECS, TASKS, build, pack

BLOCKS: Blocks = (("age", "concat", 2), ("site", "concat", 3), ("sex", "film", 4))
YES = Task(name="yes", kind="binary", classes=("n", "y"))
SITE = Covariate(name="site", kind="category")


def architecture(blocks: Blocks = BLOCKS, **more: object) -> Architecture:
    shapes: dict[str, object] = {"in_dim": 6, "aggregator": "", "hidden": 4, "dropout": 0.0, "outputs": TASKS}
    return Architecture(**shapes | {"covariates": blocks} | more)  # type: ignore[arg-type]


def told(n: int, blocks: Blocks = BLOCKS, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, sum(width for _, _, width in blocks), generator=torch.Generator().manual_seed(seed))


def stir(network: Network, seed: int = 1) -> Network:
    """Weights as if something had been learnt."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return network


def film(width: int = 3) -> Blocks:
    return (("sex", "film", width),)


def test_film_changes_nothing_at_the_start() -> None:
    x, covariates = torch.randn(5, 6), told(5, film())
    one, other = Network(architecture(film()), 3).eval(), Network(architecture(()), 3).eval()
    for name, value in other.answer(x).items():
        assert torch.equal(one.answer(x, covariates)[name], value)


def test_film_scales_and_shifts() -> None:
    fusion = Fusion(6, film(2))
    assert fusion.weight is not None
    assert fusion.bias is not None
    with torch.no_grad():
        fusion.weight.normal_()
        fusion.bias.normal_()
    x, covariates = torch.randn(5, 6), told(5, film(2))
    gamma, beta = covariates @ fusion.weight[:6].T + fusion.bias[:6], covariates @ fusion.weight[6:].T + fusion.bias[6:]
    torch.testing.assert_close(fusion(x, covariates), x * (1 + gamma) + beta)
    assert fusion.out_dim == 6
    of_tasks = fusion(x[:, None].expand(-1, 3, -1), covariates)
    torch.testing.assert_close(of_tasks, fusion(x, covariates)[:, None].expand(-1, 3, -1))


def test_what_is_appended_stands_behind_the_vector() -> None:
    blocks = BLOCKS[:2]
    fusion = Fusion(6, blocks)
    x, covariates = torch.randn(5, 6), told(5, blocks)
    for bags in (x, x[:, None].expand(-1, 3, -1)):
        found = fusion(bags, covariates)
        assert found.shape == (*bags.shape[:-1], fusion.out_dim)
        assert torch.equal(found[..., :6], bags)
        assert torch.equal(found[..., 6:11], covariates.view(5, *[1] * (bags.ndim - 2), 5).expand(*bags.shape[:-1], 5))
    assert not list(fusion.parameters())


def test_a_wide_vector_has_more_copies_beside_it() -> None:
    """Of a wide vector a trunk hides half in every step, of a narrow one next to nothing."""
    assert [Fusion(width, BLOCKS[:2]).out_dim - width for width in (6, 32, 128, 2048)] == [5, 20, 80, 80]
    found = Fusion(32, BLOCKS[:2])(torch.randn(3, 32), told(3, BLOCKS[:2]))[:, 32:].view(3, 4, 5)
    assert torch.equal(found, told(3, BLOCKS[:2])[:, None].expand(-1, 4, -1))


def test_hiding_makes_whole_covariates_missing_in_training_only() -> None:
    fusion = Fusion(6, BLOCKS[:2], dropout=0.4)
    x, covariates = torch.zeros(4000, 6), told(4000, BLOCKS[:2]) + 5
    torch.manual_seed(0)
    age, site = fusion(x, covariates)[:, 6:11].split([2, 3], dim=1)
    for found, given, missing in ((age, covariates[:, :2], [0.0, 1.0]), (site, covariates[:, 2:], [0.0, 0.0, 1.0])):
        gone = (found == torch.tensor(missing)).all(dim=1)
        assert torch.equal(found[~gone], given[~gone])
        assert 0.36 < float(gone.float().mean()) < 0.44
    both = (age[:, 1] == 1) & (site[:, 2] == 1)
    assert 0.12 < float(both.float().mean()) < 0.20, "each is hidden by itself"
    fusion.eval()
    assert torch.equal(fusion(x, covariates)[:, 6:11], covariates)


@pytest.mark.parametrize("how", ["concat", "film"])
@pytest.mark.parametrize("spec", SPECS)
def test_every_aggregator_is_told_or_refuses(spec: str, how: str) -> None:
    blocks: Blocks = (("age", how, 2), ("site", how, 3))
    x, offsets, coords = pack([3, 1, 7])
    if build(spec)(x, offsets, coords).direct:
        with pytest.raises(UsageError, match="answers by itself, so that covariates cannot reach it") as caught:
            Network(architecture(blocks, aggregator=spec))
        assert "--aggregator" in caught.value.hint
        return
    network = stir(Network(architecture(blocks, aggregator=spec), 2)).double().eval()
    covariates = told(3, blocks).double().requires_grad_()
    found = network(x, offsets, coords, covariates).tasks
    for name, n in TASKS:
        assert found[name].shape == (3, n)
        (slope,) = torch.autograd.grad(found[name].sum(), covariates, retain_graph=True)
        assert (slope.abs().sum(dim=0) > 0).all(), "every column must reach every answer"
        (own,) = torch.autograd.grad(found[name][1].sum(), covariates, retain_graph=True)
        assert (own[[0, 2]] == 0).all(), "a bag's covariates must reach that bag alone"
    alone = network(x[3:4], torch.tensor([0, 1]), coords[3:4], covariates[1:2]).tasks
    for name, _ in TASKS:
        torch.testing.assert_close(alone[name], found[name][1:2], rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="told covariates"):
        network(x, offsets, coords)


@pytest.mark.parametrize("sharing", available("sharing"))
def test_every_sharing_is_told(sharing: str) -> None:
    network = stir(Network(architecture(sharing=sharing), 2)).double().eval()
    x, covariates = torch.randn(4, 6).double(), told(4).double().requires_grad_()
    for answer in network.answer(x, covariates).values():
        (slope,) = torch.autograd.grad(answer.sum(), covariates, retain_graph=True)
        assert (slope.abs().sum(dim=0) > 0).all()
    of_tasks = x[:, None].expand(-1, len(TASKS), -1)
    for name, answer in network.answer(of_tasks, covariates).items():
        torch.testing.assert_close(answer, network.answer(x, covariates)[name])


# What can be learnt.


def quick(**more: object) -> TrainConfig:
    settings: dict[str, object] = {
        "hidden": 0, "dropout": 0.0, "members": 1, "min_steps": 400, "max_steps": 400, "learning_rates": (0.03,),
        "device": "cpu",
    }  # fmt: skip
    return TrainConfig(**settings | more)  # type: ignore[arg-type]


def known(words: np.ndarray, *covariates: Covariate) -> CovariateValues:
    """Every covariate says the same, A, B or nothing."""
    table = np.stack([np.where(words < 0, np.nan, words)] * len(covariates), axis=1)
    return CovariateValues(covariates=covariates, table=table, words=(("A", "B"),) * len(covariates))


def rows(x: np.ndarray, y: np.ndarray, values: CovariateValues | None) -> Labelled:
    bags = Bags.singles(ArrayRows(x.astype(np.float32)), np.arange(len(x)))
    return Labelled(bags=replace(bags, covariates=values), targets={"yes": y.astype(float)})


def logits(fitted: Fitted, data: Labelled) -> np.ndarray:
    packed = data.bags.gather(np.arange(len(data.bags)))
    columns = fitted.covariates.encode(packed.covariates)
    with evaluating(fitted.members[0]):
        given = None if columns is None else torch.from_numpy(columns)
        return fitted.members[0](packed.x, packed.offsets, None, given).tasks["yes"][:, 0].numpy()


def auc(parts: dict[str, Labelled], config: TrainConfig) -> float:
    fitted = fit(parts["train"], parts["val"], tasks=[YES], config=config)
    return float(roc_auc_score(parts["test"].targets["yes"], logits(fitted, parts["test"])))


def interaction(*covariates: Covariate) -> dict[str, Labelled]:
    """The same tissue means yes at site A and no at site B."""
    rng, parts = np.random.default_rng(0), {}
    for name, n in (("train", 400), ("val", 200), ("test", 400)):
        sign, site = rng.integers(0, 2, n), rng.integers(0, 2, n)
        x = rng.normal(size=(n, 8))
        x[:, 0] += 4.0 * sign - 2.0
        parts[name] = rows(x, sign ^ site, known(site.astype(float), *covariates) if covariates else None)
    return parts


def test_film_learns_that_tissue_means_something_else_at_another_site() -> None:
    parts = interaction(replace(SITE, fusion="film"))
    assert auc(parts, quick()) > 0.95
    assert abs(auc(interaction(), quick()) - 0.5) < 0.1, "without the site there is nothing to learn"
    assert abs(auc(interaction(SITE), quick()) - 0.5) < 0.1, "a linear head behind concat cannot say it"
    assert auc(interaction(SITE), quick(hidden=32)) > 0.9, "a trunk behind concat can"


@pytest.mark.parametrize("how", ["concat", "film"])
def test_what_the_site_says_of_the_label_is_used(how: str) -> None:
    rng, found = np.random.default_rng(1), {}
    for with_site in (False, True):
        rng, parts = np.random.default_rng(1), {}
        for name, n in (("train", 300), ("val", 200), ("test", 400)):
            y = rng.integers(0, 2, n)
            site = np.where(rng.random(n) < 0.85, y, 1 - y)
            x = rng.normal(size=(n, 8))
            x[:, 0] += y
            covariate = replace(SITE, fusion=how)  # type: ignore[arg-type]
            parts[name] = rows(x, y, known(site.astype(float), covariate) if with_site else None)
        found[with_site] = auc(parts, quick(hidden=16))
    assert found[False] < 0.82
    assert found[True] > found[False] + 0.08


def test_hidden_covariates_keep_the_tissue_useful_without_them() -> None:
    """The site nearly gives the label away: a model that never went without it neglects the tissue."""
    found = {}
    for dropout in (0.0, 0.5):
        rng, parts = np.random.default_rng(2), {}
        for name, n in (("train", 300), ("val", 200), ("test", 600)):
            y = rng.integers(0, 2, n)
            site = np.where(rng.random(n) < 0.97, y, 1 - y).astype(float)
            x = rng.normal(size=(n, 16))
            x[:, 0] += 2 * y
            parts[name] = rows(x, y, known(np.full(n, -1.0) if name == "test" else site, SITE))
        config = quick(hidden=16, covariate_dropout=dropout)
        fitted = fit(parts["train"], parts["val"], tasks=[YES], config=config)
        answers, y = logits(fitted, parts["test"]), parts["test"].targets["yes"]
        found[dropout] = float(np.mean(np.logaddexp(0, -answers * (2 * y - 1))))
    assert found[0.5] < found[0.0] - 0.02, "loss without the site"


def test_covariates_of_val_and_test_shape_nothing() -> None:
    parts = interaction(replace(SITE, fusion="film"), replace(SITE, name="again"))
    fitted = fit(parts["train"], parts["val"], tasks=[YES], config=quick(max_steps=40, min_steps=40))
    val = parts["val"]
    words = (("A", "B", "C", "D"),) * 2
    assert val.bags.covariates is not None
    other = replace(val.bags.covariates, table=3.0 - val.bags.covariates.table, words=words)
    changed = replace(val, bags=replace(val.bags, covariates=other))
    again = fit(parts["train"], changed, tasks=[YES], config=quick(max_steps=40, min_steps=40))
    assert again.covariates == fitted.covariates
    assert again.architecture == fitted.architecture
    assert [look["train"] for look in again.history] == [look["train"] for look in fitted.history]


def test_a_direct_aggregator_is_refused_before_training() -> None:
    rng = np.random.default_rng(0)
    bags = Bags.of(ArrayRows(rng.normal(size=(40, 6)).astype(np.float32)), np.split(np.arange(40), 10))
    values = known((np.arange(10) % 2).astype(float), SITE)
    data = Labelled(bags=replace(bags, covariates=values), targets={"yes": np.arange(10) % 2.0})
    with pytest.raises(UsageError, match="covariates cannot reach it"):
        fit(data, data, tasks=[YES], config=quick(), aggregator="additive(hidden=8, attention=4, inner=4)")
    assert create("aggregator", "additive(hidden=8)")
