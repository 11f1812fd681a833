"""What every plug-in of a kind must keep. Run over all registered names by ``test_contracts.py``.

A check takes a name and raises AssertionError with the sentence that tells its author what is missing. It builds the
component with its defaults; a component that cannot be built without arguments is given them in ARGUMENTS.
"""

from __future__ import annotations

import dataclasses
import json
import math
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from histotl.core.errors import HistotlError, UsageError
from histotl.core.registry import PLUGIN_FOLDERS, available, canonical, create, plugin
from histotl.core.spec import Spec
from histotl.image._tile_view import TileView
from histotl.image.stain.base import StainTransform
from histotl.learn._trainer import Data, make_batch, start_stepper
from histotl.learn.balancing.base import GramianRule, LossRule, Setting
from histotl.learn.config import TrainConfig
from histotl.learn.explain.base import Question, for_questions
from histotl.learn.heads.base import (
    Comparing,
    Decoding,
    Finishing,
    Joint,
    Layered,
    Learning,
    Recalling,
    TaskFacts,
    decoded,
)
from histotl.learn.network import Architecture, Network
from histotl.learn.objective import Objective
from histotl.learn.sharing.base import SharingShape
from histotl.learn.task import Task

# How to build what has no default: a small real case.
ARGUMENTS: Mapping[tuple[str, str], str] = {
    ("backbone", "timm"): "timm/test_vit(weights='random')",
    ("augment", "albumentations"): "albumentations(pipeline='RandomRotate90 + GaussNoise(p=1.0)')",
}
NEEDS_A_FILE = {
    ("backbone", "module"),
    ("tissue", "from_geojson"),
    ("tissue", "from_mask"),
    ("tissue", "torch_mask"),
}
"""These wrap a user's own file; their room's tests write one."""


def names(kind: str) -> list[str]:
    """Names of a kind that the contract runs over."""
    return [name for name in available(kind) if (kind, name) not in NEEDS_A_FILE]


def build(kind: str, name: str) -> Any:
    """The component, and on the way: it is frozen, has a summary, and its text builds it again."""
    built = create(kind, ARGUMENTS.get((kind, name), name))
    assert create(kind, canonical(built)) == built, "canonical text does not build an equal component"
    assert plugin(kind, name).summary.endswith("."), "the docstring's first line must be a sentence"
    field = next(iter(dataclasses.fields(built)), None)
    if field is not None:
        try:
            setattr(built, field.name, None)
        except dataclasses.FrozenInstanceError:
            pass
        else:
            raise AssertionError("the dataclass is not frozen")
    return built


