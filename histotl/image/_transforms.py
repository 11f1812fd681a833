"""What a fitted stain normaliser is: a pure function of colour, the same for every pixel of a slide.

Three kinds are enough for all methods: a matrix on optical densities, a gain and a shift of L*, a* and b*, and a table
of levels for each channel. What white is before and after is in their numbers, and costs nothing. Each has a way for
the CPU (:mod:`histotl.image._host`), one for GPUs (:mod:`histotl.image._device`) and one in torch for every other
device; they differ by a level where a value lies on the border between two. All can give the levels before rounding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from histotl.image import _device, _host
from histotl.image._lab import lab_of_levels, levels_of_lab
from histotl.image._od import densities, mix
from histotl.image._planes import CLEAR, Planes, Triple, is_exact, look_up, map_planes


class _ColourFunction(ABC):
    """A transform with a way for each kind of device; see :class:`histotl.image.stain.base.FusedTransform`."""

    def __call__(self, tiles: torch.Tensor, *, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
        """Apply to uint8 RGB (b, h, w, 3)."""
        if _host.is_host(tiles):
            return self._on_host(tiles, dtype)
        if _device.has_kernels(tiles):
            return self._on_device(tiles, _device.Written(dtype=dtype, rounded=not is_exact(dtype)))
        return map_planes(tiles, self.on_planes, dtype=dtype)

    def is_fused(self, tiles: torch.Tensor) -> bool:
        """Whether these tiles are on a GPU that has kernels."""
        return _device.has_kernels(tiles)

    def prepared(
        self, tiles: torch.Tensor, *, scale: tuple[float, ...], shift: tuple[float, ...], dtype: torch.dtype
    ) -> torch.Tensor:
        """Normalise uint8 RGB (b, h, w, 3), round, and apply a factor and a summand to every channel."""
        return self._on_device(tiles, _device.Written(dtype=dtype, scale=scale, shift=shift))

    @abstractmethod
    def on_planes(self, planes: Planes, _rows: slice) -> Planes:
        """The same for three planes of any device; see :func:`histotl.image._planes.map_planes`."""

    @abstractmethod
    def _on_host(self, tiles: torch.Tensor, dtype: torch.dtype) -> torch.Tensor: ...

    @abstractmethod
    def _on_device(self, tiles: torch.Tensor, written: _device.Written) -> torch.Tensor: ...


@dataclass(frozen=True, kw_only=True)
class OdTransform(_ColourFunction):
    """A 3 x 3 matrix on optical densities, and what is added to them. Without that white stays white.

    Args:
        matrix: Row r gives the new density of channel r from the old densities of R, G and B.
        offset: Densities that are added to those of R, G and B: they move the slide's glass to the reference's.
        state: The fitted numbers that the matrix came from.
    """

    matrix: tuple[tuple[float, ...], ...]
    state: Mapping[str, object]
    offset: Triple = (0.0, 0.0, 0.0)

    def _on_host(self, tiles: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return _host.restained(tiles, np.array(self.matrix), np.array([self.offset]), dtype=dtype)

    def _on_device(self, tiles: torch.Tensor, written: _device.Written) -> torch.Tensor:
        return _device.restained(tiles, self.matrix, self.offset, written=written)

    def on_planes(self, planes: Planes, _rows: slice) -> Planes:
        """The same for three planes of any device; see :func:`histotl.image._planes.map_planes`."""
        density = densities(planes)
        return [mix(density, row, added) for row, added in zip(self.matrix, self.offset, strict=True)]


@dataclass(frozen=True, kw_only=True)
class LabTransform(_ColourFunction):
    """A gain and a shift of each of L*, a* and b*.

    Args:
        gain: Factors.
        shift: Added after them.
        state: The fitted numbers that they came from.
        white: Levels of R, G and B that have L* = 100 and no colour before.
        glass: The same after.
    """

    gain: tuple[float, ...]
    shift: tuple[float, ...]
    state: Mapping[str, object]
    white: Triple = CLEAR
    glass: Triple = CLEAR

    def _on_host(self, tiles: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return _host.relit(tiles, self.gain, self.shift, white=self.white, glass=self.glass, dtype=dtype)

    def _on_device(self, tiles: torch.Tensor, written: _device.Written) -> torch.Tensor:
        return _device.relit(tiles, self.gain, self.shift, white=self.white, glass=self.glass, written=written)

    def on_planes(self, planes: Planes, _rows: slice) -> Planes:
        """The same for three planes of any device; see :func:`histotl.image._planes.map_planes`."""
        lab = lab_of_levels(planes, self.white)
        return levels_of_lab([p * g + s for p, g, s in zip(lab, self.gain, self.shift, strict=True)], self.glass)


@dataclass(frozen=True, kw_only=True)
class LevelTransform(_ColourFunction):
    """A table of levels for each channel.

    Args:
        tables: 0 to 255, for R, G and B: what each of the 256 levels becomes, before rounding.
        state: The fitted numbers that they came from.
    """

    tables: tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]
    state: Mapping[str, object]

    def _on_host(self, tiles: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return _host.retabled(tiles, self._exact if is_exact(dtype) else self._array, dtype=dtype)

    def _on_device(self, tiles: torch.Tensor, written: _device.Written) -> torch.Tensor:
        return _device.retabled(tiles, self.tables, written=written)

    def on_planes(self, planes: Planes, _rows: slice) -> Planes:
        """The same for three planes of any device; see :func:`histotl.image._planes.map_planes`."""
        tables = torch.from_numpy(self._exact).to(planes[0].device) + 0.5
        return [look_up(tables[:, channel].contiguous(), plane) for channel, plane in enumerate(planes)]

    @cached_property
    def _exact(self) -> _host.Floats:
        return np.ascontiguousarray(np.array(self.tables, np.float32).T)

    @cached_property
    def _array(self) -> _host.Pixels:
        # Halves up, as other devices do it in the same float32.
        rounded: _host.Pixels = (self._exact + np.float32(0.5)).astype(np.uint8)
        return rounded


@dataclass(frozen=True, kw_only=True)
class Unchanged:
    """The identity on tiles.

    Args:
        state: Why, where something else was meant to happen.
    """

    state: Mapping[str, object]

    def __call__(self, tiles: torch.Tensor, *, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
        """Return the tiles, uint8 RGB (b, h, w, 3), themselves, or their levels as floats."""
        return tiles.to(dtype) if is_exact(dtype) else tiles
