"""Fluorescence and single channels are refused; brightfield, however dark or pale, is not."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from PIL import Image
from scipy import ndimage

from histotl.core.errors import NotBrightfieldError
from histotl.wsi._counts import percentiles, tally
from histotl.wsi._opening import first_that_opens
from histotl.wsi.pyramid import write_pyramid
from histotl.wsi.readers._brightfield import check_brightfield, fault_of
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


def test_pixels_are_counted_as_numpy_ranks_them() -> None:
    rng = np.random.default_rng(0)
    for size in (1, 2, 3, 17, 1000):
        values = rng.integers(0, 256, size).astype(np.uint8)
        found = percentiles(tally(values), (0, 1, 16, 50, 95, 99.9, 100))
        assert found == pytest.approx(np.percentile(values, (0, 1, 16, 50, 95, 99.9, 100)).tolist())


@pytest.mark.parametrize("bright", [True, False])
def test_of_large_levels_few_whole_tiles_are_read(tmp_path: Path, stained: Stained, bright: bool) -> None:
    """Each JPEG tile of the sample once, and from border to border."""
    image = np.zeros((2000, 3000, 3), np.uint8)
    piece = stained(1400, 2200) if bright else fluorescence((0, 0, 1)).repeat(5, 0).repeat(6, 1)[:1400, :2200]
    image[300:1700, 400:2600] = piece
    path = write_pyramid(tmp_path / "large.tiff", image, mpp=0.5, levels=(1,))
    with open_slide(path) if bright else nullcontext() as slide:
        assert slide is None or slide.info.width == 3000
    if not bright:
        with pytest.raises(NotBrightfieldError, match="fluorescence"):
            open_slide(path)
    _, backend = first_that_opens(path, None)
    regions = []

    class Watched:
        info = backend.info
        tiled = staticmethod(backend.tiled)

        def read_region(self, *region: int) -> Pixels:
            regions.append(region)
            return backend.read_region(*region)

    assert backend.tiled(0) is not None
    if bright:
        check_brightfield(Watched(), "large.tiff")  # type: ignore[arg-type]
        assert len(regions) == 16
        assert {(x % 256, y % 256) for x, y, *_ in regions} == {(0, 0)}
        assert max(x + width for x, _, _, width, _ in regions) == 3000
        assert max(y + height for _, y, _, _, height in regions) == 2000
    backend.close()
