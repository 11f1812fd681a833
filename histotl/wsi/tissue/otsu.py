"""The tissue finder of most tools: a threshold between two heaps of pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from histotl.core.errors import UsageError
from histotl.core.registry import register
from histotl.wsi.readers.base import Pixels
from histotl.wsi.tissue._areas import Mask, close_gaps
from histotl.wsi.tissue._settings import check_mpp, check_widths

By = Literal["saturation", "density"]

_BLACK = 40
"""Pixels whose largest channel is below this were not imaged; their colour is noise."""


@register("tissue", "otsu")
@dataclass(frozen=True, kw_only=True)
class Otsu:
    """Otsu's threshold (1979) of saturation or of optical density, kept within bounds; as in CLAM and TRIDENT.

    Otsu's threshold parts the pixels into two heaps whether there are two or not. On empty glass it parts noise from
    noise, on a section without glass pale tissue from dark. So it is held between ``least`` and ``most``.

    Args:
        by: ``saturation`` of HSV, which sees pale stain but takes every ink for tissue; or ``density``, the mean
            optical density, which sees all that is dark.
        least: Smallest threshold: saturation 0 to 1, or density.
        most: Largest threshold.
        mpp: Resolution to work at, µm per pixel.
        smooth_um: Standard deviation of the Gaussian before the threshold.
        close_um: Gaps up to about this width are closed.
    """

    by: By = "saturation"
    least: float = 0.05
    most: float = 0.1
    mpp: float = 8.0
    smooth_um: float = 12.0
    close_um: float = 24.0

    def __post_init__(self) -> None:
        check_mpp("otsu", self.mpp)
        if not 0 <= self.least <= self.most <= 1:
            fact = f"otsu: least is {self.least} and most is {self.most}"
            raise UsageError(fact, hint="give numbers with 0 <= least <= most <= 1")
        check_widths("otsu", smooth_um=self.smooth_um, close_um=self.close_um)

    def segment(self, image: Pixels, mpp: float) -> Mask:
        """Mask of tissue; see :class:`histotl.wsi.tissue.base.TissueSegmenter`."""
        import cv2
        from skimage.filters import threshold_otsu

        levels = _saturation(image) if self.by == "saturation" else _density(image)
        sigma = self.smooth_um / mpp
        if sigma > 0.3:  # narrower ones change nothing
            side = 2 * int(4 * sigma + 0.5) + 1
            levels = np.asarray(cv2.GaussianBlur(levels, (side, side), sigma, borderType=cv2.BORDER_REPLICATE))
        counts = np.bincount(levels.ravel(), minlength=256)
        several = np.count_nonzero(counts) > 1  # else there is no threshold between them
        found = float(threshold_otsu(hist=(counts, np.arange(256)))) if several else 0.0  # type: ignore[no-untyped-call]
        tissue = levels > min(max(found, self.least * 255), self.most * 255)
        return close_gaps(tissue, max(1, round(self.close_um / mpp / 2)))


def _saturation(image: Pixels) -> npt.NDArray[np.uint8]:
    """Saturation, 255 for 1; 0 for black."""
    import cv2

    high, low = image.max(axis=2), image.min(axis=2)
    share = np.asarray(cv2.divide(high - low, high, scale=255), np.uint8)
    share[high < _BLACK] = 0
    return share


def _density(image: Pixels) -> npt.NDArray[np.uint8]:
    """Mean optical density of the channels (base 10) against white, 255 for 1 and more."""
    import cv2

    table = np.clip(-np.log10((np.arange(256) + 1) / 256) * 255, 0, 255)
    densities = cv2.LUT(image, np.rint(table).astype(np.uint8))
    mean = np.asarray(cv2.transform(densities, np.full((1, 3), 1 / 3, np.float32)), np.uint8).reshape(image.shape[:2])
    mean[image.max(axis=2) < _BLACK] = 0
    return mean
