"""The contract of a loss-balancing rule: losses of several tasks become one direction to descend.

A rule is a frozen dataclass registered as ``@register("balancing", name)``. Its :meth:`Balancing.start` makes the
object that keeps the state of one training run, of one of two families: a :class:`LossRule` makes one number of the
losses, a :class:`GramianRule` makes weights of the inner products of the tasks' gradients. Both see losses in units of
their constant predictors (a useless task has loss 1, times the task's weight), and only tasks with labels in the step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch

from histotl.core.errors import UsageError

Weighting = Callable[[torch.Tensor], torch.Tensor]
"""Gramian, float64 (t, t) on the CPU -> weights (t,)."""

Losses = Mapping[str, torch.Tensor]
"""Task name -> scalar loss; tasks without a label in the step are not in it."""


CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One training run.

    Args:
        priors: Task name -> the unit of its loss: a loss times it is the plain loss again. All tasks, in their order.
        epoch: Steps in one pass over the training rows, at least 1.
        seed: Of what is drawn.
        device: Where the losses are.
    """

    priors: Mapping[str, float]
    epoch: int = 1
    seed: int = 0
    device: torch.device = CPU

    @property
    def names(self) -> tuple[str, ...]:
        """The tasks."""
        return tuple(self.priors)


@runtime_checkable
class LossRule(Protocol):
    """Weighs losses."""

    def total(self, losses: Losses) -> torch.Tensor:
        """One scalar, with gradients to every loss. Called once a step."""

    def after_step(self, again: Callable[[], Losses]) -> None:
        """Learn from the step that was made; ``again`` gives the losses of the same rows as they are now."""


@runtime_checkable
class GramianRule(Protocol):
    """Weighs gradients of what tasks share."""

    def weights(self, gramian: npt.NDArray[np.float64], losses: Mapping[str, float]) -> npt.NDArray[np.float64]:
        """float64 (t,): weight of each task's gradient. Called once a step.

        Args:
            gramian: float64 (t, t) inner products of the gradients, in the order of ``losses``.
            losses: Task name -> loss.
        """


class Balancing(Protocol):
    """Knows how to start a rule."""

    def start(self, setting: Setting) -> LossRule | GramianRule:
        """A rule without history."""


@dataclass(frozen=True, kw_only=True)
class FromLosses:
    """A :class:`LossRule` that learns nothing.

    Args:
        make: What :meth:`total` does.
    """

    make: Callable[[Losses], torch.Tensor]

    def total(self, losses: Losses) -> torch.Tensor:
        """See :class:`LossRule`."""
        return self.make(losses)

    def after_step(self, again: Callable[[], Losses]) -> None:
        """Nothing."""


@dataclass(frozen=True, kw_only=True)
class FromGramian:
    """A :class:`GramianRule` that looks at nothing but the Gramian.

    Args:
        solve: Gramian float64 (t, t) -> weights (t,).
    """

    solve: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]

    def weights(self, gramian: npt.NDArray[np.float64], losses: Mapping[str, float]) -> npt.NDArray[np.float64]:
        """See :class:`GramianRule`."""
        return self.solve(gramian) if losses else np.zeros(0)


@dataclass(frozen=True, kw_only=True)
class FromFunction:
    """A :class:`GramianRule` around a function of torch, such as the weightings of the library TorchJD.

    Args:
        function: Makes the weights.
    """

    function: Weighting

    def start(self, setting: Setting) -> FromFunction:  # noqa: ARG002
        """See :class:`Balancing`; a function has no history."""
        return self

    def weights(self, gramian: npt.NDArray[np.float64], losses: Mapping[str, float]) -> npt.NDArray[np.float64]:
        """See :class:`GramianRule`.

        Raises:
            UsageError: The function gives another shape.
        """
        found = torch.as_tensor(self.function(torch.from_numpy(gramian))).detach().double().cpu().numpy()
        if found.shape != (len(losses),):
            fact = f"the weighting gave shape {found.shape} for {len(losses)} tasks"
            raise UsageError(fact, hint="return one weight a task, from the Gramian (t, t)")
        return np.asarray(found)


def stacked(losses: Losses) -> torch.Tensor:
    """The losses as float (t,)."""
    return torch.stack(list(losses.values()))


def log_losses(losses: Losses, name: str) -> torch.Tensor:
    """Logarithms of the losses, float (t,); a loss of exactly 0 is taken as 1e-8.

    Raises:
        UsageError: A loss is below 0, so that it has no logarithm.
    """
    values = stacked(losses)
    if bool((values.detach() < 0).any()):
        task = next(key for key, loss in losses.items() if float(loss.detach()) < 0)
        fact = f"{name} takes logarithms, and task {task!r} has loss {float(losses[task].detach()):.3g}"
        raise UsageError(fact, hint="choose a rule for losses of any sign, such as --balancing equal")
    return torch.log(values + 1e-8)
