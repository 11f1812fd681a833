"""A number, with or without its spread, in units of the training labels' standard deviation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from scipy.special import ndtri

from histotl.core.errors import UsageError
from histotl.core.registry import register
from histotl.learn.heads.base import Floats, Nature, TaskFacts

LOG_VARIANCE = 10.0
"""Bound of the logarithm of a predicted variance, which is reached smoothly."""


@register("head", "regression")
@dataclass(frozen=True, kw_only=True)
class Regression:
    """A standardised number: by default Huber's loss, quadratic near zero and linear beyond ``delta``.

    All losses start from the same constant predictor: outputs of zero are the mean (and the quantiles) of a normal
    distribution with the mean and deviation of the training labels.

    Args:
        loss: ``huber``. ``gaussian_nll``: mean and variance of a normal distribution; answers have a column
            ``TASK:sd`` (the mean of the networks' deviations). ``quantile``: pinball loss of several quantiles that
            cannot cross; the median is the answer, and the others have columns such as ``TASK:q5``.
        delta: Where Huber's loss turns linear, in standard deviations of the training labels.
        levels: Quantiles, rising, 0.5 among them.
    """

    loss: Literal["huber", "gaussian_nll", "quantile"] = "huber"
    delta: float = 1.0
    levels: tuple[float, ...] = (0.05, 0.5, 0.95)

    nature: ClassVar[Nature] = Nature(answers="number")

    def __post_init__(self) -> None:
        if not self.delta > 0:
            raise UsageError(f"delta is {self.delta}", hint="give a number above 0, such as 1.0")
        rising = all(low < high for low, high in zip((0.0, *self.levels), (*self.levels, 1.0), strict=True))
        if not rising or 0.5 not in self.levels:
            raise UsageError(f"levels are {self.levels}", hint="give rising shares with 0.5, such as (0.05, 0.5, 0.95)")

    def n_outputs(self, n_classes: int) -> int:  # noqa: ARG002
        """The number; mean and log variance; or one number a quantile."""
        return {"huber": 1, "gaussian_nll": 2, "quantile": len(self.levels)}[self.loss]

    def row_losses(
        self,
        outputs: torch.Tensor,
        target: torch.Tensor,
        class_weight: torch.Tensor | None,  # noqa: ARG002
    ) -> torch.Tensor:
        """Huber's loss, the negative log-likelihood less its constant, or the mean pinball loss of each row."""
        target = target.to(outputs.dtype)
        if self.loss == "huber":
            return F.huber_loss(outputs[:, 0], target, reduction="none", delta=self.delta)
        if self.loss == "gaussian_nll":
            log_variance = _bounded(outputs[:, 1])
            return 0.5 * (log_variance + (target - outputs[:, 0]) ** 2 * torch.exp(-log_variance))
        level = outputs.new_tensor(self.levels)
        error = target[:, None] - self._quantiles(outputs)
        return torch.maximum(level * error, (level - 1) * error).mean(dim=1)

    def probabilities(self, outputs: torch.Tensor) -> torch.Tensor:
        """Standardised: the number (n, 1); mean and deviation (n, 2); or the median, then the other quantiles."""
        if self.loss == "huber":
            return outputs
        if self.loss == "gaussian_nll":
            return torch.stack([outputs[:, 0], torch.exp(_bounded(outputs[:, 1]) / 2)], dim=1)
        middle = self.levels.index(0.5)
        order = [middle, *(i for i in range(len(self.levels)) if i != middle)]
        return self._quantiles(outputs)[:, order]

    @property
    def extras(self) -> tuple[str, ...]:
        """``sd``, or a name a quantile."""
        if self.loss == "gaussian_nll":
            return ("sd",)
        return tuple(f"q{100 * x:g}" for x in self.levels if x != 0.5) if self.loss == "quantile" else ()

    def decode(self, values: Floats, facts: TaskFacts) -> Floats:
        """Back to the unit of the labels; a deviation has no offset."""
        shift = np.full(values.shape[1], facts.mean)
        if self.loss == "gaussian_nll":
            shift[1:] = 0.0
        return np.asarray(values * facts.std + shift)

    def central(self, values: Floats, share: float = 0.9) -> Floats | None:
        """Ends (n, 2) of the interval that holds ``share`` of the labels, from decoded answers; None without one."""
        low, high = (1 - share) / 2, (1 + share) / 2
        if self.loss == "gaussian_nll":
            return np.asarray(values[:, :1] + values[:, 1:] * np.array([ndtri(low), ndtri(high)]))
        wanted = [f"q{100 * x:g}" for x in (low, high)]
        if not set(wanted) <= set(self.extras):
            return None
        return np.asarray(values[:, [1 + self.extras.index(name) for name in wanted]])

    def _quantiles(self, outputs: torch.Tensor) -> torch.Tensor:
        """(n, q), rising: the median, and from there steps that softplus keeps above 0."""
        normal = ndtri(np.array(self.levels))
        # Inverse of softplus at the normal distribution's own steps, so that outputs of zero are its quantiles.
        start = outputs.new_tensor(np.log(np.expm1(np.diff(normal))))
        middle = self.levels.index(0.5)
        steps = torch.cat([outputs[:, :middle], outputs[:, middle + 1 :]], dim=1)
        steps = F.softplus(steps + start)
        median = outputs[:, middle : middle + 1]
        below = median - steps[:, :middle].flip(1).cumsum(dim=1).flip(1)
        return torch.cat([below, median, median + steps[:, middle:].cumsum(dim=1)], dim=1)


def _bounded(log_variance: torch.Tensor) -> torch.Tensor:
    return LOG_VARIANCE * torch.tanh(log_variance / LOG_VARIANCE)
