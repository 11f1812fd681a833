"""Connected areas of masks and their growth: what tissue finders share. Masks are bool (h, w), C-contiguous."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]


def px(um: float, mpp: float) -> int:
    """A length in pixels, at least one."""
    return max(1, round(um / mpp))


def diamond(mask: Mask, reach: int) -> Mask:
    """A mask grown by a diamond of so many pixels from its centre to a corner, or shrunk when ``reach`` is negative.

    What lies outside the picture belongs to no mask.
    """
    import cv2

    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    change = cv2.dilate if reach > 0 else cv2.erode
    changed = change(
        mask.view(np.uint8), cross, iterations=abs(reach), borderType=cv2.BORDER_CONSTANT, borderValue=(0,)
    )
    return changed.view(np.bool_)


def close_gaps(mask: Mask, radius: int) -> Mask:
    """A mask with its gaps closed by a disc; what lies outside the picture is no tissue."""
    import cv2

    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    disc = (x * x + y * y <= radius * radius).astype(np.uint8)
    height, width = mask.shape
    padded = np.zeros((height + 2 * radius, width + 2 * radius), np.uint8)
    inner = padded[radius : radius + height, radius : radius + width]
    inner[:] = mask.view(np.uint8)
    cv2.dilate(padded, disc, dst=padded)
    cv2.erode(padded, disc, dst=padded)
    return inner.view(np.bool_)


def reaches_border(mask: Mask) -> bool:
    """Whether any of a mask lies at the border of the picture."""
    return bool(mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any())


def touching(candidate: Mask, seed: Mask) -> Mask:
    """The parts of a mask, connected over edges and corners, that hold a seed."""
    areas = Areas(candidate)
    return areas.only(areas.that_hold(seed & candidate))


def _doubled(cells: Mask, shape: tuple[int, ...]) -> Mask:
    """A mask of cells of 2 x 2 pixels as one of pixels."""
    wide = (cells.view(np.uint8).astype(np.uint16) * 0x0101).view(np.bool_)  # two bytes in one number: quick
    return wide.repeat(2, 0)[: shape[0], : shape[1]]


def any_of_cell(mask: Mask) -> Mask:
    """Cells of 2 x 2 pixels, those cut by the border too, in which there is any of a mask."""
    import cv2

    white: npt.NDArray[np.uint8] = mask.view(np.uint8) * 255
    below, beside = mask.shape[0] % 2, mask.shape[1] % 2
    if below or beside:
        white = np.asarray(cv2.copyMakeBorder(white, 0, below, 0, beside, cv2.BORDER_CONSTANT, value=(0,)), np.uint8)
    return np.asarray(cv2.resize(white, (white.shape[1] // 2, white.shape[0] // 2), interpolation=cv2.INTER_AREA) > 0)


class Areas:
    """The parts of a mask, connected over edges and corners; part 0 is what lies outside.

    Args:
        mask: The mask.
        in_cells: Take what lies in the same or in neighbouring cells of 2 x 2 pixels for connected, which is quicker.
    """

    def __init__(self, mask: Mask, *, in_cells: bool = False) -> None:
        import cv2

        self._pixels, self._in_cells = mask, in_cells
        self._mask = any_of_cell(mask) if in_cells else mask
        self.count, labels = cv2.connectedComponents(self._mask.view(np.uint8), connectivity=8, ltype=cv2.CV_32S)
        self._labels = labels.ravel()

    def that_hold(self, seed: Mask) -> Mask:
        """Which parts hold a pixel of another mask that lies inside this one, bool (count,)."""
        # A run of seeds lies in one part, so its first pixel speaks for all.
        return self._among(_runs(any_of_cell(seed) if self._in_cells else seed)[0])

    def at_border(self) -> Mask:
        """Which parts, or cells of them, reach the border of the picture, bool (count,)."""
        frame = np.zeros(self._mask.shape, bool)
        for line in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
            frame[line] = self._mask[line]
        return self._among(np.flatnonzero(frame))

    def only(self, kept: Mask) -> Mask:
        """The mask with these parts alone, bool (count,)."""
        if kept[1:].all():
            return self._pixels
        # Most of a mask is kept, and what is not are specks: runs of pixels are looked up, not pixels.
        first, length = _runs(self._mask)
        dropped = ~kept[self._labels[first]]
        result = self._mask.copy()
        result.ravel()[_spans(first[dropped], length[dropped])] = False
        return self._pixels & _doubled(result, self._pixels.shape) if self._in_cells else result

    def _among(self, places: npt.NDArray[np.intp]) -> Mask:
        found = np.zeros(self.count, bool)
        found[self._labels[places]] = True
        return found


def _runs(mask: Mask) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Horizontal runs of a mask: flat index of the first pixel, and length. They end with their row."""
    height, width = mask.shape
    padded = np.zeros((height, width + 1), bool)
    padded[:, :width] = mask
    flat = padded.ravel()
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    if flat[0]:
        changes = np.concatenate([[0], changes])
    first, end = changes[::2], changes[1::2]
    return first - first // (width + 1), end - first


def _spans(first: npt.NDArray[np.intp], length: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """All indices of runs."""
    ends = np.cumsum(length)
    start = np.repeat(first - (ends - length), length)
    return start + np.arange(len(start))
