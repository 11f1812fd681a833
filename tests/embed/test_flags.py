"""A mask that is nearly full, nearly empty or far smaller than the others' is flagged; an empty one fails."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from histotl.cli.main import call
from histotl.core.values import SlideInfo
from histotl.embed.config import EmbedConfig, TileConfig
from histotl.embed.engine import embed_slides
from histotl.embed.flags import mask_flags
from histotl.embed.summary import RunSummary, read_failures
from histotl.embed.tile import tile_slides
from histotl.store import layout
from histotl.store.coords import read_coords
from histotl.wsi.mask import TissueMask
from histotl.wsi.pyramid import write_pyramid

TILING = TileConfig(tile_px=64, mpp=1.0)


def tissue(height: int, width: int) -> np.ndarray:
    """Stained texture from border to border, uint8 (height, width, 3)."""
    rng = np.random.default_rng(height)
    image = np.full((height, width, 3), (226.0, 150.0, 190.0))
    image[rng.random((height, width)) < 0.3] = (98, 58, 142)
    return (image + rng.normal(0, 3, image.shape)).clip(0, 255).astype(np.uint8)


def glass(height: int = 1500, width: int = 1500) -> np.ndarray:
    return np.random.default_rng(0).normal(243, 1.5, (height, width, 3)).clip(0, 255).astype(np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A slide as it should be, one that is all tissue, one with a crumb."""
    folder = tmp_path / "slides"
    folder.mkdir()
    good = glass()
    good[300:1200, 300:1200] = tissue(900, 900)
    crumb = glass()
    crumb[640:800, 640:800] = tissue(160, 160)
    for name, image in {"good": good, "full": tissue(700, 900), "crumb": crumb}.items():
        write_pyramid(folder / f"{name}.tiff", image, mpp=1.0, levels=(1, 4))
    return folder


def kinds(summary: RunSummary) -> dict[str, str]:
    return {flag.slide_id: flag.flag for flag in summary.flagged}


