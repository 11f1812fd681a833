"""A slide between its two halves of work: planned in a worker thread, embedded in the main thread."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from histotl.core.provenance import Provenance
from histotl.core.values import SlideInfo, TileGrid
from histotl.embed._claim import State
from histotl.embed._models import Model
from histotl.embed._reading import Handles
from histotl.wsi.slide import Slide
from histotl.wsi.tiles import read_tiles


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is known of a slide before its first batch.

    Args:
        info: The slide.
        grid: Its tiles.
        source: Digest of what the tiles come from.
        handles: Open handles on the slide.
        made: For the files' record.
        models: Those that have no current file of this slide.
        sample: uint8 (n, tile_px, tile_px, 3) tiles to fit the stain on; None when nothing is embedded.
    """

    info: SlideInfo
    grid: TileGrid
    source: str
    handles: Handles[Slide]
    made: Provenance
    models: tuple[Model, ...] = ()
    sample: npt.NDArray[np.uint8] | None = None


@dataclass(frozen=True, kw_only=True)
class SlideJob:
    """A slide that is open, planned, and locked for the models of its plan.

    Args:
        state: ``ready``, or why there is nothing to do.
        plan: What is to be done; None unless ready.
        held: Gives handles and locks back.
    """

    state: State
    plan: Plan | None = None
    held: ExitStack = field(default_factory=ExitStack)

    @property
    def n_tiles(self) -> int:
        """Tiles to embed."""
        return len(self.plan.grid) if self.plan else 0

    @property
    def tile_shape(self) -> tuple[int, int]:
        """Height and width of a tile."""
        side = self.plan.grid.spec.tile_px if self.plan else 0
        return side, side

    def read(self, rows: slice) -> npt.NDArray[np.uint8]:
        """Tiles of some rows of the grid; every calling thread has a handle of its own."""
        if self.plan is None:
            return np.empty((0, 0, 0, 3), np.uint8)
        with self.plan.handles.borrow() as slide:
            return read_tiles(slide, self.plan.grid, rows)

    def close(self) -> None:
        """Close the slide and release its locks."""
        self.held.close()
