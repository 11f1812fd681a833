"""The common descent direction of least length (Désidéri 2012; Sener and Koltun, NeurIPS 2018)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from histotl.core.registry import register
from histotl.learn._gramian import mgda
from histotl.learn.balancing.base import Setting


@register("balancing", "mgda")
@dataclass(frozen=True, kw_only=True)
class Mgda:
    """Multiple gradient descent: the shortest vector in the hull of the gradients, which makes no task worse.

    It is cautious: the task with the shortest gradient leads, and a task that is already fitted stops the rest.

    Args:
        normalise: Gradients are first divided by 'l2' their lengths, or 'loss' their losses, or by 'none'.
    """

    normalise: Literal["none", "l2", "loss"] = "none"

    def start(self, setting: Setting) -> MgdaRule:  # noqa: ARG002
        """The rule has no state."""
        return MgdaRule(normalise=self.normalise)


@dataclass(frozen=True, kw_only=True)
class MgdaRule:
    """Scales the gradients and solves.

    Args:
        normalise: As in :class:`Mgda`.
    """

    normalise: str

    def weights(self, gramian: npt.NDArray[np.float64], losses: Mapping[str, float]) -> npt.NDArray[np.float64]:
        """See :class:`histotl.learn.balancing.base.GramianRule`."""
        divisor = np.ones(len(gramian))
        if self.normalise == "l2":
            divisor = np.sqrt(np.diag(gramian))
        if self.normalise == "loss":
            divisor = np.abs(list(losses.values()))
        divisor = np.where(divisor > 0, divisor, 1.0)
        found = mgda(gramian / np.outer(divisor, divisor)) / divisor
        return np.asarray(len(found) * found / found.sum())
