"""Turns the losses of one batch into gradients of all weights, by the balancing rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from histotl.core.errors import UsageError
from histotl.learn._gradients import Gradients, gradients, gramian, shared, weighed
from histotl.learn.balancing.base import Balancing, GramianRule, LossRule, Setting, stacked
from histotl.learn.balancing.equal import Equal
from histotl.learn.batch import Batch
from histotl.learn.config import Where
from histotl.learn.network import Network


class Balancer:
    """One run's balancing.

    A rule that weighs gradients weighs those of what tasks share. A task's own weights (its linear layer, its gate) get
    the gradient of its own loss, so that no head is slowed by a conflict elsewhere; losses of the network's parts are
    added as they are.

    Args:
        network: Being trained.
        balancing: The plug-in, or anything else that starts a rule.
        setting: The run.
        where: Gradients are compared at the vectors that all tasks read, or at the shared weights.
    """

    def __init__(self, network: Network, balancing: Balancing, setting: Setting, where: Where) -> None:
        self.network, self.where = network, where
        self._balancing, self._setting = balancing, setting
        self.rule = self.another()
        # Asked of a protocol in every step, this would take as long as a small backward pass.
        self._loss_rule = self.rule if isinstance(self.rule, LossRule) else None

    def another(self) -> LossRule | GramianRule:
        """A rule of the same kind without history."""
        return self._balancing.start(self._setting)

    @property
    def is_plain(self) -> bool:
        """Whether tasks are just added up."""
        return isinstance(self._balancing, Equal)

    @property
    def parameters(self) -> list[torch.Tensor]:
        """The network's weights."""
        return [p for p in self.network.parameters() if p.requires_grad]

    def backward(self, batch: Batch) -> torch.Tensor:
        """Set the gradient of every weight; returns the training loss, detached."""
        for parameter in self.parameters:
            parameter.grad = None
        if self._loss_rule is not None:
            output = batch.run()
            loss = self._loss_rule.total(batch.losses(output))
            added = batch.added(output)
            loss = loss if added is None else loss + added
            loss.backward()  # type: ignore[no-untyped-call]
            return loss.detach()
        return self._by_features(batch) if self.where == "features" else self._by_parameters(batch)

    def after_step(self, batch: Batch) -> None:
        """Let the rule learn from the step."""
        if self._loss_rule is not None:
            self._loss_rule.after_step(batch.again)

    def weights(
        self,
        rule: LossRule | GramianRule,
        rows: Sequence[Sequence[torch.Tensor | None]],
        losses: Mapping[str, torch.Tensor],
    ) -> list[float]:
        """The rule's weights of tasks.

        Args:
            rule: Of either family.
            rows: For each task its gradients of what is shared.
            losses: Task name -> loss.

        Raises:
            UsageError: Gradients are not finite.
        """
        if isinstance(rule, LossRule):
            leaves = {name: loss.detach().requires_grad_() for name, loss in losses.items()}
            rule.total(leaves).backward()  # type: ignore[no-untyped-call]
            return [float(leaf.grad) if leaf.grad is not None else 0.0 for leaf in leaves.values()]
        found = gramian(rows)
        if not np.isfinite(found).all():
            cure = "lower --learning-rates, or look for extreme numbers among features and labels"
            raise UsageError("gradients are not finite: training has diverged", hint=cure)
        numbers = stacked(losses).detach().double().cpu().tolist()
        weights: npt.NDArray[np.float64] = rule.weights(found, dict(zip(losses, numbers, strict=True)))
        return [float(weight) for weight in weights]

    def _by_features(self, batch: Batch) -> torch.Tensor:
        """Every task's gradient up to what all read; then one pass back through the rest, with their weighted sum."""
        front = batch.front()
        if front.common is None or (front.common.ndim > 2 and len(self.network.names) > 1):
            fact = "every task has vectors of its own here, so there are none to compare gradients at"
            raise UsageError(f"--gradients features: {fact}", hint="use --gradients parameters")
        leaf = front.common.detach().requires_grad_()
        output = batch.finish(front, leaf)
        losses, behind = batch.losses(output), self.parameters
        each = {name: gradients(loss, [leaf, *behind]) for name, loss in losses.items()}
        if any(found[0] is None for found in each.values()):
            name = next(name for name, found in each.items() if found[0] is None)
            fact = f"the aggregator answers task {name!r} by itself, past the vectors that tasks share"
            raise UsageError(f"--gradients features: {fact}", hint="use --gradients parameters")
        own = {name: found[1:] for name, found in each.items()}
        self._refuse_nothing(shared(own), reaches=front.common.requires_grad, n_tasks=len(losses))
        weights = self.weights(self.rule, [found[:1] for found in each.values()], losses)
        self._assign(own, weights)
        added = batch.added(output)
        roots: list[tuple[torch.Tensor, torch.Tensor | None]] = [] if added is None else [(added, None)]
        if front.common.requires_grad:
            roots.append((front.common, weighed([found[0] for found in each.values()], weights)))
        if roots:
            torch.autograd.backward([root for root, _ in roots], [slope for _, slope in roots])
        return stacked(losses).detach().sum()

    def _by_parameters(self, batch: Batch) -> torch.Tensor:
        """One pass back for each task; weights that only one task depends on get its gradient as it is."""
        output = batch.run()
        losses, added = batch.losses(output), batch.added(output)
        each = {name: gradients(loss, self.parameters) for name, loss in losses.items()}
        common = shared(each)
        self._refuse_nothing(common, reaches=False, n_tasks=len(losses))
        rows = [[g for g, is_common in zip(found, common, strict=True) if is_common] for found in each.values()]
        # Where one task alone has labels, nothing is shared in this step, and all there is gets its plain gradient.
        self._assign(each, self.weights(self.rule, rows, losses) if any(common) else [1.0] * len(losses))
        if added is not None:
            added.backward()  # type: ignore[no-untyped-call]
        return stacked(losses).detach().sum()

    def _assign(self, each: Mapping[str, Gradients], weights: Sequence[float]) -> None:
        ones = [1.0] * len(weights)
        columns = zip(*each.values(), strict=True)
        for parameter, column, is_common in zip(self.parameters, columns, shared(each), strict=True):
            parameter.grad = weighed(column, weights if is_common else ones)

    def _refuse_nothing(self, common: Sequence[bool], *, reaches: bool, n_tasks: int) -> None:
        if n_tasks > 1 and not reaches and not any(common):
            fact = "no two tasks share a weight, so there is nothing for a rule that weighs gradients to balance"
            raise UsageError(fact, hint="use --balancing equal, or another --sharing")