def tissue_tiles(n: int = 6, side: int = 64, seed: int = 0) -> torch.Tensor:
    """Tiles with two stains, made by Beer-Lambert from random smooth densities; uint8 (n, side, side, 3)."""
    rng = np.random.default_rng(seed)
    stains = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])
    coarse = rng.gamma(1.5, 0.35, (n, side // 8, side // 8, 2)).repeat(8, 1).repeat(8, 2)
    density = coarse + rng.gamma(1.0, 0.1, (n, side, side, 2))
    light = 240 * np.exp(-density @ stains) + rng.normal(0, 1, (n, side, side, 3))
    return torch.from_numpy(np.clip(light, 0, 255).astype(np.uint8))


def check_reader(name: str) -> None:
    reader = build("reader", name)
    assert isinstance(reader.priority, int)
    missing = Path("no/such/folder/slide.newcomer")
    assert isinstance(reader.claims(missing), bool), "claims() must answer for a file that is not there"
    with pytest.raises(HistotlError) as caught:
        reader.open(missing)
    assert caught.value.message, "an error must say what is wrong"


def check_tissue(name: str) -> None:
    segmenter = build("tissue", name)
    assert segmenter.mpp > 0
    image = np.full((120, 160, 3), 243, np.uint8)
    image[30:90, 40:120] = tissue_tiles(1, 160)[0].numpy()[:60, :80]
    before = image.copy()
    mask = segmenter.segment(image, segmenter.mpp)
    assert mask.shape == (120, 160), "the mask must have the image's shape"
    assert mask.dtype == np.bool_, "the mask must be boolean"
    assert (image == before).all(), "segment() must not change the image"
    assert mask[40:80, 50:110].mean() > 0.5, "dark stained tissue on glass must be found"
    assert mask[:20].mean() < 0.2, "empty glass is not tissue"
    assert (segmenter.segment(image, segmenter.mpp) == mask).all(), "the same image must give the same mask"


def check_stain(name: str) -> None:
    normalizer = build("stain", name)
    tiles = tissue_tiles()
    transform = normalizer.fit(tiles)
    before = tiles.clone()
    result = transform(tiles)
    assert result.shape == tiles.shape
    assert result.dtype == torch.uint8, "tiles stay uint8"
    assert torch.equal(tiles, before), "the transform must not change its input"
    halves = torch.cat([transform(tiles[:1]), transform(tiles[1:])])
    assert torch.equal(halves, result), "a batch split changes the result"
    json.dumps(dict(transform.state))
    assert torch.equal(normalizer.fit(tiles)(tiles), result), "fitting twice gives another result"
    check_exact_levels(transform, tiles, result)


def check_exact_levels(transform: StainTransform, tiles: torch.Tensor, rounded: torch.Tensor) -> None:
    levels = transform(tiles, dtype=torch.float32)
    assert levels.shape == tiles.shape
    assert levels.dtype == torch.float32, "floats are given where they are asked for"
    assert 0 <= levels.min() <= levels.max() <= 255, "levels are clipped"
    on_border = ((levels - levels.floor()) - 0.5).abs() < 1e-3
    off = (levels.round() - rounded).abs()
    assert off[~on_border].max() == 0, "uint8 is not the rounded float"
    assert off.max() <= 1, "on the border of two levels uint8 is neither of them"
    halves = torch.cat([transform(part, dtype=torch.float32) for part in (tiles[:1], tiles[1:])])
    assert torch.equal(halves, levels), "a batch split changes the levels"
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert torch.equal(transform(tiles, dtype=dtype), levels.to(dtype)), "levels are float32, then cast"
    assert torch.equal(transform(tiles, dtype=torch.uint8), rounded), "uint8 is what is given unasked"
    for dtype in (torch.int32, torch.bool):
        with pytest.raises(UsageError, match=str(dtype)) as caught:
            transform(tiles, dtype=dtype)
        assert "torch.uint8" in caught.value.hint


def check_augment(name: str) -> None:
    augment = build("augment", name)
    tiles, seeds = tissue_tiles(), torch.arange(6, dtype=torch.int64) * 7919
    before = tiles.clone()
    views = augment(tiles, seeds)
    assert views.shape == tiles.shape
    assert views.dtype == torch.uint8
    assert torch.equal(tiles, before), "the augmentation must not change its input"
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002  the point is that global state plays no part
    order = torch.tensor([5, 3, 1, 0, 2, 4])
    assert torch.equal(augment(tiles[order], seeds[order]), views[order]), "a view depends on order or global state"
    one = torch.cat([augment(tiles[i : i + 1], seeds[i : i + 1]) for i in range(6)])
    assert torch.equal(one, views), "a view depends on the batch"


def check_quality(name: str) -> None:
    measure = build("quality", name)
    width = len(measure.columns)
    assert width, "a measure gives at least one figure"
    assert all(column.isidentifier() and column == column.lower() for column in measure.columns)
    tiles = tissue_tiles(6, 128)
    before = tiles.clone()

    def figures(some: torch.Tensor, mpp: float) -> torch.Tensor:
        return measure(TileView(tiles=some, mpp=mpp))

    for mpp in (0.25, 0.5, 0.3, 20.0, math.nan):
        found = figures(tiles, mpp)
        assert found.shape == (6, width)
        assert found.dtype == torch.float32
        assert not found.isinf().any(), "what cannot be measured is NaN, not infinite"
        split = torch.cat([figures(tiles[:1], mpp), figures(tiles[1:], mpp)])
        assert torch.allclose(split, found, rtol=1e-4, atol=1e-5, equal_nan=True), "a figure depends on the batch"
        order = torch.tensor([5, 3, 1, 0, 2, 4])
        shuffled = figures(tiles[order], mpp)
        assert torch.allclose(shuffled, found[order], rtol=1e-4, atol=1e-5, equal_nan=True), "the order matters"
    assert torch.isfinite(figures(tiles, 0.5)).all(), "stained tissue can be measured"
    assert torch.equal(tiles, before), "a measure must not change its input"
    for level in (0, 128, 255):
        for shape in ((1, 1), (5, 300), (224, 224)):
            flat = figures(torch.full((2, *shape, 3), level, dtype=torch.uint8), 0.5)
            assert flat.shape == (2, width)
            assert not flat.isinf().any(), "a flat tile gives an infinite figure"


def check_backbone(name: str) -> None:
    embedder = build("backbone", name).load(torch.device("cpu"))
    card = embedder.card
    tiles = tissue_tiles(5, 64)
    with torch.inference_mode():
        features = embedder(tiles)
        split = torch.cat([embedder(tiles[:2]), embedder(tiles[2:])])
        again = embedder(tiles)
    assert features.shape == (5, card.dim), "card.dim is not the width of the features"
    assert features.is_floating_point()
    assert torch.isfinite(features).all()
    assert torch.equal(features, again), "two calls differ"
    scale = features.abs().max().clamp_min(1e-12)
    assert (features - split).abs().max() / scale < 1e-5, "a tile's features depend on its batch"
    assert card.name.split("/")[0] == name.split("/")[0]
    assert card.weights == "none" or card.weights_digest, "weights without a digest"
    with torch.inference_mode():
        blank = embedder(torch.full((1, 64, 64, 3), 255, dtype=torch.uint8))
    assert torch.isfinite(blank).all(), "a blank tile gives NaN"


def head_options(name: str) -> list[Any]:
    """The head with its defaults, and once more with every value of an option that has named ones."""
    head = build("head", name)
    hints = typing.get_type_hints(type(head))
    named = {f.name: typing.get_args(hints[f.name]) for f in dataclasses.fields(head)}
    options = [(key, value) for key, values in named.items() for value in values if isinstance(value, str)]
    return [head, *(create("head", Spec(name, {key: value})) for key, value in options)]


def head_targets(head: Any, classes: int, n: int) -> torch.Tensor:
    """Labels of n rows, every class among them."""
    answers = head.nature.answers
    if answers == "classes":
        return torch.arange(n) % classes
    if answers == "labels":
        target = (torch.arange(n)[:, None] >> torch.arange(classes)) % 2 * 1.0
        target[::3, 0] = torch.nan
        return target.double()
    if answers == "number":
        return torch.linspace(-2, 2, n, dtype=torch.float64)
    time = 1 + torch.arange(n, dtype=torch.float64) % (n // 2)
    return torch.stack([time, (torch.arange(n) % 3 > 0).double()], dim=1)


def check_head(name: str) -> None:
    for head in head_options(name):
        nature = head.nature
        classes = nature.most if nature.most is not None else max(nature.least, 4)
        target = head_targets(head, classes, 40)
        if isinstance(head, Learning):
            head = head.learn(target.numpy())
            assert create("head", canonical(head)) == head, "what was learnt must be options"
        torch.manual_seed(0)
        outputs = torch.randn(40, head.n_outputs(classes), dtype=torch.float64, requires_grad=True)
        _check_losses(head, outputs, target)
        if isinstance(head, Comparing):
            _check_compared(head, outputs.detach(), target)
        if isinstance(head, Recalling):
            _check_recall(head, outputs.detach(), torch.eye(classes, dtype=torch.float64)[target])
        values = head.probabilities(outputs).detach()
        assert len(values) == 40
        if nature.answers in ("classes", "labels"):
            assert values.shape == (40, classes)
            assert ((values >= 0) & (values <= 1)).all()
        if nature.answers == "classes":
            assert torch.allclose(values.sum(1), torch.ones(40, dtype=torch.float64)), "probabilities do not sum to 1"
            extreme = head.probabilities(outputs.detach() * 1e3)
            assert torch.allclose(extreme.sum(1), torch.ones(40, dtype=torch.float64))
        facts = TaskFacts(counts=(40,), mean=5.0, std=2.0)
        if isinstance(head, Finishing):
            head = head.finish(values.numpy(), target.numpy())
            assert create("head", canonical(head)) == head, "what was seen must be options"
        answers = decoded(head, values.numpy(), facts)
        assert np.isfinite(answers).all()
        if isinstance(head, Decoding):
            assert answers.shape == (40, 1 + len(head.extras)), "one column a name"
        if isinstance(head, Layered):
            layer = head.layer(7, outputs.shape[1]).double()
            assert layer(torch.randn(5, 7, dtype=torch.float64)).shape == (5, outputs.shape[1])


def _check_losses(head: Any, outputs: torch.Tensor, target: torch.Tensor) -> None:
    losses = head.row_losses(outputs, target, None)
    assert losses.shape == (target.shape if head.nature.answers == "labels" else (40,)), "the loss is one number a row"
    assert torch.isfinite(losses).all()
    losses.sum().backward()
    assert torch.isfinite(outputs.grad).all()
    if not (isinstance(head, Joint) and head.joint):
        alone = torch.cat([head.row_losses(outputs[i : i + 1], target[i : i + 1], None) for i in range(40)])
        assert torch.allclose(alone, losses, rtol=1e-12, atol=1e-12), "a row's loss depends on other rows"
    large = (outputs.detach() * 1e3).requires_grad_()
    extreme = head.row_losses(large, target, None)
    assert torch.isfinite(extreme).all(), "large outputs overflow"
    extreme.sum().backward()
    assert torch.isfinite(large.grad).all(), "the gradient of large outputs overflows"


def _check_compared(head: Any, outputs: torch.Tensor, target: torch.Tensor) -> None:
    order = torch.randperm(len(target))
    for scale in (1.0, 1e3):
        rows = (outputs * scale).requires_grad_()
        losses = head.compared(rows, target, None)
        assert losses.shape == (len(target),), "the loss is one number a row"
        assert torch.isfinite(losses).all(), "large outputs overflow"
        losses.sum().backward()
        assert torch.isfinite(rows.grad).all(), "the gradient of large outputs overflows"
        again = head.compared(rows[order], target[order], None)
        assert torch.allclose(again, losses[order], atol=1e-9), "the order of rows matters"
    assert torch.isfinite(head.compared(outputs[:1], target[:1], None)).all(), "one row alone must do"


def _check_recall(head: Any, outputs: torch.Tensor, votes: torch.Tensor) -> None:
    told, rows = head.kept(30)
    assert create("head", canonical(told)) == told, "what was kept must be options"
    module = told.recall(outputs.shape[1]).double()
    module.fill(outputs[rows], votes[rows], torch.from_numpy(rows), None)
    answers = module(outputs[30:])
    assert answers.shape == (10, told.n_outputs(votes.shape[1]))
    p = told.probabilities(answers)
    assert p.shape == (10, votes.shape[1])
    assert torch.allclose(p.sum(1), torch.ones(10, dtype=torch.float64)), "probabilities do not sum to 1"
    other = told.recall(outputs.shape[1]).double()
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(outputs[30:]), answers), "a file of the rows gives other answers"


TASKS = (("type", 3), ("dysplasia", 1))


def check_aggregator(name: str) -> None:
    torch.manual_seed(0)
    module = build("aggregator", name).build(12, TASKS).double().eval()
    sizes = [1, 7, 30, 2]
    offsets = torch.tensor([0, *np.cumsum(sizes)])
    x = torch.randn(int(offsets[-1]), 12, dtype=torch.float64)
    coords = torch.randint(0, 5000, (len(x), 2))
    before = x.clone()
    with torch.inference_mode():
        packed = module(x, offsets, coords)
        assert packed.bags.shape in ((4, module.out_dim), (4, len(TASKS), module.out_dim))
        assert all(packed.direct[task].shape == (4, outputs) for task, outputs in TASKS if task in packed.direct)
        assert all(packed.parts[task].shape == (len(x), outputs) for task, outputs in TASKS if task in packed.parts)
        for b, (start, stop) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)):
            alone = module(x[start:stop], torch.tensor([0, stop - start]), coords[start:stop])
            assert torch.allclose(alone.bags[0], packed.bags[b], atol=1e-10), "a bag depends on the others"
            for task, answer in packed.direct.items():
                assert torch.allclose(alone.direct[task][0], answer[b], atol=1e-10), "an answer depends on the others"
            shuffle = torch.randperm(stop - start) + start
            mixed = module(x[shuffle], torch.tensor([0, stop - start]), coords[shuffle])
            assert torch.allclose(mixed.bags[0], packed.bags[b], atol=1e-10), "the order of tiles matters"
            for task, answer in mixed.direct.items():
                assert torch.allclose(answer[0], packed.direct[task][b], atol=1e-10), "the order of tiles matters"
            for task, parts in packed.parts.items():
                whole = parts[start:stop].sum(0) + packed.offset[task]
                assert torch.allclose(whole, packed.direct[task][b], atol=1e-10), "the parts do not sum to the answer"
            if packed.weights is not None:
                assert packed.weights.shape in ((len(x),), (len(x), len(TASKS)))
                shares = packed.weights[start:stop].sum(0)
                assert torch.allclose(shares, torch.ones_like(shares)), "shares do not sum to 1"
        again = module(x, offsets, coords)
        assert torch.equal(again.bags, packed.bags), "two calls in evaluation mode differ"
        assert all(torch.equal(again.direct[task], answer) for task, answer in packed.direct.items())
        assert torch.equal(x, before), "the module must not change the tiles"
    try:
        blind, said = module(x, offsets).bags, ""
    except UsageError as error:
        blind, said = packed.bags, error.message
    assert torch.isfinite(blind).all()
    assert not said or repr(name) in said, "the error of missing coordinates must name the aggregator"


