"""Augmented views of tiles: which there are, and the seed of each.

The view of (slide, tile, view number, seed) is a function of these four: its seed is a hash of them, so that it is the
same in any batch, from any reader thread, and on another day.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from histotl.core.errors import UsageError
from histotl.embed.config import EmbedConfig
from histotl.image.chain import Chain
from histotl.store.embeddings import ViewSpec


@dataclass(frozen=True, kw_only=True)
class Views:
    """The views that a run makes.

    Args:
        chain: Makes one.
        count: Views of each tile.
        seed: Of the run.
    """

    chain: Chain
    count: int
    seed: int

    @property
    def spec(self) -> ViewSpec:
        """As the file says it."""
        return ViewSpec(augment=self.chain.identity, count=self.count, seed=self.seed)

    def maker(self, places: Sequence[tuple[str, range]], view: int) -> Callable[[torch.Tensor], torch.Tensor]:
        """What makes one view of a batch.

        Args:
            places: Sources of its tiles and their rows there, in the order of the batch.
            view: Number of the view, from 0.
        """

        def make(tiles: torch.Tensor) -> torch.Tensor:
            return self.chain(tiles, torch.cat([self.seeds(source, rows, view) for source, rows in places]))

        return make

    def seeds(self, source: str, rows: Iterable[int], view: int) -> torch.Tensor:
        """int64 (b,): seeds of one view of some tiles.

        Args:
            source: Name of the slide; of a patch image its path.
            rows: Numbers of the tiles in its grid.
            view: Number of the view, from 0.
        """
        found = []
        for row in rows:
            text = f"{self.seed}\0{source}\0{row}\0{view}"
            digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
            found.append(int.from_bytes(digest, "little", signed=True))
        return torch.tensor(found, dtype=torch.int64)


def views_of(config: EmbedConfig, side_px: int) -> Views | None:
    """What a configuration asks for; None for no views.

    Args:
        config: Says how many, and which augmentation.
        side_px: Side of a tile, for one that is tried here.

    Raises:
        UsageError: The augmentation cannot be read, or does not keep tiles as they are; before any slide is opened.
    """
    if not config.views:
        return None
    views = Views(chain=Chain.of(config.augment), count=config.views, seed=config.seed)
    tile = torch.full((1, side_px, side_px, 3), 200, dtype=torch.uint8)
    tried = views.chain(tile, torch.zeros(1, dtype=torch.int64))
    if tried.shape != tile.shape or tried.dtype != torch.uint8:
        fact = f"{config.augment!r} turns tiles {tuple(tile.shape)} uint8 into {tuple(tried.shape)} {tried.dtype}"
        raise UsageError(fact, hint="use augmentations that keep size and type")
    return views
