"""Fluorescence and single channels are refused; brightfield, however dark or pale, is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from PIL import Image
from scipy import ndimage

from histotl.core.errors import NotBrightfieldError
from histotl.wsi.pyramid import write_pyramid
from histotl.wsi.readers._brightfield import fault_of
from histotl.wsi.slide import open_slide

Pixels = npt.NDArray[np.uint8]
Waves = Callable[[int, int], Pixels]
Stained = Callable[..., Pixels]


def fluorescence(*colours: tuple[float, float, float]) -> Pixels:
    """Nuclei on black, each colour's a few pixels apart from the others'."""
    rng = np.random.default_rng(0)
    image = rng.gamma(1.0, 4.0, (300, 400, 3))
    for number, colour in enumerate(colours):
        field = ndimage.gaussian_filter(rng.normal(size=(300, 400)), 5)
        light = np.clip(field / field.std() - 0.5 - 0.2 * number, 0, None)[..., None]
        image += 150 * light * np.array(colour)
    return np.clip(image, 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    "colours", [[(0, 0, 1)], [(0, 0, 1), (0, 1, 0)], [(1, 0, 0), (0, 1, 0), (0, 0, 1)], [(0.3, 0.3, 1)]]
)
@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_fluorescence_is_refused(tmp_path: Path, colours: list[tuple[float, float, float]], suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    if suffix == "tiff":
        write_pyramid(path, fluorescence(*colours), mpp=0.5, levels=(1,), quality=95)
    else:
        Image.fromarray(fluorescence(*colours)).save(path)
    with pytest.raises(NotBrightfieldError, match="not brightfield RGB") as caught:
        open_slide(path, mpp=0.5)
    assert "fluorescence" in caught.value.message


def test_single_channels_are_refused(tmp_path: Path, stained: Stained) -> None:
    grey = stained(320, 416)[..., 1]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(grey).save(tmp_path / "grey.jpg")
    tifffile.imwrite(tmp_path / "grey.tif", grey)
    tifffile.imwrite(tmp_path / "channels.ome.tif", np.stack([grey, grey // 2]), metadata={"axes": "CYX"})
    Image.fromarray(np.dstack([grey] * 3)).save(tmp_path / "grey-as-rgb.png")
    write_pyramid(tmp_path / "grey-as-rgb.tiff", np.dstack([grey] * 3), mpp=0.5, levels=(1,))
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(NotBrightfieldError, match="not brightfield RGB") as caught:
            open_slide(path, mpp=0.5)
        assert path.name in caught.value.message


def test_brightfield_of_all_kinds_passes(stained: Stained, waves: Waves) -> None:
    """Under- and overexposed, pale, heavily stained, without glass, with black borders, empty."""
    for strength in (0.05, 0.5, 1.0, 3.0):
        for glass in (60, 120, 243, 255):
            tissue = stained(120, 120, strength=strength, glass=glass)
            assert fault_of(tissue.reshape(-1, 3)) == "", (strength, glass)
            bordered = np.zeros((300, 300, 3), np.uint8)
            bordered[:120, :120] = tissue
            assert fault_of(bordered.reshape(-1, 3)) == "", (strength, glass)
    for empty in (0, 128, 255):
        assert fault_of(np.full((1000, 3), empty, np.uint8)) == ""
    noisy = np.random.default_rng(0).normal(242, 1.5, (5000, 1)) + np.array([0, -1, 1])
    assert fault_of(noisy.astype(np.uint8)) == ""
    assert fault_of(waves(300, 300).reshape(-1, 3)) == ""
