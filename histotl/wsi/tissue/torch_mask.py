"""Tissue as the user's own segmentation network sees it."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from histotl.core.errors import UsageError
from histotl.core.provenance import file_digest
from histotl.core.registry import register
from histotl.core.values import SlideInfo
from histotl.wsi.readers.base import Pixels
from histotl.wsi.tissue._areas import Mask
from histotl.wsi.tissue._networks import Network, check_network, last_line, load_network
from histotl.wsi.tissue._settings import check_mpp

Triple = tuple[float, float, float]

_ONE_AT_A_TIME = threading.Lock()
"""Several slides are planned at a time; the network uses all cores, and its memory, once."""


@register("tissue", "torch_mask")
@dataclass(frozen=True, kw_only=True)
class TorchMask:
    """A segmentation network of your own, saved with ``torch.export`` (``.pt2``) or as TorchScript (``.pt``).

    It is given float32 (1, 3, tile_px, tile_px), RGB in 0 to 1 less ``mean`` over ``std``, and answers with one map of
    scores (1, 1, h, w) or one for each class (1, k, h, w), of the same height and width. It runs in windows that
    overlap, and the middle of each counts. Its code is run: use only files that you would run. Pickles are refused.

    Args:
        file: The network.
        mpp: Resolution that the network was trained at, µm per pixel.
        threshold: Least probability of tissue.
        tissue_class: Which of several maps is that of tissue, from 0.
        scores: Whether the maps are ``logits`` (a sigmoid of one, a softmax of several gives the probability) or
            ``probabilities``.
        mean: Of the input, for RGB in 0 to 1.
        std: Likewise.
        tile_px: Side of a window.
        margin_px: How far from a window's border its answer is taken from a neighbour.
        device: Where it runs, such as ``cpu`` or ``cuda``.
    """

    file: str
    mpp: float = 8.0
    threshold: float = 0.5
    tissue_class: int = 1
    scores: Literal["logits", "probabilities"] = "logits"
    mean: Triple = (0.485, 0.456, 0.406)
    std: Triple = (0.229, 0.224, 0.225)
    tile_px: int = 512
    margin_px: int = 64
    device: str = "cpu"

    def __post_init__(self) -> None:
        check_mpp("torch_mask", self.mpp)
        if not 0 < self.threshold < 1:
            fact = f"torch_mask: threshold is {self.threshold}"
            raise UsageError(fact, hint="give a probability between 0 and 1, such as 0.5")
        if not (min(self.std) > 0 and all(map(math.isfinite, self.mean + self.std))):
            raise UsageError(
                f"torch_mask: mean is {self.mean}, std is {self.std}", hint="give three numbers, std above 0"
            )
        if self.tissue_class < 0:
            raise UsageError(f"torch_mask: tissue_class is {self.tissue_class}", hint="count maps from 0")
        if not 0 <= 2 * self.margin_px < self.tile_px:
            fact = f"torch_mask: margin_px is {self.margin_px}, tile_px is {self.tile_px}"
            raise UsageError(fact, hint="give a margin of less than half a window, such as 64 of 512")
        check_network(Path(self.file))

    def digest(self, info: SlideInfo) -> str:
        """Of the network's file; see :class:`histotl.wsi.tissue.base.ReadsFile`."""
        del info
        return file_digest(Path(self.file), whole=True)

    def segment(self, image: Pixels, mpp: float) -> Mask:
        """Mask of tissue; see :class:`histotl.wsi.tissue.base.TissueSegmenter`.

        Raises:
            UsageError: The network cannot be run, or answers with another shape, or with numbers that are none.
        """
        del mpp
        with _ONE_AT_A_TIME:
            net = load_network(self.file, file_digest(Path(self.file), whole=True), self.device)
            mask = np.zeros(image.shape[:2], bool)
            for top, bottom in _spans(image.shape[0], self.tile_px, self.margin_px):
                for left, right in _spans(image.shape[1], self.tile_px, self.margin_px):
                    self._fill(net, image, mask, (top, bottom, left, right))
        return mask

    def _fill(self, net: Network, image: Pixels, mask: Mask, inner: tuple[int, int, int, int]) -> None:
        """Answer for a part of the picture from the window around it."""
        top, bottom, left, right = inner
        y, x = (
            max(0, min(start - self.margin_px, length - self.tile_px))
            for start, length in ((top, image.shape[0]), (left, image.shape[1]))
        )
        probability = self._run(net, _window(image, y, x, self.tile_px))
        mask[top:bottom, left:right] = probability[top - y : bottom - y, left - x : right - x] >= self.threshold

    def _run(self, net: Network, window: Pixels) -> npt.NDArray[np.float32]:
        """Probability of tissue (h, w) in a window."""
        import torch

        light = (window / np.float32(255) - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        batch = torch.from_numpy(np.ascontiguousarray(light.transpose(2, 0, 1)))[None]
        try:
            with torch.inference_mode():
                scores = net(batch.to(self.device))
        except (RuntimeError, TypeError, torch.jit.Error) as error:
            fact = f"{self.file} fails on an input of {tuple(batch.shape)}: {last_line(error)}"
            raise UsageError(
                fact, hint="give it the tile_px that it was made for, or save it for this input"
            ) from error
        return self._probability(scores)

    def _probability(self, scores: object) -> npt.NDArray[np.float32]:
        import torch

        shape = tuple(scores.shape) if isinstance(scores, torch.Tensor) else type(scores).__name__
        wanted = (self.tile_px, self.tile_px)
        if not isinstance(scores, torch.Tensor) or scores.ndim != 4 or shape != (1, scores.shape[1], *wanted):
            fact = f"{self.file} answers with {shape} to an input of {(1, 3, *wanted)}"
            raise UsageError(fact, hint=f"wrap it so that it gives one tensor (1, k, {wanted[0]}, {wanted[1]})")
        maps = scores.shape[1]
        if maps > 1 and self.tissue_class >= maps:
            fact = f"{self.file} gives {maps} maps and tissue_class is {self.tissue_class}"
            raise UsageError(fact, hint=f"give one of 0 to {maps - 1}")
        scores = scores.float()
        if self.scores == "logits":
            scores = scores.sigmoid() if maps == 1 else scores.softmax(dim=1)
        found: npt.NDArray[np.float32] = scores[0, self.tissue_class if maps > 1 else 0].cpu().numpy()
        if not np.isfinite(found).all():
            fact = f"{self.file} answers with numbers that are none (NaN or infinite)"
            raise UsageError(fact, hint="check mean, std and the network itself")
        if found.min() < -1e-3 or found.max() > 1 + 1e-3:
            fact = f"{self.file} answers with {found.min():.3g} to {found.max():.3g}, which are no probabilities"
            raise UsageError(fact, hint="say scores='logits'")
        return found


def _spans(length: int, tile: int, margin: int) -> Iterator[tuple[int, int]]:
    """Parts of a line that one window each answers for: from its margin on, to the margin of its end."""
    if length <= tile:
        yield 0, length
        return
    start, end = 0, tile - margin
    while end < length - margin:
        yield start, end
        start, end = end, end + tile - 2 * margin
    yield start, length


def _window(image: Pixels, top: int, left: int, side: int) -> Pixels:
    """A square of a picture, mirrored where the picture is smaller."""
    import cv2

    part = image[top : top + side, left : left + side]
    below, beside = side - part.shape[0], side - part.shape[1]
    if not (below or beside):
        return part
    return np.asarray(cv2.copyMakeBorder(part, 0, below, 0, beside, cv2.BORDER_REFLECT), np.uint8)
