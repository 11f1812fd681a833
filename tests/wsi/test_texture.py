"""Local contrast finds pale and fatty tissue, and takes neither glass, nor its tint, dust, ink or black for it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from scipy import ndimage

from histotl.core.errors import UsageError
from histotl.core.registry import create
from histotl.wsi.tissue.hysteresis import Hysteresis
from histotl.wsi.tissue.texture import Texture

Pixels = npt.NDArray[np.uint8]
Stained = Callable[..., Pixels]
BLOCK = (slice(60, 140), slice(80, 180))


def glass(sd: float = 1.5, colour: tuple[float, ...] = (242, 241, 243)) -> npt.NDArray[np.float64]:
    return np.random.default_rng(1).normal(colour, sd, (200, 260, 3))


def picture(light: npt.NDArray[np.float64]) -> Pixels:
    return np.clip(light, 0, 255).astype(np.uint8)


def iou(mask: npt.NDArray[np.bool_]) -> float:
    truth = np.zeros(mask.shape, bool)
    truth[BLOCK] = True
    return float((mask & truth).sum() / (mask | truth).sum())


@pytest.mark.parametrize("strength", [0.1, 0.15, 0.4, 1.0, 3.0])
@pytest.mark.parametrize("level", [200, 242, 255])
def test_pale_and_dark_tissue_is_found(stained: Stained, strength: float, level: float) -> None:
    image = picture(glass(colour=(level,) * 3))
    image[BLOCK] = stained(80, 100, strength=strength, glass=level)
    assert iou(Texture().segment(image, 8.0)) > 0.9


@pytest.mark.parametrize("sd", [0.0, 1.5, 4.0, 8.0])
def test_empty_glass_is_empty(sd: float) -> None:
    assert Texture().segment(picture(glass(sd)), 8.0).mean() < 0.002


def test_thin_walls_of_fat_are_one_area_with_their_cells() -> None:
    light = glass()
    y, x = np.mgrid[:80, :100]
    walls = ((y % 6) == 0) | ((x % 6) == 0)  # cells of 48 µm
    light[BLOCK][walls] *= (0.97, 0.92, 0.95)
    assert iou(Texture().segment(picture(light), 8.0)) > 0.9
    assert iou(Hysteresis().segment(picture(light), 8.0)) < 0.5


def test_an_even_tint_is_no_tissue_and_an_even_clot_is() -> None:
    light = glass()
    tint = np.zeros((200, 260))
    tint[BLOCK] = 1
    tint = ndimage.gaussian_filter(tint, 20)[..., None]  # runs out slowly, as smears do
    smear = picture(light * (1 - tint * (0.02, 0.15, 0.05)))
    assert Texture().segment(smear, 8.0).mean() < 0.005
    assert Hysteresis().segment(smear, 8.0).mean() > 0.1  # a level alone cannot tell
    light[BLOCK] *= (0.8, 0.2, 0.4)
    assert iou(Texture().segment(picture(light), 8.0)) > 0.9


def test_what_the_default_leaves_out_is_left_out(stained: Stained) -> None:
    light = glass()
    light[:, :30] *= np.linspace(0.35, 1.0, 30)[:, None]  # the slide's edge, grey
    light[150:156] *= 0.6  # edge of the cover slip
    yy, xx = np.mgrid[:200, :260]
    light[np.hypot(yy - 30, xx - 220) < 9] *= 0.5  # dust
    image = picture(light)
    image[8:20, 40:200] = (30, 60, 180)  # blue ink
    image[28:40, 40:200] = (30, 170, 70)  # green ink
    image[180:192, 40:200] = (25, 25, 28)  # black ink
    image[:, 245:] = 0  # never scanned
    image[BLOCK] = stained(80, 100)
    mask = Texture().segment(image, 8.0)
    assert iou(mask) > 0.9


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (3, 2), (30, 30)])
def test_tiny_pictures(shape: tuple[int, int]) -> None:
    assert not Texture().segment(np.full((*shape, 3), 240, np.uint8), 8.0).any()


@pytest.mark.parametrize("spec", ["mpp=0.0", "contrast=0.0", "pale=-1.0", "window_um=0.0", "smooth_um=-1.0"])
def test_senseless_settings_are_refused(spec: str) -> None:
    with pytest.raises(UsageError, match="texture") as caught:
        create("tissue", f"texture({spec})")
    assert caught.value.hint