def check_sharing(name: str) -> None:
    torch.manual_seed(0)
    maker = build("sharing", name)
    create("optimizer", maker.optimizer)
    for hidden in (0, 8):
        shape = SharingShape(width=12, hidden=hidden, dropout=0.5, names=("a", "b", "c"))
        module = maker.build(shape).double().eval()

        def answer(bags: torch.Tensor, module: Any = module) -> torch.Tensor:
            own = module.own(module.common(bags))
            assert all(x.shape == (len(bags), module.out_dim) for x in own)
            return torch.stack(list(own), dim=1)

        bags = torch.randn(5, 12, dtype=torch.float64)
        with torch.inference_mode():
            found = answer(bags)
            assert found.shape[1] == 3, "one result a task"
            each = answer(bags[:, None].expand(-1, 3, -1))
            assert torch.allclose(each, found, atol=1e-10), "the same vector for each task is the same as one for all"
            alone = torch.cat([answer(bag[None]) for bag in bags])
            assert torch.allclose(alone, found, atol=1e-10), "a bag depends on the others"
        penalty = module.penalty()
        assert penalty is None or (penalty.shape == () and penalty >= 0)
        single = maker.build(dataclasses.replace(shape, names=("a",))).double().eval()
        assert answer(bags, single).shape == (5, 1, single.out_dim), "one task must do, too"
        module.train()
        bags.requires_grad_()
        answer(bags).sum().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in (bags, *module.parameters()))


