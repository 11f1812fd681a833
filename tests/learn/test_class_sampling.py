"""Steps that draw equally from the classes of a task, whose loss then needs no weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from histotl.core.errors import UsageError
from histotl.learn._trainer import Hooks
from histotl.learn.batch import Batch
from histotl.learn.config import TrainConfig
from histotl.learn.fit import Labelled, fit
from histotl.learn.objective import Objective
from histotl.learn.strata import Strata, strata_of, stratified
from histotl.learn.sweep import Entry, sweep
from histotl.learn.task import Task
from histotl.learn.weights import sampled_task

TYPE = Task(name="type", kind="multiclass", classes=("a", "b", "c"))
DRAWN = replace(TYPE, class_balance="sampled")
YES = Task(name="yes", kind="binary", classes=("n", "y"))
SIZE = Task(name="size", kind="regression")
CONFIG = TrainConfig(class_balance="sampled", device="cpu")
RARE = np.repeat([0.0, 1.0, 2.0, np.nan], [150, 30, 6, 62])


def steps(made: Strata | None, size: int, count: int) -> list[np.ndarray]:
    assert made is not None
    drawn = stratified(made, size, np.random.default_rng(0))
    return [next(drawn) for _ in range(count)]


def test_every_step_draws_equally_from_every_class() -> None:
    found = steps(strata_of(CONFIG, None, {"type": RARE}, [TYPE]), 16, 600)
    assert all(len(step) == 16 for step in found)
    counts = np.array([[(RARE[step] == k).sum() for k in range(3)] for step in found])
    assert (counts.max(axis=1) - counts.min(axis=1)).max() <= 1
    assert np.ptp(counts.sum(axis=0)) <= 3
    # A quarter of the cases has no label of the task: they come in their turn, each as often as every other.
    seen = np.bincount(np.concatenate(found), minlength=len(RARE))
    assert abs(seen[np.isnan(RARE)].sum() / (600 * 16) - 0.25) < 0.01
    for group in (*(k == RARE for k in range(3)), np.isnan(RARE)):
        assert np.ptp(seen[group]) <= 1


def test_classes_that_training_lacks_take_no_places_and_votes_count_by_their_majority() -> None:
    target = np.repeat([0.0, 2.0], [20, 4])
    found = steps(strata_of(CONFIG, None, {"type": target}, [TYPE]), 8, 50)
    assert all((target[step] == 2).sum() == 4 for step in found)
    votes = np.eye(3)[np.repeat([0, 2], [20, 4])] * 0.8 + 0.1
    voted = strata_of(CONFIG, None, {"type": votes}, [replace(TYPE, votes=("a", "b", "c"), column="")])
    assert voted is not None
    assert voted.groups.tolist() == [0] * 20 + [1] * 4


def test_one_task_is_drawn_by_its_classes() -> None:
    assert sampled_task([TYPE, SIZE], "sampled") == "type"
    assert sampled_task([DRAWN, YES], "balanced") == "type"
    assert sampled_task([DRAWN, YES], "sampled") == "type"
    assert sampled_task([SIZE], "sampled") == sampled_task([TYPE, YES], "balanced") == ""
    site = Task(name="site", kind="multiclass", classes=("x", "y", "z"), adversary=1.0)
    assert sampled_task([TYPE, site], "sampled") == "type"
    with pytest.raises(UsageError, match="the classes of 2 tasks: type, yes") as caught:
        sampled_task([TYPE, YES], "sampled")
    assert "of one task" in caught.value.hint
    with pytest.raises(UsageError, match="'size' has class_balance='sampled', and not one class a case"):
        sampled_task([replace(SIZE, class_balance="sampled")], "none")


@pytest.mark.parametrize(
    "other",
    [{"ensure_tasks": 2}, {"tiles_per_step": 100}, {"sampling": "dataset_balanced", "cohort_column": "cohort"}],
)
def test_other_laws_of_steps_are_refused(other: dict[str, object]) -> None:
    config = replace(CONFIG, **other)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="draw equally from the classes of task 'type', and --") as caught:
        strata_of(config, np.zeros(len(RARE), dtype=np.int64), {"type": RARE}, [TYPE])
    assert "balanced" in caught.value.hint


def test_a_step_holds_one_of_each_class() -> None:
    made = strata_of(CONFIG, None, {"type": RARE}, [TYPE])
    assert made is not None
    with pytest.raises(UsageError, match="cannot hold one of each of 3 classes of task 'type'"):
        made.check(2)


def test_the_loss_weighs_classes_where_they_come_as_they_are_and_not_where_they_were_drawn_equally() -> None:
    targets = {"type": RARE, "yes": np.arange(len(RARE)) % 4 // 3 * 1.0}
    drawn = Objective([DRAWN, YES], targets)
    weighed, plain = (Objective([TYPE, YES], targets, class_balance=b) for b in ("balanced", "none"))
    outputs = {"type": torch.randn(len(RARE), 3), "yes": torch.randn(len(RARE), 1)}
    tensor = drawn.tensor(targets)
    looked, learnt = drawn.losses(outputs, tensor), drawn.as_drawn().losses(outputs, tensor)
    assert looked["type"] == weighed.losses(outputs, tensor)["type"]
    assert learnt["type"] == plain.losses(outputs, tensor)["type"]
    # Other tasks keep their weights.
    assert looked["yes"] == learnt["yes"] == weighed.losses(outputs, tensor)["yes"]
    assert weighed.as_drawn() is weighed
    assert drawn.facts["type"].implied == pytest.approx([1 / 3] * 3)
    assert drawn.priors["type"] == weighed.priors["type"]


@pytest.mark.parametrize("aggregator", ["", "abmil(hidden=8, attention=4, dropout=0.0)"])
def test_a_network_that_sees_nothing_answers_with_equal_shares(
    labelled: Callable[..., Labelled], quick: TrainConfig, aggregator: str
) -> None:
    """Features are the same everywhere: what is learnt is how often the classes come.

    Seen in the last step, too: a checkpoint may be the network of the beginning, which knows nothing of classes.
    """
    target = np.repeat([0.0, 1.0, 2.0], [80, 12, 4])
    made = labelled(np.ones((96, 4)), {"type": target})
    seen: list[torch.Tensor] = []
    last: list[np.ndarray] = []

    def watch(batch: Batch) -> None:
        seen.append(batch._targets[:, 0])
        last[:] = [batch.run().tasks["type"].softmax(dim=1)[0].detach().numpy()]

    shares, learnt = {}, {}
    for balance in ("sampled", "none"):
        config = replace(quick, class_balance=balance, batch_size=24, dropout=0.0)  # type: ignore[arg-type]
        fitted = fit(made, made, tasks=[TYPE], config=config, aggregator=aggregator, hooks=Hooks(watch=watch))
        network, bags = fitted.members[0], made.bags.gather(np.arange(3))
        shares[balance] = network(bags.x, bags.offsets).tasks["type"].softmax(dim=1)[0].detach().numpy()
        learnt[balance] = last[0]
        if balance == "sampled":
            assert all(torch.bincount(step.long(), minlength=3).tolist() == [8, 8, 8] for step in seen)
    for found in (shares, learnt):
        np.testing.assert_allclose(found["sampled"], 1 / 3, atol=0.03)
        np.testing.assert_allclose(found["none"], np.array([80, 12, 4]) / 96, atol=0.06)


def test_networks_trained_together_are_drawn_so_too(
    labelled: Callable[..., Labelled], quick: TrainConfig, drawn: list[np.ndarray]
) -> None:
    target = np.repeat([0.0, 1.0, 2.0], [60, 24, 12])
    made = labelled(np.ones((96, 4)), {"type": target})
    fold = np.arange(96) % 4
    entries = [Entry(train=np.flatnonzero(fold > 1), val=np.flatnonzero(fold == k), seed=k) for k in range(2)]
    found = sweep(made, entries, tasks=[DRAWN], config=replace(quick, batch_size=9, dropout=0.0))
    learnt = target[fold > 1]
    made_steps = [learnt[rows] for rows in drawn if len(rows) == 9]
    assert len(made_steps) >= 60
    assert all(np.bincount(step.astype(int), minlength=3).tolist() == [3, 3, 3] for step in made_steps)
    packed = made.bags.gather(np.arange(1))
    for each in found:
        assert each.facts["type"].implied == pytest.approx([1 / 3] * 3)
        shares = each.network(packed.x, packed.offsets).tasks["type"].softmax(dim=1)[0].detach().numpy()
        np.testing.assert_allclose(shares, 1 / 3, atol=0.04)
        # In units of the best constant answer to classes that come equally often, and without weights on top of that.
        assert each.history[-1]["train"] == pytest.approx(1, abs=0.02)
