"""Several augmentations one after the other, written as one text: ``d4 + hed_jitter(sigma=0.1) + blur``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch

from histotl.core.errors import SpecError
from histotl.core.registry import canonical, create, identified
from histotl.core.spec import split_spec
from histotl.image._random import derived
from histotl.image.augment.base import Augmentation


@dataclass(frozen=True, kw_only=True)
class Chain:
    """Augmentations in the order in which a tile goes through them; ``str`` gives the canonical text.

    Each link draws from seeds of its own, so that two links of one kind do not repeat each other.

    Args:
        links: One or more.
    """

    links: tuple[Augmentation, ...]

    @classmethod
    def of(cls, text: str) -> Chain:
        """Read specs joined by '+'; ``Chain.of(str(chain)) == chain``.

        Raises:
            UnknownNameError: No augmentation has a name; the hint gives the nearest.
            SpecError: The text cannot be read, or an argument is unknown or of the wrong type.
            UsageError: An argument makes no sense.
        """
        parts = split_spec(text)
        if not all(parts):
            fact = f"augmentation {text!r} has nothing on one side of a '+'" if len(parts) > 1 else "no augmentation"
            raise SpecError(fact, hint="write it as 'd4 + hed_jitter(sigma=0.1)'; see histotl list augment")
        return cls(links=tuple(cast("Augmentation", create("augment", part)) for part in parts))

    def __str__(self) -> str:
        return " + ".join(canonical(link) for link in self.links)

    @property
    def identity(self) -> str:
        """The text with the version of each link: what files hold of the views that it made."""
        return " + ".join(identified(link) for link in self.links)

    def __call__(self, tiles: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        """Augment uint8 RGB (b, h, w, 3) by seeds, int64 (b,); see :class:`Augmentation`."""
        for number, link in enumerate(self.links):
            tiles = link(tiles, derived(seeds, number))
        return tiles