def check_balancing(name: str) -> None:
    maker = build("balancing", name)
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((3, 6))

    def run() -> list[list[float]]:
        """What the rule makes of some steps, one of them without labels of a task."""
        rule, found = maker.start(Setting(priors={"a": 1.0, "b": 0.7, "c": 2.0}, epoch=2, seed=1)), []
        for step, present in enumerate(("abc", "abc", "ac", "b", "abc", "abc")):
            losses = {key: torch.tensor(1.0 + "abc".index(key) - 0.1 * step, requires_grad=True) for key in present}
            if isinstance(rule, LossRule):
                total = rule.total(losses)
                assert total.shape == ()
                total.backward()
                weights = [0.0 if loss.grad is None else float(loss.grad) for loss in losses.values()]
                assert all(weight > 0 for weight in weights), "a task is not trained"
                rule.after_step(lambda losses=losses: {key: 0.9 * loss.detach() for key, loss in losses.items()})
            else:
                assert isinstance(rule, GramianRule), "a rule has total() and after_step(), or weights()"
                some = rows[["abc".index(key) for key in present]]
                weights = rule.weights(some @ some.T, {key: float(loss.detach()) for key, loss in losses.items()})
                assert weights.shape == (len(present),)
                assert np.isfinite(weights).all()
                if len(present) == 1:
                    np.testing.assert_allclose(weights, 1.0, err_msg="one task alone has nothing to balance")
                weights = weights.tolist()
            found.append(weights)
        return found

    assert run() == run(), "two runs with one seed differ: state is kept outside of the rule that start() makes"


