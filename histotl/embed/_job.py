"""A slide between its two halves of work: planned in a worker thread, then read and embedded."""

from __future__ import annotations

from collections.abc import Hashable
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from histotl.core.values import SlideInfo, TileGrid
from histotl.embed._claim import State
from histotl.embed._models import Model
from histotl.image.stain.base import StainTransform
from histotl.store.embeddings import EmbeddingsWriter
from histotl.wsi.tiles import TileReader


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is to be embedded of a slide.

    Args:
        tiles: Reads the tiles.
        transform: Its fitted stain normaliser.
        models: Those that have no current file of this slide.
        writers: Their files in the making, one a model.
    """

    tiles: TileReader
    transform: StainTransform
    models: tuple[Model, ...]
    writers: tuple[EmbeddingsWriter, ...]


@dataclass(frozen=True, kw_only=True)
class SlideJob:
    """A slide that is open, planned, and locked for what is to be made of it.

    Args:
        state: ``ready``, or why there is nothing to do.
        info: The slide; None unless ready.
        grid: Its tiles; likewise.
        work: None when it is only planned.
        dropped: Tiles that were left out for their quality.
        held: Gives handles, unfinished files and locks back.
    """

    state: State
    info: SlideInfo | None = None
    grid: TileGrid | None = None
    work: Work | None = None
    dropped: int = 0
    held: ExitStack = field(default_factory=ExitStack)

    @property
    def n_tiles(self) -> int:
        """Tiles to embed."""
        return len(self.grid) if self.grid is not None and self.work is not None else 0

    @property
    def tile_shape(self) -> tuple[int, int]:
        """Height and width of a tile."""
        side = self.grid.spec.tile_px if self.grid is not None else 0
        return side, side

    @property
    def group(self) -> Hashable:
        """Slides that need the same backbones share batches."""
        return tuple(model.spec for model in self.work.models) if self.work is not None else ()

    def read(self, rows: slice, out: npt.NDArray[np.uint8]) -> None:
        """Tiles of some rows of the grid; from several threads at once."""
        if self.work is not None:
            self.work.tiles.read(rows, out)

    def close(self) -> None:
        """Close the slide, remove unfinished files, release the locks."""
        self.held.close()
