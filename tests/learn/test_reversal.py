from __future__ import annotations

import numpy as np
import pytest
import torch

from histotl.core.errors import UsageError
from histotl.learn.network import Architecture, Network
from histotl.learn.objective import Objective
from histotl.learn.task import Task, parse_task

SITE = Task(name="site", kind="binary", classes=("A", "B"), adversary=0.5)


def network(*, adversary: bool) -> Network:
    return Network(
        Architecture(
            in_dim=5,
            aggregator="",
            hidden=4,
            dropout=0.0,
            outputs=(("yes", 1), ("site", 1)),
            adversaries=(("site", 0.5),) if adversary else (),
        ),
        seed=3,
    )


def test_the_adversary_learns_as_always_and_what_is_shared_gets_the_opposite() -> None:
    x, site = torch.randn(20, 5, generator=torch.Generator().manual_seed(0)), (torch.arange(20) % 2).double().numpy()
    tasks = (Task(name="yes", kind="binary", classes=("n", "y")), SITE)
    targets = {"yes": np.roll(site, 3), "site": site}
    objective = Objective(tasks, targets)
    assert objective.adversaries() == (("site", 0.5),)
    found = {}
    for adversary in (False, True):
        made = network(adversary=adversary)
        outputs = made.answer(x)
        loss = objective.losses(outputs, objective.tensor(targets))["site"]
        shared, own = list(made.sharing.parameters()), list(made.heads[1].parameters())  # type: ignore[attr-defined]
        found[adversary] = (outputs["site"], torch.autograd.grad(loss, own + shared), len(own))
    assert torch.equal(found[False][0], found[True][0])
    (_, plain, n), (_, turned, _) = found[False], found[True]
    for before, after in zip(plain[:n], turned[:n], strict=True):
        assert torch.equal(before, after)
    for before, after in zip(plain[n:], turned[n:], strict=True):
        torch.testing.assert_close(after, -0.5 * before)
    assert any((gradient != 0).any() for gradient in plain[n:])


def test_an_adversary_is_part_of_the_text_and_needs_a_strength() -> None:
    assert parse_task(str(SITE)) == SITE
    assert SITE.is_helper
    with pytest.raises(UsageError, match="adversary is -1"):
        Task(name="x", kind="regression", adversary=-1.0)