def check_optimizer(name: str) -> None:
    build("optimizer", name)
    sharing = next((s for s in available("sharing") if plugin("sharing", s).factory.optimizer == name), "hard")
    config = TrainConfig(sharing=sharing, optimizer=name, hidden=8, dropout=0.0, device="cpu")
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    targets = {"yes": (x[:, 0] > 0).double().numpy(), "size": x[:, 1].double().numpy()}
    targets["size"] = np.where(np.arange(64) < 16, np.nan, targets["size"])
    objective = Objective(
        [Task(name="yes", kind="binary", classes=("n", "y")), Task(name="size", kind="regression")], targets
    )
    network = Network(
        Architecture(in_dim=6, aggregator="", hidden=8, dropout=0.0, outputs=objective.n_outputs(), sharing=sharing)
    )
    data = Data(targets=objective.tensor(targets), pooled=x)
    descent = torch.optim.AdamW(network.parameters(), lr=0.01)
    stepper = start_stepper(network, objective, data, config, descent, seed=0)
    losses = []
    for step in range(60):
        batch = make_batch(network, objective, data, np.arange(16) + 16 * (step % 4))
        loss = stepper.step(batch)
        assert loss.shape == ()
        assert not loss.requires_grad
        losses.append(float(loss))
    assert np.mean(losses[-4:]) < 0.7 * np.mean(losses[:4]), "60 steps hardly lower the loss"


