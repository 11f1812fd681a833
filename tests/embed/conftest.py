"""Tiny slides that are written once, and the options that fit them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from scipy import ndimage

from histotl.embed.config import EmbedConfig, TileConfig


def tissue(seed: int, *, width: int = 768, height: int = 640) -> np.ndarray:
    """A pink and violet blob with texture on near-white glass, uint8 (height, width, 3)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    edge = ndimage.gaussian_filter(rng.normal(size=(height, width)), 24) * 14
    inside = ((x - width / 2) / (0.40 * width)) ** 2 + ((y - height / 2) / (0.40 * height)) ** 2 + edge < 1
    nuclei = ndimage.gaussian_filter(rng.normal(size=(height, width)), 2) > 0.09
    image = np.full((height, width, 3), 243.0)
    image[inside] = (226, 150, 190)
    image[inside & nuclei] = (98, 58, 142)
    image += rng.normal(0, 3, size=image.shape)
    return image.clip(0, 255).astype(np.uint8)


def spoil_level0(path: Path) -> None:
    """Overwrite the second half of the level-0 JPEG tiles with zeros: the slide opens, a region of it does not."""
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        places = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    with path.open("r+b") as raw:
        for offset, count in places[len(places) // 2 :]:
            raw.seek(offset)
            raw.write(b"\0" * count)


@pytest.fixture(scope="session")
def _slide_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from histotl.wsi.pyramid import write_pyramid

    folder = tmp_path_factory.mktemp("slides")
    for name in ("a", "b", "c"):
        write_pyramid(folder / f"{name}.tiff", tissue(ord(name)), mpp=1.0, levels=(1, 4))
    return folder


@pytest.fixture
def slides(_slide_folder: Path, tmp_path: Path) -> Path:
    """Folder with the slides a, b and c (768×640 at 1 µm/px) that a test may change."""
    return Path(shutil.copytree(_slide_folder, tmp_path / "slides"))


@pytest.fixture
def add_bad_slides() -> Callable[[Path], None]:
    """Adds four slides that fail, each in its own way and spread among the good ones."""
    from histotl.wsi.pyramid import write_pyramid

    def add(folder: Path) -> None:
        (folder / "a_garbage.tiff").write_bytes(b"this is not a slide")
        write_pyramid(folder / "a_glass.tiff", np.full((640, 768, 3), 243, np.uint8), mpp=1.0, levels=(1, 4))
        write_pyramid(folder / "b_coarse.tiff", tissue(7), mpp=4.0, levels=(1,))
        spoil_level0(write_pyramid(folder / "b_spoiled.tiff", tissue(8), mpp=1.0, levels=(1, 4)))

    return add


@pytest.fixture
def tiling() -> TileConfig:
    """Some fifty tiles of 64 px a slide."""
    return TileConfig(tile_px=64, mpp=1.0)


@pytest.fixture
def config() -> EmbedConfig:
    """The backbone that costs nothing, exact numbers."""
    return EmbedConfig(backbone=("color_stats",), dtype="fp32", device="cpu")


@pytest.fixture
def patch_set(tmp_path: Path) -> Path:
    """A manifest of 12 patches of two sizes in two folders, in an order that is not sorted."""
    folder = tmp_path / "patches"
    rows = ["path,label"]
    for i in range(12):
        side = (48, 64)[i % 2]
        path = Path(f"site{i % 3}") / f"p{(i * 7) % 12:02d}.png"
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        whole = tissue(i, width=320, height=320)
        Image.fromarray(whole[130 : 130 + side, 130 : 130 + side]).save(folder / path)
        rows.append(f"{path.as_posix()},{'no' if i % 2 else 'yes'}")
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")
    return folder / "manifest.csv"


def leftovers(out: Path) -> list[str]:
    """Temporary files and locks under a folder."""
    return sorted(p.name for p in out.rglob("*") if p.name.endswith((".part", ".lock")))


@pytest.fixture(name="leftovers")
def _leftovers() -> Callable[[Path], list[str]]:
    """Lists temporary files and locks under a folder."""
    return leftovers
