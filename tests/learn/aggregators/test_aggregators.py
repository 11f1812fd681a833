"""What single aggregators promise beside the laws of all."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from histotl.core.errors import UsageError
from histotl.core.registry import create
from histotl.learn.aggregators import acmil, dtfd
from histotl.learn.aggregators.base import split_outputs, task_means
from histotl.learn.segments import owners, segment_ranks
from tests.learn.aggregators.specs import TASKS, build, pack


class Recorder:
    """A judge that keeps what it was asked, and calls the sum of squares a loss."""

    def __init__(self, classes: Mapping[str, list[int]]) -> None:
        self.asked: list[tuple[Mapping[str, torch.Tensor], torch.Tensor | None]] = []
        self._classes = classes

    def loss(self, outputs: Mapping[str, torch.Tensor], owner: torch.Tensor | None = None) -> torch.Tensor:
        self.asked.append((outputs, owner))
        return torch.stack([answer.square().mean() for answer in outputs.values()]).sum()

    def classes(self, task: str) -> torch.Tensor | None:
        return torch.tensor(self._classes[task]) if task in self._classes else None


def test_abmil_by_hand() -> None:
    module, (x, offsets, _) = build("abmil(hidden=8, attention=4)"), pack([4])
    h = torch.relu(x @ module.embed.linear.weight.T + module.embed.linear.bias)  # type: ignore[attr-defined]
    gates = h @ module.attend.gates.weight.T + module.attend.gates.bias  # type: ignore[attr-defined]
    score = (torch.tanh(gates[:, :4]) * torch.sigmoid(gates[:, 4:])) @ module.attend.score.weight[0]  # type: ignore[attr-defined]
    weights = torch.exp(score) / torch.exp(score).sum()
    found = module(x, offsets)
    torch.testing.assert_close(found.weights, weights)
    torch.testing.assert_close(found.bags[0], (weights[:, None] * h).sum(dim=0))


def test_abmil_with_several_rows() -> None:
    x, offsets, _ = pack([4, 2])
    joined, per_task = (build(f"abmil(hidden=8, attention=4, rows={rows})") for rows in ("3", "'task'"))
    assert joined.out_dim == 24
    assert joined(x, offsets).bags.shape == (2, 24)
    assert joined(x, offsets).weights.shape == (6,)  # type: ignore[union-attr]
    found = per_task(x, offsets)
    assert found.bags.shape == (2, len(TASKS), 8)
    assert found.weights is not None
    assert found.weights.shape == (6, len(TASKS))
    assert (found.weights[:, 0] - found.weights[:, 1]).abs().max() > 1e-4, "each task weighs the tiles in its own way"


def test_spread_out_attention_is_worth_its_entropy() -> None:
    module, (x, offsets, _) = build("abmil(hidden=8, attention=4, entropy=0.5)"), pack([4, 1])
    found = module(x, offsets)
    weights = found.weights
    assert weights is not None
    entropy = -(weights[:4] * weights[:4].log()).sum() / 2  # the bag of one tile has none
    torch.testing.assert_close(module.auxiliary(found, Recorder({})), -0.5 * entropy)  # type: ignore[attr-defined]


@pytest.mark.parametrize("branches", ["single", "multi"])
def test_clam_labels_the_most_and_the_least_attended_tiles(branches: str) -> None:
    module = build(f"clam(hidden=8, attention=4, k=2, branches={branches!r})")
    x, offsets, _ = pack([1, 3, 9, 5])
    found, judge = module(x, offsets), Recorder({"type": [0, 2, -1, 1]})
    loss = module.auxiliary(found, judge)  # type: ignore[attr-defined]
    # By hand: bags of 3 and 5 tiles are labelled and large enough for 1 and 2 tiles of either kind.
    h, scores = found.state["h"], found.state["scores"]
    logits = h @ module.instance.weight.T + module.instance.bias  # type: ignore[attr-defined]
    terms = []
    for bag, label, k in ((1, 2, 1), (3, 1, 2)):
        rows = torch.arange(int(offsets[bag]), int(offsets[bag + 1]))
        order = rows[scores[rows, label if branches == "multi" else 0].argsort(descending=True)]
        top, bottom = set(order[:k].tolist()), set(order[-k:].tolist())
        assert not top & bottom
        terms += [-torch.nn.functional.logsigmoid(logits[i, label]) for i in top]
        terms += [-torch.nn.functional.logsigmoid(-logits[i, label]) for i in bottom]
    torch.testing.assert_close(loss, torch.stack(terms).mean() * 0.3 / 0.7)


def test_clam_needs_no_label_and_no_task_with_classes() -> None:
    module, (x, offsets, _) = build("clam(hidden=8, attention=4)"), pack([1, 5])
    for classes in ({}, {"type": [-1, -1]}, {"type": [2, -1]}):
        loss = module.auxiliary(module(x, offsets), Recorder(classes))  # type: ignore[attr-defined]
        assert loss == 0, "one tile cannot be both the most and the least attended"


def test_dsmil_trains_its_maximum_with_the_labels() -> None:
    module, (x, offsets, _) = build("dsmil(hidden=8, query=4)"), pack([3, 4])
    judge = Recorder({})
    module.auxiliary(module(x, offsets), judge)  # type: ignore[attr-defined]
    h = torch.relu(x @ module.embed.linear.weight.T + module.embed.linear.bias)  # type: ignore[attr-defined]
    scores = h @ module.score.weight.T + module.score.bias  # type: ignore[attr-defined]
    highest = torch.stack([part.amax(0) for part in scores.split([3, 4])])
    (asked, owner) = judge.asked[0]
    assert owner is None
    torch.testing.assert_close(torch.cat([asked["type"], asked["dysplasia"]], dim=1), highest)


@pytest.mark.parametrize("distil", ["afs", "maxmin"])
def test_dtfd_answers_for_every_pseudo_bag(distil: str) -> None:
    module, (x, offsets, _) = build(f"dtfd(hidden=8, attention=4, groups=3, distil={distil!r})"), pack([2, 7])
    judge = Recorder({})
    module.auxiliary(module(x, offsets), judge)  # type: ignore[attr-defined]
    asked, owner = judge.asked[0]
    assert owner is not None
    assert owner.tolist() == [0, 0, 1, 1, 1], "as many pseudo-bags as tiles where there are fewer"
    assert asked["type"].shape == (5, 3)


def test_dtfd_deals_tiles_out_evenly_by_chance_only_while_training() -> None:
    offsets = torch.tensor([0, 2, 9])
    order, groups, bags = dtfd._deal(torch.rand(9), offsets, 3)
    assert sorted(order.tolist()) == list(range(9))
    assert torch.diff(groups).tolist() == [1, 1, 3, 2, 2]
    assert bags.tolist() == [0, 2, 5]
    assert set(order[:2].tolist()) == {0, 1}
    module, (x, offsets, _) = build("dtfd(hidden=8, attention=4)"), pack([30])
    module.train()  # type: ignore[attr-defined]
    module.embed.dropout = 0.0  # type: ignore[attr-defined]
    assert not torch.equal(module(x, offsets).bags, module(x, offsets).bags)


def test_acmil_leaves_out_only_the_most_attended_and_never_all() -> None:
    module, (x, offsets, _) = build("acmil(hidden=8, attention=4, mask_drop=1.0, mask_top=4)"), pack([1, 3, 9])
    module.train()  # type: ignore[attr-defined]
    rows = module(x, offsets).state["rows"]
    assert [(part > 0).sum(0).tolist() for part in rows.split([1, 3, 9])] == [[1] * 5, [1] * 5, [5] * 5]
    scores = module.attend(module.embed(x))  # type: ignore[attr-defined]
    out = module._left_out(scores, offsets)  # type: ignore[attr-defined]
    assert (segment_ranks(scores[:, 0], offsets)[out[:, 0]] < 4).all()
    module.eval()  # type: ignore[attr-defined]
    assert (module(x, offsets).state["rows"] > 0).all()


def test_likeness_of_rows_is_their_mean_cosine() -> None:
    rows = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]]).double()
    found = acmil._likeness(rows, torch.tensor([0, 2, 4]))
    torch.testing.assert_close(found, torch.tensor((1 + 0 + 0 + 3) / 6).double())
    judge, (x, offsets, _) = Recorder({}), pack([6, 5])
    module = build("acmil(hidden=8, attention=4, rows=3)")
    module.train()  # type: ignore[attr-defined]
    module.auxiliary(module(x, offsets), judge)  # type: ignore[attr-defined]
    assert len(judge.asked) == 3, "every row answers"


@pytest.mark.parametrize("pool", ["max", "lse"])
def test_a_tile_more_never_lowers_a_monotone_answer(pool: str) -> None:
    module = build(f"instance(hidden=8, concepts=4, monotone=True, pool={pool!r})")
    for seed in range(20):
        x = torch.randn(6, 6, generator=torch.Generator().manual_seed(seed)).double() * 3
        less, more = module(x[:5], torch.tensor([0, 5])), module(x, torch.tensor([0, 6]))
        assert all((more.direct[name] >= less.direct[name] - 1e-12).all() for name, _ in TASKS)


def test_instance_pools_the_answers_of_tiles() -> None:
    x, offsets, _ = pack([5, 2])
    for pool, by_hand in (
        ("max", lambda part: part.amax(0)),
        ("mean", lambda part: part.mean(0)),
        ("topk", lambda part: part.sort(dim=0, descending=True).values[:3].mean(0)),
        ("lse", lambda part: (8 * part).exp().mean(0).log() / 8),
    ):
        module = build(f"instance(hidden=8, k=3, pool={pool!r})")
        scores = module.score(module.embed(x))  # type: ignore[attr-defined]
        wanted = torch.stack([by_hand(part) for part in scores.split([5, 2])]) + module.bias  # type: ignore[attr-defined]
        torch.testing.assert_close(torch.cat(list(module(x, offsets).direct.values()), dim=1), wanted)


def test_a_hierarchy_of_one_region_is_two_poolings_in_a_row() -> None:
    module, (x, offsets, coords) = build("hierarchical(hidden=8, attention=4, region=99)"), pack([6])
    h = module.embed(x)  # type: ignore[attr-defined]
    inner = module.inner(h).softmax(0)  # type: ignore[attr-defined]
    torch.testing.assert_close(module(x, offsets, coords).bags, module.lift((inner * h).sum(0))[None])  # type: ignore[attr-defined]


def test_outputs_are_cut_task_by_task() -> None:
    values = torch.arange(8.0).view(2, 4)
    assert {name: part.tolist() for name, part in split_outputs(values, TASKS).items()} == {
        "type": [[0.0, 1.0, 2.0], [4.0, 5.0, 6.0]],
        "dysplasia": [[3.0], [7.0]],
    }
    assert task_means(values, TASKS).tolist() == [[1.0, 3.0], [5.0, 7.0]]
    assert owners(torch.tensor([0, 2, 3])).tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("spec", "shown"),
    [
        ("abmil(hidden=0)", "hidden=0"),
        ("abmil(rows=0)", "rows=0"),
        ("abmil(entropy=-1.0)", "entropy=-1.0"),
        ("acmil(mask_drop=2.0)", "mask_drop=2.0"),
        ("additive(dropout=1.0)", "dropout=1.0"),
        ("clam(weight=1.0)", "weight=1.0"),
        ("clam(k=0)", "k=0"),
        ("dsmil(query=0)", "query=0"),
        ("dtfd(groups=0)", "groups=0"),
        ("graph(hops=0)", "hops=0"),
        ("hierarchical(region=0)", "region=0"),
        ("instance(monotone=True, pool='mean')", "pool='mean'"),
        ("lse(sharpness=0.0)", "sharpness=0.0"),
        ("quantile(levels=(2.0,))", "levels="),
        ("task_tokens(layers=0)", "layers=0"),
        ("topk(k=0)", "k=0"),
        ("transformer(hidden=10, heads=4)", "heads=4"),
        ("transmil(kernel=4)", "kernel=4"),
    ],
)
def test_wrong_sizes_are_refused_with_the_value_seen(spec: str, shown: str) -> None:
    with pytest.raises(UsageError, match=shown) as caught:
        create("aggregator", spec)
    assert caught.value.hint
