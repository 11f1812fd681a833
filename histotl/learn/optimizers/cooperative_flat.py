"""Tasks are trained in turn while the others' features are disturbed (after the published description of MT-CooL)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, cast, runtime_checkable

import numpy as np
import torch
from torch import nn

from histotl.core.errors import UsageError
from histotl.core.registry import register
from histotl.learn._gradients import Gradients, gradients, moved, uphill
from histotl.learn.batch import Batch
from histotl.learn.optimizers.base import Run


@runtime_checkable
class Reading(Protocol):
    """A sharing module in which each task reads the others' features."""

    def features(self, common: torch.Tensor) -> Sequence[torch.Tensor]:
        """Every task's features, t times float (B, h)."""

    def read(self, task: int, features: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        """What a task's linear layer gets of its own features and of everybody's, float (B, t, h)."""


@register("optimizer", "cooperative_flat")
@dataclass(frozen=True, kw_only=True)
class CooperativeFlat:
    """Alternating blocks with flat minima, for ``cooperative`` sharing (see there for what it follows).

    One step visits the tasks one by one. A task's block (its trunk, what it reads with, its linear layer) descends its
    own loss, with the others' features as they are by then, without a gradient, and disturbed::

        min over block k of  max over |e_j| <= rho  of  loss_k(z_k, z_j + e_j for j != k)

    What is no task's own (an aggregator with weights) takes one step at the end, by the sum of the blocks' gradients.

    Args:
        rho: Length of the disturbance of each feature vector.
        perturb: Along the gradient of the loss ('worst'), in a random direction ('noise'), or not ('none').
        rho_w: Radius of sharpness-aware steps on the block's own weights, 0 for plain ones.
        inner_steps: Steps of a block at each visit.
        order: Of the visits.
    """

    rho: float = 0.1
    perturb: Literal["worst", "noise", "none"] = "worst"
    rho_w: float = 0.0
    inner_steps: int = 1
    order: Literal["random", "fixed"] = "random"

    def __post_init__(self) -> None:
        if not (0 <= self.rho < math.inf and 0 <= self.rho_w < math.inf):
            fact = f"cooperative_flat's rho and rho_w are {self.rho}, {self.rho_w}"
            raise UsageError(fact, hint="give 0 or more, such as 0.1")
        if self.inner_steps < 1:
            raise UsageError(f"cooperative_flat's inner_steps is {self.inner_steps}", hint="give 1 or more")

    def start(self, run: Run) -> CooperativeFlatSteps:
        """Begin.

        Raises:
            UsageError: The sharing is not cooperative, or a balancing rule is named.
        """
        if not isinstance(run.network.sharing, Reading):
            fact = "the optimiser cooperative_flat trains tasks that read each other's features"
            raise UsageError(fact, hint="add --sharing cooperative, or choose --optimizer sam")
        if not run.balancer.is_plain:
            fact = "each task is trained by its own loss, so there is nothing to balance"
            raise UsageError(f"cooperative_flat: {fact}", hint="use --balancing equal, or --optimizer adamw")
        return CooperativeFlatSteps(run, self)


class CooperativeFlatSteps:
    """Steps of one run."""

    def __init__(self, run: Run, made_by: CooperativeFlat) -> None:
        self._network, self._descent, self._made_by = run.network, run.descent, made_by
        self._reading = cast("Reading", run.network.sharing)
        self._parameters = run.balancer.parameters
        ours = {
            id(p) for part in (run.network.heads, run.network.sharing) for p in cast("nn.Module", part).parameters()
        }
        self._is_shared = [id(p) not in ours for p in self._parameters]
        self._rng, self._seed = np.random.default_rng(run.seed), torch.Generator().manual_seed(run.seed)

    def step(self, batch: Batch) -> torch.Tensor:
        """See :class:`histotl.learn.optimizers.base.Stepper`."""
        labelled = batch.again()
        names, times = self._network.names, self._made_by.inner_steps
        order = self._rng.permutation(len(names)) if self._made_by.order == "random" else np.arange(len(names))
        total: Gradients = [None] * len(self._parameters)
        # A task without a label here has nothing to learn from; the others read its features all the same.
        for task in (int(task) for task in order if names[task] in labelled):
            for _ in range(times):
                slopes = self._slopes(batch, task, 1 / len(labelled))
                total = [_sum(a, b) for a, b in zip(total, slopes, strict=True)]
                self._descend(slopes, shared=False)
        self._descend([None if g is None else g / times for g in total], shared=True)
        return torch.stack(list(labelled.values())).sum()

    def _slopes(self, batch: Batch, task: int, share: float) -> Gradients:
        """Gradient of one task's loss with the others' features disturbed, and of a share of the parts' own losses."""
        front = self._front(batch)
        disturbed = front + self._disturbance(batch, task, front)

        def loss() -> torch.Tensor:
            output = batch.run_with(lambda common: self._answers(task, common, disturbed))
            added = batch.added(output)
            own = batch.losses(output)[self._network.names[task]]
            return own if added is None else own + share * added

        slopes = gradients(loss(), self._parameters)
        if not self._made_by.rho_w:
            return slopes
        with moved(self._parameters, uphill(self._parameters, slopes, self._made_by.rho_w)):
            return gradients(loss(), self._parameters)

    def _front(self, batch: Batch) -> torch.Tensor:
        """Everybody's features as they are now, float (B, t, h)."""
        with torch.no_grad():
            common = batch.front().common
            if common is None:
                fact = "the aggregator answers by itself, past the features that tasks read of each other"
                raise UsageError(f"cooperative_flat: {fact}", hint="choose another --aggregator, such as abmil")
            return torch.stack(list(self._reading.features(common)), dim=1)

    def _disturbance(self, batch: Batch, task: int, seen: torch.Tensor) -> torch.Tensor:
        """What is added to each feature vector that the task reads, float (B, t, h)."""
        rho, perturb = self._made_by.rho, self._made_by.perturb
        if not rho or perturb == "none" or seen.shape[1] == 1:
            return torch.zeros_like(seen)
        if perturb == "noise":
            along = torch.randn(seen.shape, generator=self._seed).to(seen)
        else:
            leaf = seen.clone().requires_grad_()
            output = batch.run_with(lambda common: self._answers(task, common, leaf))
            found = gradients(batch.losses(output)[self._network.names[task]], [leaf])[0]
            along = torch.zeros_like(seen) if found is None else found
        length: torch.Tensor = torch.linalg.vector_norm(along, dim=2, keepdim=True)
        return along * (rho / (length + 1e-12))

    def _answers(self, task: int, common: torch.Tensor, seen: torch.Tensor) -> dict[str, torch.Tensor]:
        """The task's answer from its own features and what it sees; those of the others only fill their places."""
        found, each = {}, self._reading.features(common)
        for i, (name, head) in enumerate(zip(self._network.names, self._network.heads, strict=True)):
            with torch.set_grad_enabled(i == task):
                found[name] = head(self._reading.read(i, each[i], seen))
        return found

    def _descend(self, slopes: Gradients, *, shared: bool) -> None:
        """One step of what is a task's own, or of what is not."""
        for parameter, slope, is_shared in zip(self._parameters, slopes, self._is_shared, strict=True):
            parameter.grad = slope if is_shared == shared else None
        self._descent.step()


def _sum(a: torch.Tensor | None, b: torch.Tensor | None) -> torch.Tensor | None:
    if a is None or b is None:
        return b if a is None else a
    return a + b
