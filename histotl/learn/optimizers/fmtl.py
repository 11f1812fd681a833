"""Flat minima for every task (Phan et al., "Improving Multi-task Learning via Seeking Task-based Flat Regions")."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from histotl.core.errors import UsageError
from histotl.core.registry import register
from histotl.learn._gradients import Gradients, gradients, moved, shared, uphill, weighed
from histotl.learn.balancing.base import GramianRule, LossRule, stacked
from histotl.learn.batch import Batch
from histotl.learn.optimizers.base import Run


@register("optimizer", "fmtl")
@dataclass(frozen=True, kw_only=True)
class FlatMultiTask:
    """Each task looks up its own worst point nearby; what is shared follows losses and flatness, balanced apart.

    For each task: g, its gradient, and g', the one where the weights that it depends on are moved by ``rho`` up g. What
    several tasks depend on descends ``B(g) + B(g' - g)``, where B is the balancing rule (two of them, each with its own
    history, where it looks at gradients); what is a task's own descends g'. Gradients are those of weights, whatever
    ``gradients`` says. Two passes a task.

    Args:
        rho: How far, 0 for the balanced step of ``adamw``.
        adaptive: Measure ``rho`` in units of each weight's own size; it is then some ten times larger.
    """

    rho: float = 0.05
    adaptive: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.rho < math.inf:
            raise UsageError(f"fmtl's rho is {self.rho}", hint="give 0 or more, such as 0.05")

    def start(self, run: Run) -> FlatMultiTaskSteps:
        """Begin."""
        return FlatMultiTaskSteps(run, self)


class FlatMultiTaskSteps:
    """Steps of one run."""

    def __init__(self, run: Run, made_by: FlatMultiTask) -> None:
        self._descent, self._balancer, self._made_by = run.descent, run.balancer, made_by
        self._flat_rule = run.balancer.another()

    def step(self, batch: Batch) -> torch.Tensor:
        """See :class:`histotl.learn.optimizers.base.Stepper`."""
        parameters = self._balancer.parameters
        output = batch.run()
        losses, added = batch.losses(output), batch.added(output)
        plain = {name: gradients(loss, parameters) for name, loss in losses.items()}
        near = {name: self._near(batch, name, parameters, slopes) for name, slopes in plain.items()}
        flat = {name: _less(near[name], plain[name]) for name in plain}
        common, ones = shared(plain), [1.0] * len(losses)
        rule = self._balancer.rule
        sides = (plain, self._weights(rule, plain, common, losses))
        # A rule that looks at losses has the same answer for both, and one history.
        again = sides[1] if isinstance(rule, LossRule) else self._weights(self._flat_rule, flat, common, losses)
        flats = (flat, again)
        for i, parameter in enumerate(parameters):
            if common[i]:
                parts = [weighed([row[i] for row in rows.values()], weights) for rows, weights in (sides, flats)]
                parameter.grad = torch.stack([part for part in parts if part is not None]).sum(dim=0)
            else:
                parameter.grad = weighed([row[i] for row in near.values()], ones)
        if added is not None:
            added.backward()  # type: ignore[no-untyped-call]
        self._descent.step()
        self._balancer.after_step(batch)
        return stacked(losses).detach().sum()

    def _weights(
        self,
        rule: LossRule | GramianRule,
        rows: Mapping[str, Gradients],
        common: list[bool],
        losses: Mapping[str, torch.Tensor],
    ) -> list[float]:
        """The rule's weights by what these gradients say of the shared weights; 1 where nothing is shared."""
        chosen = [[g for g, is_common in zip(row, common, strict=True) if is_common] for row in rows.values()]
        return self._balancer.weights(rule, chosen, losses) if any(common) else [1.0] * len(losses)

    def _near(self, batch: Batch, name: str, parameters: list[torch.Tensor], slopes: Gradients) -> Gradients:
        """The task's gradient where its own climb ends."""
        climb = uphill(parameters, slopes, self._made_by.rho, adaptive=self._made_by.adaptive)
        with moved(parameters, climb):
            return gradients(batch.losses(batch.run())[name], parameters)


def _less(these: Gradients, those: Gradients) -> Gradients:
    return [None if a is None or b is None else a - b for a, b in zip(these, those, strict=True)]
