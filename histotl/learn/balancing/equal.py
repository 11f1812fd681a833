"""Every task counts the same, measured against its own constant predictor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from histotl.core.registry import register


@register("balancing", "equal")
@dataclass(frozen=True, kw_only=True)
class Equal:
    """Sum of the losses, each divided by the loss of its constant predictor, so that a useless task counts 1.

    With ordinary regularisation the plain sum matches specialised optimisers (Kurin et al., NeurIPS 2022).
    """

    def total(self, losses: Mapping[str, torch.Tensor], priors: Mapping[str, float]) -> torch.Tensor:
        """Sum over the tasks that have labels in this step."""
        return torch.stack([loss / priors[name] for name, loss in losses.items()]).sum()
