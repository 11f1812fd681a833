"""A sample of a slide's tissue tiles, taken as the engine takes the one that it fits the stain on."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from histotl.core.values import SlideEntry
from histotl.embed._plan import lay_grid, no_tissue, sample_rows
from histotl.embed._slides import open_entry
from histotl.embed.config import TileConfig
from histotl.embed.stain_target import SAMPLE_TILES
from histotl.wsi.tiles import read_tiles
from histotl.wsi.tissue.base import TissueFinder


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """Tiles of one slide.

    Args:
        fit: The engine's own sample for the stain, uint8 RGB (m, h, w, 3).
        seen: The tiles that are looked at (n, h, w, 3).
        coords_l0: Their level-0 corners, int64 (n, 2).
        tissue: Their fraction of tissue (n,).
        planned: Tiles of the slide in all.
    """

    fit: torch.Tensor
    seen: torch.Tensor
    coords_l0: torch.Tensor
    tissue: npt.NDArray[np.float32]
    planned: int

    # What a feed asks of a slide; all tiles are read while it is prepared, so there is nothing left to read.
    n_tiles: int = 0
    tile_shape: tuple[int, int] = (0, 0)
    group: Hashable = ()

    def read(self, rows: slice, out: npt.NDArray[np.uint8]) -> None:
        """Never called: there are no further tiles."""

    def close(self) -> None:
        """Nothing is held."""


def read_sample(entry: SlideEntry, tiling: TileConfig, finder: TissueFinder, wanted: int) -> Sample:
    """Open a slide, find its tissue, and read a sample of its tiles.

    Args:
        entry: The slide.
        tiling: Which tiles.
        finder: Finds the tissue.
        wanted: Tiles to look at; fewer where the slide has fewer.

    Raises:
        SlideError: It cannot be opened or read, or has no tissue.
    """
    with open_entry(entry, tiling) as slide:
        mask, grid = lay_grid(slide, tiling, finder)
        if not len(grid):
            raise no_tissue(slide.info, mask, tiling)
        fit, seen = (sample_rows(len(grid), count) for count in (SAMPLE_TILES, wanted))
        both = np.union1d(fit, seen)
        tiles = torch.from_numpy(read_tiles(slide, grid, both))
    return Sample(
        fit=tiles[np.searchsorted(both, fit)],
        seen=tiles[np.searchsorted(both, seen)],
        coords_l0=torch.from_numpy(grid.coords_l0[seen]),
        tissue=grid.tissue_fraction[seen],
        planned=len(grid),
    )
