"""A small run whose steps can be made one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from histotl.learn._trainer import Data, make_batch, start_stepper
from histotl.learn.batch import Batch
from histotl.learn.config import TrainConfig
from histotl.learn.network import Architecture, Network
from histotl.learn.objective import Objective
from histotl.learn.optimizers.base import Stepper
from histotl.learn.seeds import seeded
from histotl.learn.task import Task

WIDTH = 8
YES = Task(name="yes", kind="binary", classes=("n", "y"))
SIZE = Task(name="size", kind="regression")
TYPE = Task(name="type", kind="multiclass", classes=("a", "b", "c"))
ALL = (YES, SIZE, TYPE)


def rows(n: int = 96, seed: int = 0) -> tuple[torch.Tensor, dict[str, np.ndarray]]:
    """Features and labels that depend on them."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, WIDTH))
    targets = {
        "yes": (x[:, 0] + 0.3 * rng.normal(size=n) > 0).astype(float),
        "size": x[:, 0] + x[:, 1],
        "type": np.digitize(x[:, 2], (-0.5, 0.5)).astype(float),
    }
    return torch.from_numpy(x.astype(np.float32)), targets


@dataclass(eq=False)
class Small:
    """A network at its first weights, its data, and what steps it."""

    network: Network
    objective: Objective
    data: Data
    stepper: Stepper
    config: TrainConfig

    def batch(self, chosen: np.ndarray) -> Batch:
        return make_batch(self.network, self.objective, self.data, chosen)

    def train(self, steps: int = 12, size: int = 32) -> list[float]:
        """Losses of the steps on rows in their order, with dropout from a seed."""
        n = len(self.data.targets)
        with seeded(5):
            self.network.train()
            parts = ((np.arange(size) + step * size) % n for step in range(steps))
            return [float(self.stepper.step(self.batch(part))) for part in parts]

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: value.detach().clone() for name, value in self.network.named_parameters()}


def small(
    tasks: Sequence[Task] = ALL,
    *,
    hide: Sequence[str] = (),
    seed: int = 0,
    torch_optimizer: str = "AdamW",
    **settings: object,
) -> Small:
    """Set up a run.

    Args:
        tasks: Of the network.
        hide: Names of tasks of which every label is missing in all steps.
        seed: Of weights and whatever is drawn.
        torch_optimizer: What makes the steps: its name in ``torch.optim``.
        **settings: Of :class:`TrainConfig`.
    """
    config = TrainConfig(**({"hidden": 16, "dropout": 0.5, "device": "cpu"} | settings))  # type: ignore[arg-type]
    x, targets = rows()
    objective = Objective(tasks, targets)
    network = Network(
        Architecture(
            in_dim=WIDTH,
            aggregator="",
            hidden=config.hidden,
            dropout=config.dropout,
            outputs=objective.n_outputs(),
            sharing=config.sharing,
        ),
        seed,
    )
    seen = {name: np.full_like(y, np.nan) if name in hide else y for name, y in targets.items()}
    data = Data(targets=objective.tensor(seen), pooled=x)
    make = getattr(torch.optim, torch_optimizer)
    descent = make(network.parameters(), lr=0.01)
    stepper = start_stepper(network, objective, data, config, descent, seed=seed)
    return Small(network=network, objective=objective, data=data, stepper=stepper, config=config)


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Whether all weights are equal, bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
