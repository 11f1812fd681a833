"""Conflicting gradients are projected off each other (Yu et al., NeurIPS 2020)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from histotl.core.registry import register
from histotl.learn._gramian import pcgrad
from histotl.learn.balancing.base import FromGramian, Setting


@register("balancing", "pcgrad")
@dataclass(frozen=True, kw_only=True)
class PCGrad:
    """Each gradient loses what opposes another, in random order; without conflicts it is the plain sum."""

    def start(self, setting: Setting) -> FromGramian:
        """Orders from the run's seed."""
        rng = np.random.default_rng(setting.seed)

        def solve(gramian: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
            return pcgrad(gramian, [rng.permutation(len(gramian)) for _ in gramian])

        return FromGramian(solve=solve)
