"""The contract of a quality measure.

A measure is a frozen dataclass registered as ``@register("quality", name)``. It gives one or more figures for every
tile and judges none: thresholds are chosen by whoever uses the figures. What cannot be measured on a tile, such as the
focus of bare glass, is NaN.
"""

from __future__ import annotations

from typing import Protocol

import torch

from histotl.image._tile_view import TileView


class QualityMeasure(Protocol):
    """Figures of tiles at a pixel size of the measure's own."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the figures, lower case and underscores; no two measures share one."""

    def __call__(self, view: TileView) -> torch.Tensor:
        """Measure every tile by itself, whatever else is in the batch.

        Args:
            view: The tiles and their pixel size; shrunk pictures and densities are shared with the other measures.

        Returns:
            float32 (b, len(columns)) on the tiles' device; NaN where a figure cannot be measured.
        """
