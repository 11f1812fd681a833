"""Feature rows in the memory of a GPU."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from histotl.learn.rows import Indices, Rows

SHARE = 0.6
"""Part of a GPU's free memory that features may take; the rest is for what is computed from them."""

BLOCK_ROWS = 16384
"""Rows copied at a time."""


class DeviceRows:
    """Some rows of a source, copied once to a device, under the same numbers.

    Args:
        source: Where they are copied from.
        used: int64 (m,): rows that will be asked for.
        device: Where to.
    """

    def __init__(self, source: Rows, used: Indices, device: torch.device) -> None:
        self.n, self.dim, self.n_views, self.dtype = source.n, source.dim, source.n_views, source.dtype
        self.device = device
        used = np.unique(used)
        # Rows come as float32 and half of them would be wasted room where the files hold 16 bits.
        kept = torch.float16 if source.dtype == np.float16 else torch.float32
        self._features = torch.empty((1 + source.n_views, len(used), source.dim), dtype=kept, device=device)
        for view in range(-1, source.n_views):
            for start in range(0, len(used), BLOCK_ROWS):
                some = used[start : start + BLOCK_ROWS]
                views = None if view < 0 else np.full(len(some), view, dtype=np.int64)
                part = torch.from_numpy(source.read(some, views))
                self._features[view + 1, start : start + len(some)] = part.to(kept).to(device)
        place = np.full(source.n, -1, dtype=np.int64)
        place[used] = np.arange(len(used))
        self._place = torch.from_numpy(place).to(device)
        corners = source.coords(used)
        self._coords = None if corners is None else torch.from_numpy(corners).to(device)

    def read(self, rows: Indices, views: Indices | None = None) -> npt.NDArray[np.float32]:
        """See :class:`histotl.learn.rows.Rows`."""
        chosen = None if views is None else torch.from_numpy(views).to(self.device)
        return np.asarray(self.take(torch.from_numpy(rows).to(self.device), chosen).cpu().numpy())

    def coords(self, rows: Indices) -> Indices | None:
        """See :class:`histotl.learn.rows.Rows`."""
        found = self.take_coords(torch.from_numpy(rows).to(self.device))
        return None if found is None else np.asarray(found.cpu().numpy())

    def take(self, rows: torch.Tensor, views: torch.Tensor | None = None) -> torch.Tensor:
        """The same as :meth:`read`; numbers and rows are tensors on the device."""
        place = self._place[rows]
        found = self._features[0][place] if views is None else self._features[views + 1, place]
        return found.float()

    def take_coords(self, rows: torch.Tensor) -> torch.Tensor | None:
        """The same as :meth:`coords`, on the device."""
        return None if self._coords is None else self._coords[self._place[rows]]


def on_device(source: Rows, used: Indices, device: torch.device) -> Rows:
    """The source itself, or a copy of the used rows on a GPU that has room for them.

    Args:
        source: Where the rows are.
        used: int64 (m,): rows that will be asked for.
        device: Where they are computed with.
    """
    if device.type != "cuda":
        return source
    size = (1 + source.n_views) * len(np.unique(used)) * source.dim * source.dtype.itemsize + 8 * source.n
    free, _ = torch.cuda.mem_get_info(device)
    return DeviceRows(source, used, device) if size <= SHARE * free else source
