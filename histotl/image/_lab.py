"""CIE L*a*b* (D65, 2° observer) of sRGB levels, in torch; equal to ``skimage.color.rgb2lab`` and its inverse."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt
import torch

from histotl.image._planes import CLEAR, Planes, Triple, look_up

# IEC 61966-2-1 primaries, to the digits that scikit-image and most colour tools use.
_XYZ_OF_RGB = np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
_WHITE = np.array([0.95047, 1.0, 1.08883])
# Division by the white point is folded into the matrices.
_TO_XYZ = _XYZ_OF_RGB / _WHITE[:, None]
_FROM_XYZ = np.linalg.inv(_XYZ_OF_RGB) * _WHITE[None, :]
KNEE = 0.008856
KNEE_ROOT = 6 / 29
LINEAR_KNEE = 0.0031308
"""Linear light below which sRGB is straight (IEC 61966-2-1)."""


def linear_light(levels: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Linear light, 0 to 1, of levels of sRGB, which may be fractions."""
    level = np.asarray(levels, np.float64) / 255
    linear: npt.NDArray[np.float64] = np.where(level > 0.04045, ((level + 0.055) / 1.055) ** 2.4, level / 12.92)
    return linear


def linear_levels() -> npt.NDArray[np.float64]:
    """Linear light of the 256 levels."""
    return linear_light(np.arange(256))


def to_xyz(white: Triple) -> list[list[float]]:
    """Rows that give X, Y and Z over those of white from linear light; white are these levels of sRGB."""
    rows: list[list[float]] = (_TO_XYZ / linear_light(white)).tolist()
    return rows


def from_xyz(white: Triple) -> list[list[float]]:
    """Inverse of :func:`to_xyz`."""
    rows: list[list[float]] = (_FROM_XYZ * linear_light(white)[:, None]).tolist()
    return rows


def on_roots(gain: Sequence[float], shift: Sequence[float]) -> list[list[float]]:
    """What a gain and a shift of each of L*, a* and b* do to the cube roots of X, Y and Z, of which those are sums.

    Args:
        gain: Factors of L*, a* and b*.
        shift: Added after them.

    Returns:
        Three rows of three factors and what is added to them.
    """
    gl, ga, gb = gain
    sl, sa, sb = shift
    light = (sl + 16 - 16 * gl) / 116
    return [
        [ga, gl - ga, 0.0, light + sa / 500],
        [0.0, gl, 0.0, light],
        [0.0, gl - gb, gb, light - sb / 200],
    ]


@cache
def _linear_table(device: torch.device) -> torch.Tensor:
    with torch.inference_mode(mode=False):
        return torch.from_numpy(linear_levels()).to(device=device, dtype=torch.float32)


def lab_of_levels(planes: Planes, white: Triple = CLEAR) -> list[torch.Tensor]:
    """L* (0 to 100), a* and b* as float32 planes, from three uint8 planes of sRGB; ``white`` has 100, 0 and 0."""
    table = _linear_table(planes[0].device)
    linear = [look_up(table, plane) for plane in planes]
    fx, fy, fz = (_root(_combine(linear, row)) for row in to_xyz(white))
    return [fy * 116 - 16, (fx - fy) * 500, (fy - fz) * 200]


def levels_of_lab(lab: Planes, white: Triple = CLEAR) -> list[torch.Tensor]:
    """Level + 0.5 of sRGB, not clipped above 255, from three planes of L*, a* and b*, to which ``white`` is white."""
    fy = (lab[0] + 16) / 116
    xyz = [_cube(lab[1] / 500 + fy), _cube(fy), _cube(fy - lab[2] / 200)]
    return [_encode(_combine(xyz, row)) for row in from_xyz(white)]


def _combine(planes: Planes, row: list[float]) -> torch.Tensor:
    return (planes[0] * row[0]).add_(planes[1] * row[1]).add_(planes[2] * row[2])


def _root(value: torch.Tensor) -> torch.Tensor:
    return torch.where(value > KNEE, value.clamp(min=KNEE).pow(1 / 3), value * 7.787 + 16 / 116)


def _cube(root: torch.Tensor) -> torch.Tensor:
    return torch.where(root > KNEE_ROOT, root * root * root, (root - 16 / 116) / 7.787)


def _encode(linear: torch.Tensor) -> torch.Tensor:
    linear = linear.clamp(min=0)
    curved = linear.clamp(min=LINEAR_KNEE).pow(1 / 2.4).mul_(1.055).sub_(0.055)
    return torch.where(linear > LINEAR_KNEE, curved, linear * 12.92).mul_(255).add_(0.5)
