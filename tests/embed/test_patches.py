from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from histotl.backbones.color_stats import ColorStatsEmbedder
from histotl.core.errors import TableError, UnknownNameError, UsageError
from histotl.core.progress import Step
from histotl.embed._patch_set import Patch, list_patches, read_patch
from histotl.embed.config import EmbedConfig
from histotl.embed.patches import embed_patches
from histotl.embed.summary import read_failures
from histotl.store.embeddings import check_file, open_embeddings


def expected(path: Path) -> np.ndarray:
    """What the backbone says of one image read without our reader."""
    pixels = np.array(Image.open(path).convert("RGB"))
    return ColorStatsEmbedder()(torch.from_numpy(pixels)[None])[0].numpy()


def texts(manifest: Path) -> list[str]:
    return [line.split(",")[0] for line in manifest.read_text().splitlines()[1:]]


def test_rows_follow_the_manifest(patch_set, tmp_path, config, leftovers):
    out = tmp_path / "out"
    steps: list[Step] = []
    summary = embed_patches(patch_set, out, config=config, report=steps.append)
    assert (summary.done, summary.skipped, summary.n_tiles, summary.ok) == (1, 0, 12, True)
    file = out / "features_color_stats" / "manifest.h5"
    assert check_file(file) == []
    found = open_embeddings(file)
    assert list(found.items) == texts(patch_set)
    assert found.identity is not None
    assert found.identity.tiles == {"patches": True}
    for text, row in zip(found.items, found.read(), strict=True):
        np.testing.assert_allclose(row, expected(patch_set.parent / text), rtol=1e-6)
    assert leftovers(out) == []
    assert steps[-1].units_done == 12
    assert steps[-1].units == "patches"


def test_the_same_for_any_batch_size_and_workers(patch_set, tmp_path, config):
    reference = None
    for batch_size, workers in ((1, 1), (5, 3), (64, 2)):
        out = tmp_path / f"{batch_size}-{workers}"
        backbones = ("color_stats", "scattering(input_px=64)")
        chosen = EmbedConfig(backbone=backbones, dtype="fp32", device="cpu", batch_size=batch_size, workers=workers)
        embed_patches(patch_set, out, config=chosen)
        found = open_embeddings(out / "features_scattering" / "manifest.h5").read()
        reference = found if reference is None else reference
        np.testing.assert_allclose(found, reference, rtol=1e-6, atol=1e-6 * np.abs(reference).max())


def test_a_second_run_does_nothing_until_an_image_changes(patch_set, tmp_path, config):
    out = tmp_path / "out"
    embed_patches(patch_set, out, config=config)
    file = out / "features_color_stats" / "manifest.h5"
    before = file.stat().st_mtime_ns
    again = embed_patches(patch_set, out, config=config)
    assert (again.done, again.skipped, again.n_tiles) == (0, 1, 0)
    assert file.stat().st_mtime_ns == before
    text = texts(patch_set)[3]
    with Image.open(patch_set.parent / text) as image:
        size = image.size
    Image.new("RGB", size, (10, 20, 30)).save(patch_set.parent / text)
    assert embed_patches(patch_set, out, config=config).done == 1
    np.testing.assert_allclose(open_embeddings(file).read()[3], expected(patch_set.parent / text), rtol=1e-6)


def test_overwrite_makes_the_file_again(patch_set, tmp_path, config):
    embed_patches(patch_set, tmp_path / "out", config=config)
    again = embed_patches(
        patch_set, tmp_path / "out", config=EmbedConfig(backbone=("color_stats",), dtype="fp32", overwrite=True)
    )
    assert again.done == 1