def check_ood(name: str) -> None:
    detector = build("ood", name)
    torch.manual_seed(0)
    # Known and foreign features differ in place and in direction: some detectors look at one of them only.
    here, there = torch.tensor([4.0, 0.0]).repeat_interleave(8), torch.tensor([0.0, 4.0]).repeat_interleave(8)
    train, labels = torch.randn(300, 16) + here, torch.arange(300) % 3
    for given in (labels, None):
        state = detector.fit(train, given)
        assert all(isinstance(value, torch.Tensor) for value in state.values()), "the state must be plain tensors"
        near, far = torch.randn(100, 16) + here, torch.randn(100, 16) + there
        inside, outside = detector.score(state, near), detector.score(state, far)
        assert inside.shape == (100,)
        assert inside.dtype == torch.float32
        assert outside.median() > inside.max(), "higher must mean more out of distribution"
        split = torch.cat([detector.score(state, near[:3]), detector.score(state, near[3:])])
        assert torch.allclose(split, inside, rtol=1e-4, atol=1e-5), "a score depends on its batch"
        narrow = detector.fit(train[:10].repeat(1, 4), None)
        assert torch.isfinite(detector.score(narrow, near.repeat(1, 4))).all(), "fewer rows than columns"


def check_explain(name: str) -> None:
    explainer = build("explain", name)
    assert isinstance(explainer.signed, bool)
    # Linear behind the pooling, where every explanation has a meaning.
    shapes = Architecture(in_dim=12, aggregator="abmil(hidden=8, attention=4)", hidden=0, dropout=0.0, outputs=TASKS)
    network = for_questions(Network(shapes, 3))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(9, 12, dtype=torch.float64, generator=generator)
    asked = Question(network=network, x=x, coords=None, task="type", readout=torch.eye(3, dtype=torch.float64))
    scores = explainer.scores(asked)
    assert scores.shape == (9, 3)
    assert scores.dtype == torch.float64
    assert torch.isfinite(scores).all()
    assert torch.equal(explainer.scores(asked), scores), "two calls differ"
    order = torch.randperm(9, generator=generator)
    shuffled = explainer.scores(dataclasses.replace(asked, x=x[order]))
    assert torch.allclose(shuffled, scores[order], atol=1e-10), "the order of tiles matters"
    turned = explainer.scores(dataclasses.replace(asked, readout=-asked.readout))
    wanted = -scores if explainer.signed else scores
    assert torch.allclose(turned, wanted, atol=1e-10), "a score that is signed turns with the read-out"
    assert explainer.scores(dataclasses.replace(asked, x=x[:1])).shape == (1, 3), "one tile alone must do"
    assert not any(p.requires_grad for p in network.parameters()), "the network must stay as it was"


CHECKS: Mapping[str, Callable[[str], None]] = {
    "reader": check_reader,
    "tissue": check_tissue,
    "stain": check_stain,
    "augment": check_augment,
    "quality": check_quality,
    "backbone": check_backbone,
    "head": check_head,
    "aggregator": check_aggregator,
    "sharing": check_sharing,
    "balancing": check_balancing,
    "optimizer": check_optimizer,
    "ood": check_ood,
    "explain": check_explain,
}
assert CHECKS.keys() == PLUGIN_FOLDERS.keys()
