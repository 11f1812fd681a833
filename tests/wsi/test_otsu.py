"""Otsu's threshold within bounds: it empties no slide and fills none."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from histotl.core.errors import UsageError
from histotl.core.registry import create
from histotl.wsi.tissue.otsu import By, Otsu

WAYS: tuple[By, ...] = ("saturation", "density")
EOSIN, PALE = (215, 130, 180), (235, 205, 226)


def glass(side: int = 300, sd: float = 2.0) -> npt.NDArray[np.float64]:
    return 240 + np.random.default_rng(0).normal(0, sd, (side, side, 3))


def picture(light: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    return np.clip(light, 0, 255).astype(np.uint8)


def disc(side: int = 300, radius: float = 90) -> npt.NDArray[np.bool_]:
    y, x = np.mgrid[:side, :side] - side / 2
    inside: npt.NDArray[np.bool_] = x * x + y * y < radius * radius
    return inside


def iou(a: npt.NDArray[np.bool_], b: npt.NDArray[np.bool_]) -> float:
    return float((a & b).sum() / (a | b).sum())


@pytest.mark.parametrize("by", WAYS)
@pytest.mark.parametrize("colour", [EOSIN, PALE, (110, 60, 140)])
def test_tissue_is_found(by: By, colour: tuple[int, int, int]) -> None:
    light = glass()
    light[disc()] += np.array(colour) - 240
    assert iou(Otsu(by=by).segment(picture(light), 8.0), disc()) > 0.93


@pytest.mark.parametrize("by", WAYS)
@pytest.mark.parametrize("sd", [0.0, 1.0, 4.0])
def test_empty_glass_stays_empty(by: By, sd: float) -> None:
    assert Otsu(by=by).segment(picture(glass(sd=sd)), 8.0).mean() < 0.001


@pytest.mark.parametrize("by", WAYS)
def test_pale_tissue_is_not_parted_from_dark_tissue_where_there_is_no_glass(by: By) -> None:
    light = glass()
    light += np.array((225, 160, 200)) - 240
    light[disc()] += np.array((100, 50, 120)) - np.array((225, 160, 200))
    assert Otsu(by=by).segment(picture(light), 8.0).mean() > 0.99


@pytest.mark.parametrize("by", WAYS)
def test_what_was_not_imaged_is_no_tissue(by: By) -> None:
    light = glass()
    light[:, :60] = np.random.default_rng(1).integers(0, 12, (300, 60, 3))
    assert not Otsu(by=by).segment(picture(light), 8.0)[:, :50].any()


def test_a_shadow_has_density_and_no_saturation() -> None:
    light = glass()
    light[disc()] -= 90
    shadow = picture(light)
    assert Otsu(by="density").segment(shadow, 8.0)[disc(radius=80)].all()
    assert not Otsu(by="saturation").segment(shadow, 8.0).any()


@pytest.mark.parametrize("spec", ["mpp=0.0", "least=0.2, most=0.1", "most=1.5", "smooth_um=-1.0", "by='hue'"])
def test_senseless_settings_are_refused(spec: str) -> None:
    with pytest.raises(UsageError, match="otsu"):
        create("tissue", f"otsu({spec})")
