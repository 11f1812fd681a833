"""Slides in, files out: what is written, what is skipped, what fails."""

from __future__ import annotations

import csv
import dataclasses
import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from histotl.backbones.color_stats import ColorStatsEmbedder
from histotl.core.errors import SetupError, TableError, UnknownNameError, UsageError, WeightsError
from histotl.core.progress import Step
from histotl.embed._job import SlideJob
from histotl.embed.config import EmbedConfig, TileConfig
from histotl.embed.engine import embed_slides
from histotl.embed.summary import Failure
from histotl.embed.tile import tile_slides
from histotl.store.coords import read_coords
from histotl.store.embeddings import check_file, open_embeddings
from histotl.wsi.slide import open_slide

FOLDER = "10x_64px_0px_overlap"


def rows_of(out: Path, backbone: str = "color_stats") -> dict[str, np.ndarray]:
    files = sorted((out / FOLDER / f"features_{backbone}").glob("*.h5"))
    return {file.stem: open_embeddings(file).read() for file in files}


def test_embed_writes_the_layout(slides, tmp_path, tiling, config, leftovers):
    out, steps = tmp_path / "out", []
    summary = embed_slides(slides, out, tiling=tiling, config=config, report=steps.append)
    assert (summary.done, summary.skipped, summary.failed, summary.busy) == (3, 0, (), 0)
    for name in "abc":
        file = out / FOLDER / "features_color_stats" / f"{name}.h5"
        assert check_file(file) == []
        found = open_embeddings(file)
        assert found.source_fingerprint
        assert found.provenance is not None
        assert found.provenance.specs["backbones"] == ["color_stats"]
        coords = read_coords(out / FOLDER / "patches" / f"{name}_patches.h5")
        np.testing.assert_array_equal(coords.coords_l0, found.coords_l0)
        assert json.loads((out / "contours_geojson" / f"{name}.geojson").read_text())["features"]
        for folder in ("thumbnails", "contours"):
            with Image.open(out / folder / f"{name}.jpg") as picture:
                assert picture.size == (768, 640)
    assert leftovers(out) == []
    assert not (out / "failures.csv").exists()
    assert steps[-1] == Step(stage="embed", done=3, total=3, units_done=summary.n_tiles, units="tiles")
    assert [s.units_done for s in steps] == sorted(s.units_done for s in steps)


