"""The contract of a backbone.

A backbone is a frozen dataclass registered as ``@register("backbone", name)``; its fields say which weights and which
pooling. :meth:`Backbone.load` gives an :class:`Embedder`: a module that takes uint8 tiles as they come from a slide and
does its own resizing and normalising on the device, so no caller can normalise wrongly.
"""

from __future__ import annotations

from typing import Protocol

import torch

from histotl.core.values import BackboneCard


class Embedder(Protocol):
    """A loaded backbone on a device, in evaluation mode."""

    @property
    def card(self) -> BackboneCard:
        """What it is."""

    def __call__(self, tiles: torch.Tensor) -> torch.Tensor:
        """Embed uint8 RGB (b, h, w, 3), on its device, into float (b, dim).

        The result of a tile does not depend on the others of the batch. Called inside ``torch.inference_mode`` and,
        unless ``card.fp32_only``, under autocast where the engine chose a half format.
        """


class Backbone(Protocol):
    """Knows how to make an embedder."""

    def load(self, device: torch.device) -> Embedder:
        """Build the network with its weights on the device.

        Raises:
            WeightsError: The weights that were asked for cannot be had. Random weights come only by asking.
        """