def test_odd_masks_are_flagged_in_the_summary_the_table_and_the_file(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    summary = tile_slides(folder, out, tiling=TILING)
    assert (summary.done, summary.ok) == (3, True)
    assert kinds(summary) == {"full": "nearly_full", "crumb": "nearly_empty"}
    for flag in summary.flagged:
        assert flag.message.startswith(f"{flag.slide_id}: ")
        assert "mm²" in flag.message
        assert "contours" in flag.hint
    table = pd.read_csv(out / "flags.csv")
    assert table["slide_id"].tolist() == ["crumb", "full"]
    assert table["path"].tolist() == [str(folder / "crumb.tiff"), str(folder / "full.tiff")]
    found = {name: read_coords(layout.coords_path(out, TILING.spec, name)) for name in ("good", "full", "crumb")}
    assert {name: file.flags for name, file in found.items()} == {
        "good": (),
        "full": ("nearly_full",),
        "crumb": ("nearly_empty",),
    }
    assert found["full"].tissue_mm2 == pytest.approx(0.63, rel=0.05)
    assert found["good"].tissue_mm2 == pytest.approx(0.81, rel=0.05)


def test_slides_that_are_skipped_stay_flagged_and_those_that_are_put_right_do_not(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = tile_slides(folder, out, tiling=TILING)
    again = tile_slides(folder, out, tiling=TILING)
    assert (again.done, again.skipped, again.flagged) == (0, 3, first.flagged)
    only = tile_slides(folder / "good.tiff", out, tiling=TILING)
    assert only.flagged == ()
    assert len(pd.read_csv(out / "flags.csv")) == 2  # of the slides that this run was not about
    shutil.copy(folder / "good.tiff", folder / "full.tiff")
    assert kinds(tile_slides(folder, out, tiling=TILING)) == {"crumb": "nearly_empty"}
    write_pyramid(folder / "crumb.tiff", glass(), mpp=1.0, levels=(1, 4))
    last = tile_slides(folder, out, tiling=TILING)
    assert (last.flagged, [f.error for f in last.failed]) == ((), ["NoTissueError"])
    assert not (out / "flags.csv").exists()


def test_embedding_flags_too(folder: Path, tmp_path: Path) -> None:
    config = EmbedConfig(backbone=("color_stats",), device="cpu")
    summary = embed_slides(folder, tmp_path / "out", tiling=TILING, config=config)
    assert kinds(summary) == {"full": "nearly_full", "crumb": "nearly_empty"}
    again = embed_slides(folder, tmp_path / "out", tiling=TILING, config=config)
    assert (again.skipped, again.flagged) == (3, summary.flagged)


def test_a_slide_with_far_less_tissue_than_the_others_stands_out(tmp_path: Path) -> None:
    folder = tmp_path / "slides"
    folder.mkdir()
    for number in range(5):
        image = glass()
        side = 1430 if number else 120
        image[50 : 50 + side, 50 : 50 + side] = tissue(side, side)
        write_pyramid(folder / f"s{number}.tiff", image, mpp=2.0, levels=(1, 4))
    tiling = TileConfig(tile_px=64, mpp=2.0)
    summary = tile_slides(folder, tmp_path / "out", tiling=tiling)
    assert kinds(summary) == {"s0": "far_less_than_others"}
    few = tile_slides(folder / "s[012].tiff", tmp_path / "few", tiling=tiling)
    assert few.flagged == ()  # too few to compare


def test_the_command_says_so(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    arguments = ["tile", str(folder), str(out), "--tile-px", "64", "--mpp", "1.0", "--quiet"]
    assert call([*arguments, "--json"]) == 0
    told = capsys.readouterr()
    assert {flag["flag"] for flag in json.loads(told.out)["flagged"]} == {"nearly_full", "nearly_empty"}
    assert "flagged: full: the tissue mask covers nearly all" in told.err
    assert str(out / "flags.csv") in told.err
    assert call(arguments) == 0
    assert "0 failed, 2 flagged" in capsys.readouterr().out


def test_only_what_was_scanned_counts(tmp_path: Path) -> None:
    from histotl.wsi.slide import open_array

    info = open_array(glass(400, 400), mpp=8.0).info
    mask = np.zeros((100, 100), bool)
    mask[20:60, 30:90] = True
    full = TissueMask(mask=mask, scale_l0=(4.0, 4.0), area_mm2=2.4)
    assert mask_flags(full, info) == ()
    inside = SlideInfo(**vars(info) | {"bounds_l0": (120, 80, 240, 160)})
    assert mask_flags(full, inside) == ("nearly_full",)
    assert mask_flags(TissueMask(mask=mask, scale_l0=(4.0, 4.0), area_mm2=0.01), info) == ("nearly_empty",)


def test_an_inverted_mask_of_another_tool_is_flagged(folder: Path, tmp_path: Path) -> None:
    inverted = np.full((150, 150), 255, np.uint8)
    inverted[60:80, 60:80] = 0
    Image.fromarray(inverted).save(tmp_path / "mask.png")
    tiling = TileConfig(tile_px=64, mpp=1.0, tissue=f"from_mask(path={str(tmp_path / 'mask.png')!r})")
    assert kinds(tile_slides(folder / "crumb.tiff", tmp_path / "out", tiling=tiling)) == {"crumb": "nearly_full"}


@pytest.mark.parametrize("tissue_spec", ["hysteresis", "texture", "otsu", "otsu(by='density')"])
@pytest.mark.parametrize(
    ("name", "level", "error"), [("white", 255, "NoTissueError"), ("black", 0, "NoTissueError"), ("grey", 120, "")]
)
def test_slides_of_one_colour_fail_with_a_cure(
    tmp_path: Path, tissue_spec: str, name: str, level: int, error: str
) -> None:
    path = write_pyramid(
        tmp_path / f"{name}.tiff", np.full((700, 900, 3), level, np.uint8), mpp=1.0, levels=(1, 4), tile_px=128
    )
    tiling = TileConfig(tile_px=64, mpp=1.0, tissue=tissue_spec)
    summary = tile_slides(path, tmp_path / "out", tiling=tiling)
    outcome = [(failure.slide_id, failure.error) for failure in summary.failed]
    if not error:  # flat grey has density and no colour
        error = "" if "density" in tissue_spec else "NoTissueError"
    if error:
        assert (summary.done, summary.n_tiles, outcome) == (0, 0, [(name, error)])
        assert summary.failed[0].hint
        assert [failure.slide_id for failure in read_failures(tmp_path / "out")] == [name]
        assert layout.contour_path(tmp_path / "out", name).is_file()
    else:
        assert kinds(summary) == {name: "nearly_full"}


def test_a_coordinates_file_without_flags_is_read(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    tile_slides(folder / "full.tiff", out, tiling=TILING)
    path = layout.coords_path(out, TILING.spec, "full")
    with h5py.File(path, "r+") as file:
        del file.attrs["histotl_flags"], file.attrs["histotl_tissue_mm2"]
    found = read_coords(path)
    assert (found.flags, found.tissue_mm2) == ((), None)
    assert tile_slides(folder / "full.tiff", out, tiling=TILING).flagged == ()