def test_rows_are_the_tiles_of_the_grid_in_order(slides, tmp_path, tiling, config):
    out = tmp_path / "out"
    embed_slides(slides, out, tiling=tiling, config=config)
    found = open_embeddings(out / FOLDER / "features_color_stats" / "a.h5")
    coords = found.coords_l0
    order = np.lexsort((coords[:, 0], coords[:, 1]))
    np.testing.assert_array_equal(order, np.arange(len(coords)))
    with open_slide(slides / "a.tiff") as slide:
        for row in (0, len(coords) // 2, len(coords) - 1):
            x, y = coords[row]
            pixels = torch.from_numpy(slide.read(x, y, (64.0, 64.0), 64))
            np.testing.assert_allclose(found.read()[row], ColorStatsEmbedder()(pixels[None])[0], rtol=1e-6)


@pytest.mark.parametrize("stain", ["none", "macenko"])
def test_workers_and_batch_size_do_not_change_the_features(slides, tmp_path, tiling, stain):
    reference = None
    for workers, batch_size in ((1, 32), (3, 7), (2, 1000)):
        config = EmbedConfig(
            backbone=("scattering(input_px=64)",),
            stain=stain,
            dtype="fp32",
            device="cpu",
            workers=workers,
            batch_size=batch_size,
        )
        out = tmp_path / f"{workers}-{batch_size}"
        assert embed_slides(slides, out, tiling=tiling, config=config).ok
        found = rows_of(out, "scattering")
        reference = reference or found
        for name, rows in found.items():
            np.testing.assert_allclose(rows, reference[name], rtol=1e-6, atol=1e-6 * np.abs(rows).max())


def test_a_second_run_skips_and_a_changed_identity_does_not(slides, tmp_path, tiling, config):
    out = tmp_path / "out"
    embed_slides(slides, out, tiling=tiling, config=config)
    file = out / FOLDER / "features_color_stats" / "b.h5"
    written = file.stat().st_mtime_ns
    again = embed_slides(slides, out, tiling=tiling, config=config)
    assert (again.done, again.skipped, again.n_tiles) == (0, 3, 0)
    assert file.stat().st_mtime_ns == written
    half = embed_slides(slides, out, tiling=tiling, config=dataclasses.replace(config, dtype="fp16"))
    assert (half.done, half.skipped) == (3, 0)
    assert open_embeddings(file).dtype == np.float16
    assert embed_slides(slides, out, tiling=tiling, config=dataclasses.replace(config, overwrite=True)).done == 3


@pytest.mark.parametrize(
    "change", [{"min_area_um2": 20_000.0}, {"max_hole_um2": 10.0}, {"mpp_override": 1.01}, {"min_tissue": 0.3}]
)
def test_whatever_changes_the_tiles_makes_the_files_again(slides, tmp_path, tiling, config, change):
    changed = dataclasses.replace(tiling, **change)
    for run in (tile_slides, lambda *a, **k: embed_slides(*a, config=config, **k)):
        assert run(slides, tmp_path / "out", tiling=tiling).done == 3
        assert run(slides, tmp_path / "out", tiling=tiling).skipped == 3
        assert run(slides, tmp_path / "out", tiling=changed).done == 3


def test_a_replaced_slide_is_done_again(slides, tmp_path, tiling, config):
    out = tmp_path / "out"
    embed_slides(slides, out, tiling=tiling, config=config)
    before = rows_of(out)
    shutil.copy(slides / "a.tiff", slides / "c.tiff")
    again = embed_slides(slides, out, tiling=tiling, config=config)
    assert (again.done, again.skipped) == (1, 2)
    np.testing.assert_array_equal(rows_of(out)["c"], before["a"])


def test_a_damaged_file_is_made_again(slides, tmp_path, tiling, config):
    out = tmp_path / "out"
    embed_slides(slides, out, tiling=tiling, config=config)
    file = out / FOLDER / "features_color_stats" / "b.h5"
    file.write_bytes(file.read_bytes()[:2000])
    assert embed_slides(slides, out, tiling=tiling, config=config).done == 1
    assert check_file(file) == []


def test_failing_slides_are_recorded_and_the_run_goes_on(slides, tmp_path, tiling, config, add_bad_slides, leftovers):
    good = tmp_path / "good"
    embed_slides(slides, good, tiling=tiling, config=config)
    add_bad_slides(slides)
    out, steps = tmp_path / "out", []
    summary = embed_slides(slides, out, tiling=tiling, config=config, report=steps.append)
    assert (summary.done, len(summary.failed), summary.ok) == (3, 4, False)
    with (out / "failures.csv").open(newline="") as file:
        rows = {row["slide_id"]: row for row in csv.DictReader(file)}
    assert {name: row["error"] for name, row in rows.items()} == {
        "a_garbage": "SlideOpenError",
        "a_glass": "NoTissueError",
        "b_coarse": "UpsamplingError",
        "b_spoiled": "SlideReadError",
    }
    assert all(row["message"] and row["hint"] for row in rows.values())
    assert rows["b_spoiled"]["path"] == str(slides / "b_spoiled.tiff")
    # The good ones are what they are without the bad ones beside them, and of the bad ones there is no file.
    found, wanted = rows_of(out), rows_of(good)
    assert found.keys() == wanted.keys()
    for name in found:
        np.testing.assert_array_equal(found[name], wanted[name])
    assert leftovers(out) == []
    assert sum("b_spoiled" in step.message for step in steps) == 1
    # When the bad ones are gone, so is the table.
    for name in rows:
        (slides / f"{name}.tiff").unlink()
    assert embed_slides(slides, out, tiling=tiling, config=config).skipped == 3
    assert not (out / "failures.csv").exists()


def test_a_fault_of_our_own_does_not_stop_the_run(slides, tmp_path, tiling, config, monkeypatch, caplog, leftovers):
    real = SlideJob.read

    def broken(job, rows, out):
        if job.info.slide_id == "b":
            raise ZeroDivisionError("a bug")
        real(job, rows, out)

    monkeypatch.setattr(SlideJob, "read", broken)
    with caplog.at_level(logging.WARNING):
        summary = embed_slides(slides, tmp_path / "out", tiling=tiling, config=config)
    assert summary.done == 2
    assert [(f.slide_id, f.error, f.message) for f in summary.failed] == [("b", "ZeroDivisionError", "a bug")]
    assert "report" in summary.failed[0].hint
    assert "Traceback" in caplog.text
    assert leftovers(tmp_path / "out") == []


def test_several_backbones_are_fed_from_one_read(slides, tmp_path, tiling, monkeypatch):
    real, read = SlideJob.read, []

    def counting(job, rows, out):
        read.append(rows.stop - rows.start)
        real(job, rows, out)

    monkeypatch.setattr(SlideJob, "read", counting)
    both = EmbedConfig(backbone=("color_stats", "scattering(input_px=64)"), dtype="fp32", device="cpu")
    summary = embed_slides(slides, tmp_path / "both", tiling=tiling, config=both)
    assert sum(read) == summary.n_tiles > 0
    for backbone in both.backbone:
        alone = tmp_path / backbone
        embed_slides(slides, alone, tiling=tiling, config=dataclasses.replace(both, backbone=(backbone,)))
        name = backbone.partition("(")[0]
        together, single = rows_of(tmp_path / "both", name), rows_of(alone, name)
        assert together.keys() == single.keys() == set("abc")
        for slide, rows in single.items():
            np.testing.assert_array_equal(rows, together[slide])


def test_only_the_missing_backbone_is_computed(slides, tmp_path, tiling, config):
    out = tmp_path / "out"
    embed_slides(slides, out, tiling=tiling, config=config)
    times = {f: f.stat().st_mtime_ns for f in (out / FOLDER / "features_color_stats").glob("*.h5")}
    both = dataclasses.replace(config, backbone=("color_stats", "scattering(input_px=64)"))
    assert embed_slides(slides, out, tiling=tiling, config=both).done == 3
    assert {f: f.stat().st_mtime_ns for f in times} == times
    assert len(rows_of(out, "scattering")) == 3


def test_stain_is_fitted_once_a_slide_and_kept_in_the_file(slides, tmp_path, tiling, config):
    out = tmp_path / "out"
    embed_slides(slides, out, tiling=tiling, config=dataclasses.replace(config, stain="macenko"))
    found = {n: open_embeddings(out / FOLDER / "features_color_stats" / f"{n}.h5") for n in "ab"}
    assert found["a"].stain_state
    assert found["a"].stain_state != found["b"].stain_state
    assert found["a"].identity.stain.startswith("macenko(")


def test_tile_and_embed_agree(slides, tmp_path, tiling, config):
    summary = tile_slides(slides, tmp_path / "tiled", tiling=tiling)
    embedded = embed_slides(slides, tmp_path / "out", tiling=tiling, config=config)
    assert summary.n_tiles == embedded.n_tiles > 0
    assert (summary.done, summary.ok) == (3, True)
    made = {p.relative_to(tmp_path / "tiled") for p in (tmp_path / "tiled").rglob("*") if p.is_file()}
    assert len(made) == 3 * 4
    for path in made:
        if path.suffix != ".h5":
            assert (tmp_path / "tiled" / path).read_bytes() == (tmp_path / "out" / path).read_bytes()
        else:
            a, b = read_coords(tmp_path / "tiled" / path), read_coords(tmp_path / "out" / path)
            np.testing.assert_array_equal(a.coords_l0, b.coords_l0)


def test_tile_records_failures_too(slides, tmp_path, tiling, add_bad_slides):
    add_bad_slides(slides)
    summary = tile_slides(slides, tmp_path / "out", tiling=tiling)
    # Without reading tiles, a spoiled region shows only where the tissue is looked for.
    assert {f.slide_id for f in summary.failed} >= {"a_garbage", "a_glass", "b_coarse"}
    assert summary.done + len(summary.failed) == 7
    assert (tmp_path / "out" / "failures.csv").is_file()
    # The pictures of a slide without tissue are there to see why.
    assert (tmp_path / "out" / "contours" / "a_glass.jpg").is_file()


@pytest.mark.parametrize(
    ("options", "kind", "code"),
    [
        ({"backbone": ("scatering",)}, UnknownNameError, 2),
        ({"stain": "makenko"}, UnknownNameError, 2),
        ({"backbone": ("timm/mobilenetv2_035(weights='/nowhere.pth')",)}, WeightsError, 3),
        ({"device": "cuda:99"}, SetupError, 3),
    ],
)
def test_wrong_options_fail_before_any_slide_is_opened(
    slides, tmp_path, tiling, config, monkeypatch, options, kind, code
):
    monkeypatch.setattr("histotl.embed._slides.open_slide", lambda *a, **k: pytest.fail("a slide was opened"))
    with pytest.raises(kind) as caught:
        embed_slides(slides, tmp_path / "out", tiling=tiling, config=dataclasses.replace(config, **options))
    assert caught.value.exit_code == code
    assert caught.value.hint


@pytest.mark.parametrize("options", [{"tissue": "clasic"}, {"reader": "openslid"}])
def test_wrong_tiling_fails_before_any_slide_is_opened(slides, tmp_path, tiling, config, monkeypatch, options):
    monkeypatch.setattr("histotl.embed._slides.open_slide", lambda *a, **k: pytest.fail("a slide was opened"))
    for run in (tile_slides, lambda *a, **k: embed_slides(*a, config=config, **k)):
        with pytest.raises(UnknownNameError):
            run(slides, tmp_path / "out", tiling=dataclasses.replace(tiling, **options))


def test_two_slides_of_one_name_are_refused(slides, tmp_path, tiling, config):
    (slides / "more").mkdir()
    shutil.copy(slides / "a.tiff", slides / "more" / "a.tiff")
    (tmp_path / "m.csv").write_text(f"wsi\n{slides / 'a.tiff'}\n{slides / 'more' / 'a.tiff'}\n")
    with pytest.raises(TableError):
        embed_slides(tmp_path / "m.csv", tmp_path / "out", tiling=tiling, config=config)


def test_torch_threads_come_back(slides, tmp_path, tiling, config):
    threads = torch.get_num_threads()
    embed_slides(slides, tmp_path / "out", tiling=tiling, config=dataclasses.replace(config, workers=3))
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("verb", [embed_slides, tile_slides])
def test_an_output_that_is_a_file_is_refused(slides, tmp_path, verb):
    (tmp_path / "out").touch()
    with pytest.raises(UsageError, match="is a file"):
        verb(slides, tmp_path / "out")


def test_an_output_inside_of_the_slides_is_not_read_as_slides(slides, tiling, config):
    for out in (slides / "out", slides):
        assert embed_slides(slides, out, tiling=tiling, config=config).done == 3
        assert embed_slides(slides, out, tiling=tiling, config=config).skipped == 3


def test_a_slide_smaller_than_a_tile_is_told_so(slides, tmp_path, config):
    tiling = TileConfig(tile_px=700, mpp=1.0)
    (failure, *_) = embed_slides(slides, tmp_path / "out", tiling=tiling, config=config).failed
    assert failure.sentence == "a: the slide has 768×640 µm, less than a tile of 700 µm"
    assert "--edge pad" in failure.hint
    padded = dataclasses.replace(tiling, edge="pad")
    assert embed_slides(slides, tmp_path / "out", tiling=padded, config=config).ok


def test_files_of_other_options_are_not_replaced_silently(slides, tmp_path, tiling, config, caplog):
    out = tmp_path / "out"
    embed_slides(slides, out, tiling=tiling, config=config)
    embed_slides(slides, out, tiling=tiling, config=config)
    assert "other options" not in caplog.text
    embed_slides(slides, out, tiling=tiling, config=dataclasses.replace(config, dtype="fp16"))
    (told,) = [record.getMessage() for record in caplog.records if "other options" in record.getMessage()]
    assert "dtype: 'fp32' != 'fp16'" in told


def test_a_folder_of_pictures_that_cannot_be_made_is_not_our_fault(slides, tmp_path, tiling, config):
    out = tmp_path / "out"
    out.mkdir()
    (out / "contours").touch()
    summary = embed_slides(slides, out, tiling=tiling, config=config)
    assert {failure.error for failure in summary.failed} == {"StoreError"}
    assert all("rights" in failure.hint for failure in summary.failed)


def test_the_name_of_a_slide_is_said_once():
    said = Failure(slide_id="a", path="a.svs", error="MppError", message="a.svs: no pixel size", hint="")
    assert said.sentence == "a.svs: no pixel size"
    assert dataclasses.replace(said, slide_id="case 1").sentence == "case 1: a.svs: no pixel size"
