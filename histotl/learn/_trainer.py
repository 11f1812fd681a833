"""One member's training loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
import torch

from histotl.core.registry import create
from histotl.learn._balancer import Balancer
from histotl.learn.aggregators.base import Aggregated
from histotl.learn.ahead import read_ahead
from histotl.learn.bags import Bags, Packed
from histotl.learn.balancing.base import Balancing, FromFunction, Setting, Weighting
from histotl.learn.batch import Batch
from histotl.learn.config import TrainConfig
from histotl.learn.network import Network, Output, evaluating
from histotl.learn.objective import Objective
from histotl.learn.optimizers.base import Optimizer, Run, Stepper
from histotl.learn.sampling import balanced_batches, batches, fill
from histotl.learn.schedule import rate_factor
from histotl.learn.seeds import seeded
from histotl.learn.sharing.base import Sharing
from histotl.learn.stopping import has_stalled
from histotl.learn.strata import Strata, stratified

CHECKPOINTS = 20
"""Looks at the validation set in one run."""

CHECK_ROWS = 16384
"""Tiles in one pass over the validation set."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Data:
    """What the loop draws batches from.

    Args:
        targets: float32 (B, t) on the training device.
        pooled: float32 (B, d) bag vectors, when pooling has no parameters.
        bags: The bags otherwise.
        mixed: Tiles of the bags are drawn from their augmented views too.
        covariates: float32 (B, c) on the training device: what is known of each bag; None for nothing.
        strata: What every step is to hold some of; None for nothing special.
    """

    targets: torch.Tensor
    pooled: torch.Tensor | None = None
    bags: Bags | None = None
    mixed: bool = False
    covariates: torch.Tensor | None = None
    strata: Strata | None = None

    def vectors(self) -> torch.Tensor:
        """The pooled vectors."""
        if self.pooled is None:
            raise ValueError("these bags are pooled by a trained aggregator")
        return self.pooled

    def batch_size(self, config: TrainConfig) -> int:
        """Bags in one step: as asked, else 16 bags, or an eighth of the rows within 16 and 128."""
        n = len(self.targets)
        # Views of single rows cannot be pooled before, but are as small as pooled ones.
        are_rows = self.pooled is not None or (self.mixed and self.bags is not None and len(self.bags.rows) == n)
        auto = min(128, max(16, n // 8)) if are_rows else 16
        return min(n, config.batch_size or auto)

    def steps(self, config: TrainConfig) -> int:
        """Optimiser steps of one run."""
        wanted = config.epochs * self.steps_a_pass(config)
        return min(config.max_steps, max(config.min_steps, wanted))

    def steps_a_pass(self, config: TrainConfig) -> int:
        """Optimiser steps in which every bag comes once (but for what does not fill a step), where all come alike."""
        sizes = self.tiles(config)
        if sizes is None:
            return len(self.targets) // self.batch_size(config)
        return len(fill(sizes, config.tiles_per_step, np.arange(len(sizes))))

    def tiles(self, config: TrainConfig) -> npt.NDArray[np.int64] | None:
        """Tiles that each bag gives to a step; None where steps hold a number of bags."""
        if self.bags is None or not config.tiles_per_step:
            return None
        return np.minimum(self.bags.sizes, config.max_tiles)

    def check(self, config: TrainConfig) -> None:
        """Refuse steps that cannot hold what they are to.

        Raises:
            UsageError: Says what is too few.
        """
        if self.strata is not None:
            self.strata.check(self.batch_size(config))

    def stream(
        self, config: TrainConfig, rng: np.random.Generator
    ) -> Iterator[tuple[npt.NDArray[np.int64], torch.Tensor | Packed]]:
        """Endless batches, and what is drawn for each; tiles are read while the step before is computed."""
        sizes = self.tiles(config)
        if self.strata is not None:
            chosen = stratified(self.strata, self.batch_size(config), rng)
        elif sizes is None:
            chosen = batches(len(self.targets), self.batch_size(config), rng)
        else:
            chosen = balanced_batches(sizes, config.tiles_per_step, rng)
        if self.pooled is not None:
            return ((rows, self.draw(rows)) for rows in chosen)
        return read_ahead(chosen, lambda rows: self.draw(rows, max_tiles=config.max_tiles, rng=rng))

    def draw(
        self, rows: npt.NDArray[np.int64], *, max_tiles: int = 0, rng: np.random.Generator | None = None
    ) -> torch.Tensor | Packed:
        """Pooled vectors of some bags, or their tiles; of more than ``max_tiles`` as many are drawn, 0 for all."""
        if self.pooled is not None:
            return self.pooled[torch.from_numpy(rows).to(self.pooled.device)]
        if self.bags is None:
            raise ValueError("neither vectors nor bags")
        return self.bags.gather(rows, max_tiles=max_tiles, rng=rng, mixed=self.mixed)

    def pool(self, network: Network, drawn: torch.Tensor | Packed) -> Aggregated:
        """What the network's aggregator makes of them."""
        if isinstance(drawn, torch.Tensor):
            return Aggregated(bags=drawn)
        device = self.targets.device
        coords = None if drawn.coords is None else drawn.coords.to(device)
        return network.pool(drawn.x.to(device), drawn.offsets, coords)

    def known(self, rows: npt.NDArray[np.int64]) -> torch.Tensor | None:
        """What is known of some bags, (b, c)."""
        return None if self.covariates is None else self.covariates[torch.from_numpy(rows).to(self.covariates.device)]

    def outputs(self, network: Network, rows: npt.NDArray[np.int64]) -> Output:
        """Outputs of the network on all tiles of some bags."""
        return network.respond(self.pool(network, self.draw(rows)), covariates=self.known(rows))

    def parts(self) -> Iterator[npt.NDArray[np.int64]]:
        """All bags in blocks that fit into one pass."""
        if self.bags is not None:
            yield from self.bags.chunks(CHECK_ROWS)
        else:
            yield from np.array_split(np.arange(len(self.targets)), -(-len(self.targets) // CHECK_ROWS))


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """What a caller in Python may add to the settings of training.

    Args:
        weighting: Gramian of the tasks' gradients -> weights, in place of the balancing rule.
        watch: Called with every batch before its step is made; it must leave the network as it is.
    """

    weighting: Weighting | None = None
    watch: Callable[[Batch], None] | None = None


NO_HOOKS = Hooks()


def look_steps(steps: int) -> set[int]:
    """Steps after which the validation set is looked at."""
    return {math.ceil(steps * (i + 1) / CHECKPOINTS) for i in range(CHECKPOINTS)}


def train_one(
    network: Network,
    objective: Objective,
    data: Data,
    check: Data,
    config: TrainConfig,
    *,
    rate: float,
    seed: int,
    hooks: Hooks = NO_HOOKS,
) -> tuple[float, list[dict[str, object]]]:
    """Train in place; the network ends with the averaged weights of the checkpoint of least validation loss.

    Returns:
        That loss, and one entry a checkpoint.
    """
    steps, rng, learning = data.steps(config), np.random.default_rng(seed), objective.as_drawn()
    descent, schedule = _descent(network, config, rate, steps)
    stepper = start_stepper(network, objective, data, config, descent, seed=seed, weighting=hooks.weighting)
    looks = look_steps(steps)
    average = [p.detach().clone() for p in network.parameters()]
    best, kept, history, seen = math.inf, average, [], []
    mode = network.training
    with seeded(seed):
        network.train()
        for step, (rows, drawn) in zip(range(1, steps + 1), data.stream(config, rng), strict=False):
            batch = batch_of(network, learning, data, rows, drawn)
            if hooks.watch is not None:
                hooks.watch(batch)
            seen.append(stepper.step(batch))
            schedule(step)
            _average(average, network, min(config.ema, (1 + step) / (10 + step)))
            if step in looks:
                found = _look(network, average, objective, check)
                total = float(objective.total(found))
                entry = {name: round(float(value), 6) for name, value in found.items()}
                history.append(
                    {"step": step, "train": float(torch.stack(seen).mean()), "val": total, "val_tasks": entry}
                )
                seen = []
                if total < best:
                    best, kept = total, [p.clone() for p in average]
                if has_stalled([cast("float", look["val"]) for look in history], config.patience):
                    break
    _load(network, kept)
    network.train(mode)
    return best, history


def start_stepper(
    network: Network,
    objective: Objective,
    data: Data,
    config: TrainConfig,
    descent: torch.optim.Optimizer,
    *,
    seed: int,
    weighting: Weighting | None = None,
) -> Stepper:
    """The optimiser that the settings name, or that the sharing is made for, with a balancing rule without history.

    Raises:
        UsageError: Optimiser, balancing and sharing do not go together.
    """
    sharing = cast("Sharing", create("sharing", config.sharing))
    epoch = max(1, data.steps_a_pass(config))
    setting = Setting(priors=objective.priors, epoch=epoch, seed=seed, device=data.targets.device)
    rule = (
        cast("Balancing", create("balancing", config.balancing))
        if weighting is None
        else FromFunction(function=weighting)
    )
    optimizer = cast("Optimizer", create("optimizer", config.optimizer or sharing.optimizer))
    balancer = Balancer(network, rule, setting, config.gradients)
    return optimizer.start(Run(network=network, descent=descent, balancer=balancer, seed=seed))


def make_batch(network: Network, objective: Objective, data: Data, rows: npt.NDArray[np.int64]) -> Batch:
    """One step's rows with all their tiles; they can be passed through the network as often as a step needs."""
    return batch_of(network, objective, data, rows, data.draw(rows))


def batch_of(
    network: Network, objective: Objective, data: Data, rows: npt.NDArray[np.int64], drawn: torch.Tensor | Packed
) -> Batch:
    """The same with what was drawn for them."""
    return Batch(
        network=network,
        objective=objective,
        targets=data.targets[torch.from_numpy(rows).to(data.targets.device)],
        pool=lambda: data.pool(network, drawn),
        covariates=data.known(rows),
    )


def _descent(
    network: Network, config: TrainConfig, rate: float, steps: int
) -> tuple[torch.optim.Optimizer, Callable[[int], None]]:
    """AdamW that decays matrices only, and a function that sets the rate after each step."""
    matrices = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=rate)

    def set_rate(step: int) -> None:
        for group in optimizer.param_groups:
            group["lr"] = rate * rate_factor(step, steps)

    set_rate(0)
    return optimizer, set_rate


@torch.no_grad()
def _average(average: list[torch.Tensor], network: Network, decay: float) -> None:
    torch._foreach_lerp_(average, [p.detach() for p in network.parameters()], 1 - decay)


@torch.no_grad()
def _load(network: Network, weights: list[torch.Tensor]) -> None:
    for parameter, value in zip(network.parameters(), weights, strict=True):
        parameter.copy_(value)


def _look(network: Network, average: list[torch.Tensor], objective: Objective, check: Data) -> dict[str, torch.Tensor]:
    """Validation losses of the averaged weights; the network's own weights are put back."""
    own = [p.detach().clone() for p in network.parameters()]
    _load(network, average)
    try:
        with evaluating(network):
            parts = [check.outputs(network, rows).tasks for rows in check.parts()]
            joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
            return objective.losses(joined, check.targets)
    finally:
        _load(network, own)
