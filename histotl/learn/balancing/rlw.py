"""Random weights: what every cleverer rule has to beat (Lin et al., TMLR 2022)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from histotl.core.registry import register
from histotl.learn.balancing.base import FromLosses, Losses, Setting, stacked


@register("balancing", "rlw")
@dataclass(frozen=True, kw_only=True)
class RandomWeights:
    """Weights ``T softmax(normal)``, drawn anew in every step."""

    def start(self, setting: Setting) -> FromLosses:
        """Weights from the run's seed."""
        rng = np.random.default_rng(setting.seed)

        def total(losses: Losses) -> torch.Tensor:
            values = stacked(losses)
            # Drawn for all tasks, so that a missing label does not shift what others get in later steps.
            drawn = dict(zip(setting.names, rng.standard_normal(len(setting.names)), strict=True))
            logits = torch.tensor([drawn[name] for name in losses], dtype=values.dtype, device=values.device)
            return (len(losses) * torch.softmax(logits, dim=0) * values).sum()

        return FromLosses(make=total)