def test_one_bad_image_means_no_file_and_a_list_of_all(patch_set, tmp_path, config, leftovers):
    folder, names = patch_set.parent, texts(patch_set)
    (folder / names[2]).unlink()
    (folder / names[5]).write_bytes(b"no image")
    whole = (folder / names[9]).read_bytes()
    (folder / names[9]).write_bytes(whole[: len(whole) // 2])  # its header is good, its pixels are cut off
    Image.new("L", (48, 48)).save(folder / names[7])
    out = tmp_path / "out"
    first = embed_patches(patch_set, out, config=config)
    assert not first.ok
    assert (first.done, first.skipped) == (0, 0)
    assert {f.slide_id: f.error for f in read_failures(out)} == {
        names[2]: "SlideReadError",
        names[5]: "SlideReadError",
        names[7]: "NotBrightfieldError",
    }
    assert all(f.hint and f.message and f.path for f in first.failed)
    Image.new("RGB", (48, 48)).save(folder / names[2])
    Image.new("RGB", (48, 48), (1, 2, 3)).save(folder / names[5])
    Image.new("RGB", (48, 48), (4, 5, 6)).save(folder / names[7])
    # Only decoding finds the one that is left.
    second = embed_patches(patch_set, out, config=config)
    assert [f.slide_id for f in second.failed] == [names[9]]
    assert "removed" in second.failed[0].hint or "remove" in second.failed[0].hint
    assert list(out.rglob("*.h5")) == []
    assert leftovers(out) == []
    Image.new("RGB", (64, 64), (7, 8, 9)).save(folder / names[9])
    assert embed_patches(patch_set, out, config=config).done == 1
    assert not (out / "failures.csv").exists()


def test_stain_is_fitted_on_each_patch_alone(patch_set, tmp_path):
    config = EmbedConfig(backbone=("color_stats",), stain="reinhard", dtype="fp32", device="cpu", batch_size=4)
    out = tmp_path / "out"
    assert embed_patches(patch_set, out, config=config).done == 1
    together = open_embeddings(out / "features_color_stats" / "manifest.h5")
    # One patch alone gives the same row.
    alone = tmp_path / "alone.csv"
    alone.write_text(f"path\n{patch_set.parent / texts(patch_set)[4]}\n")
    embed_patches(alone, out, config=config)
    single = open_embeddings(out / "features_color_stats" / "alone.h5").read()[0]
    np.testing.assert_allclose(together.read()[4], single, rtol=1e-6)
    assert together.identity is not None
    assert together.identity.stain.startswith("reinhard")


def test_a_patch_without_stain_is_a_failure(patch_set, tmp_path):
    name = texts(patch_set)[1]
    Image.new("RGB", (64, 64), (255, 255, 255)).save(patch_set.parent / name)
    config = EmbedConfig(backbone=("color_stats",), stain="macenko", device="cpu")
    summary = embed_patches(patch_set, tmp_path / "out", config=config)
    assert [f.slide_id for f in summary.failed] == [name]
    assert list((tmp_path / "out").rglob("*.h5")) == []


def test_a_folder_is_a_set_in_sorted_order(patch_set, tmp_path, config):
    out = tmp_path / "out"
    embed_patches(patch_set.parent, out, config=config)
    found = open_embeddings(out / "features_color_stats" / "patches.h5")
    assert list(found.items) == sorted(texts(patch_set))


def test_transparency_lies_on_white(tmp_path):
    image = Image.new("RGBA", (8, 8), (200, 0, 0, 0))
    image.putpixel((0, 0), (10, 20, 30, 255))
    image.save(tmp_path / "x.png")
    pixels = read_patch(Patch(text="x.png", path=tmp_path / "x.png"))
    assert pixels[0, 0].tolist() == [10, 20, 30]
    assert pixels[1, 1].tolist() == [255, 255, 255]


@pytest.mark.parametrize(
    ("table", "fact"),
    [
        ("file,label\nx.png,a\n", "no column 'path'"),
        ("path\n", "holds no patches"),
        ("path\nx.png\n./x.png\n", "twice"),
        ("path,label\nx.png,a\n,b\n", "line 3"),
    ],
)
def test_bad_tables_are_refused_with_the_fact(tmp_path, table, fact):
    (tmp_path / "t.csv").write_text(table)
    with pytest.raises(TableError, match=fact) as caught:
        list_patches(tmp_path / "t.csv")
    assert caught.value.hint


def test_wrong_names_fail_before_any_image_is_read(tmp_path, patch_set):
    (patch_set.parent / texts(patch_set)[0]).write_bytes(b"no image")
    with pytest.raises(UnknownNameError, match="resnet51"):
        embed_patches(patch_set, tmp_path / "out", config=EmbedConfig(backbone=("resnet51",)))
    with pytest.raises(UsageError, match="neither"):
        embed_patches(tmp_path / "nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_tables_of_spreadsheets(patch_set, delimiter):
    text = patch_set.read_text()
    patch_set.write_text("\ufeff" + text.replace(",", delimiter), encoding="utf-8")
    assert len(list_patches(patch_set)) == 12


def test_a_patch_set_tells_where_its_time_went_and_what_it_replaces(patch_set, tmp_path, config, caplog):
    out = tmp_path / "out"
    told = embed_patches(patch_set, out, config=config).telemetry
    assert told is not None
    assert told.n_tiles == 12
    assert told.seconds["build"] > 0
    assert told.seconds["decode"] > 0
    assert told.bottleneck
    assert embed_patches(patch_set, out, config=config).telemetry is None
    assert not caplog.records
    embed_patches(patch_set, out, config=dataclasses.replace(config, dtype="fp16"))
    assert "dtype: 'fp32' != 'fp16'" in caplog.text
