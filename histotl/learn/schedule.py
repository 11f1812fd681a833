"""The learning rate over a run: a short rise, then half a cosine down to nothing."""

from __future__ import annotations

import math

WARM_UP = 0.05
"""Share of the steps in which the learning rate rises."""


def rate_factor(step: int, steps: int) -> float:
    """Share of the peak learning rate after ``step`` of ``steps`` steps."""
    warm = max(1, math.ceil(WARM_UP * steps))
    return min(1.0, (step + 1) / warm) * 0.5 * (1 + math.cos(math.pi * step / steps))
