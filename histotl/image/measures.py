"""Several quality measures as one: the text that names them, their columns, and one pass over a batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch

from histotl.core.errors import UsageError
from histotl.core.registry import available, create, identified
from histotl.core.spec import split_spec
from histotl.image._tile_view import TileView
from histotl.image.quality.base import QualityMeasure

ALL, NONE = "all", "none"

DOUBTFUL: Mapping[str, str] = {
    "focus_laplacian": "focus_laplacian < 1.0",
    "focus_reblur": "focus_reblur < 0.6",
    "pen": "pen > 0.03",
    "fold": "fold > 1.93",
    "bubble": "bubble > 0.3",
    "blank": "blank > 0.5",
    "blood": "blood > 0.1",
}
"""Column -> what a tile worth a look has, for summaries; between clean and degraded real tiles (benchmarks/quality).
Nothing is left out for it: that is decided with conditions of one's own."""

_CPU_TILES = 16
"""Tiles that are measured at a time on a CPU: as many as the caches hold, enough to make the calls cheap."""

_DEVICE_TILES = 256


@dataclass(frozen=True, kw_only=True)
class Measures:
    """Quality measures that look at the same tiles.

    Args:
        measures: In the order of their columns.
    """

    measures: tuple[QualityMeasure, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Measures:
        """Build the measures that a text names.

        Args:
            text: ``all``, ``none``, or specs joined by `` + ``, such as ``"focus_laplacian + pen(mpp=8.0)"``.

        Raises:
            UnknownNameError: There is no such measure.
            SpecError: The text cannot be read, or an argument is wrong.
            UsageError: Two measures have a column of the same name.
        """
        stripped = text.strip()
        specs = [] if stripped == NONE else available("quality") if stripped == ALL else split_spec(stripped)
        found = cls(measures=tuple(cast("QualityMeasure", create("quality", spec)) for spec in specs))
        twice = [name for name, times in Counter(found.columns).items() if times > 1]
        if twice:
            raise UsageError(f"two quality measures give {', '.join(twice)}", hint="name each measure once")
        return found

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of all figures."""
        return tuple(name for measure in self.measures for name in measure.columns)

    @property
    def specs(self) -> tuple[str, ...]:
        """Canonical text of each measure, with its version."""
        return tuple(identified(measure) for measure in self.measures)

    def __call__(self, tiles: torch.Tensor, mpp: float) -> torch.Tensor:
        """Measure uint8 RGB (b, h, w, 3) tiles of ``mpp`` µm a pixel, NaN if unknown; float32 (b, columns)."""
        if not self.measures or not len(tiles):
            return torch.empty((len(tiles), len(self.columns)), device=tiles.device)
        together = _CPU_TILES if tiles.device.type == "cpu" else _DEVICE_TILES
        return torch.cat([self._some(part, mpp) for part in torch.split(tiles, together)])

    def _some(self, tiles: torch.Tensor, mpp: float) -> torch.Tensor:
        view = TileView(tiles=tiles, mpp=mpp)
        return torch.cat([measure(view) for measure in self.measures], dim=1)
