"""Augmented views: the view of (slide, tile, view number, seed) is a function, not a state."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from histotl.core.errors import HistotlError
from histotl.core.provenance import Provenance
from histotl.core.registry import create
from histotl.core.values import SlideEntry
from histotl.embed import engine, stain_target
from histotl.embed._plan import plan_slide, sample_rows, tissue_finder
from histotl.embed._views import Views, views_of
from histotl.embed.config import EmbedConfig
from histotl.embed.engine import embed_slides
from histotl.embed.patches import embed_patches
from histotl.image.chain import Chain
from histotl.store.coords import read_coords
from histotl.store.embeddings import ViewSpec, check_file, open_embeddings
from histotl.wsi.slide import open_slide
from histotl.wsi.tiles import read_tiles

FOLDER = "10x_64px_0px_overlap"
AUGMENT = "d4 + hed_jitter(sigma=0.2) + blur(max_sigma_px=1.0) + jpeg + cutout"
ALL = AUGMENT + " + brightness_contrast + hue + mpp_jitter + albumentations(pipeline='HorizontalFlip + GaussNoise')"


def _file(out: Path, slide: str, backbone: str = "color_stats") -> Path:
    return out / FOLDER / f"features_{backbone}" / f"{slide}.h5"


def _views(out: Path, slide: str, backbone: str = "color_stats") -> np.ndarray:
    with open_embeddings(_file(out, slide, backbone)) as found:
        assert found.views is not None
        return np.array(found.views)


@pytest.fixture
def config(config: EmbedConfig) -> EmbedConfig:
    return replace(config, views=3, augment=AUGMENT, seed=5)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums within a network, plain or of views, may be cut in another way by another number of torch's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def reference(slides: Path, tmp_path: Path, tiling, config: EmbedConfig) -> dict[str, np.ndarray]:
    """Views of every slide, as a run with one reader thread makes them."""
    made = replace(config, augment=ALL, workers=1, batch_size=16)
    assert embed_slides(slides, tmp_path / "reference", tiling=tiling, config=made).done == 3
    return {name: _views(tmp_path / "reference", name) for name in "abc"}


@pytest.mark.parametrize(
    ("workers", "batch_size"), [(1, 16), (2, 16), (3, 16), (1, 1), (2, 1), (3, 7), (2, 64), (3, 64)]
)
def test_views_are_bit_equal_whatever_the_threads_and_batches(
    workers: int, batch_size: int, slides, tmp_path, tiling, config, reference
) -> None:
    again = replace(config, augment=ALL, workers=workers, batch_size=batch_size)
    embed_slides(slides, tmp_path / "out", tiling=tiling, config=again)
    for name in "abc":
        np.testing.assert_array_equal(_views(tmp_path / "out", name), reference[name])


def test_views_are_bit_equal_in_any_order_of_slides(
    slides, tmp_path, tiling, config, reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    list_entries = engine.list_entries

    def backwards(*args: object) -> Sequence[SlideEntry]:
        return list(reversed(list_entries(*args)))

    monkeypatch.setattr(engine, "list_entries", backwards)
    embed_slides(slides, tmp_path / "out", tiling=tiling, config=replace(config, augment=ALL, workers=2))
    for name in "abc":
        np.testing.assert_array_equal(_views(tmp_path / "out", name), reference[name])
    monkeypatch.undo()
    embed_slides(slides / "b.tiff", tmp_path / "alone", tiling=tiling, config=replace(config, augment=ALL))
    np.testing.assert_array_equal(_views(tmp_path / "alone", "b"), reference["b"])


@pytest.mark.parametrize("backbone", ["scattering", "timm/test_vit(weights='random')"])
def test_networks_give_the_same_views_again(backbone: str, slides, tmp_path, tiling, config, one_thread) -> None:
    found = []
    for place, (workers, batch_size) in enumerate([(1, 8), (2, 8), (3, 7), (1, 8)]):
        again = replace(config, backbone=(backbone,), workers=workers, batch_size=batch_size, dtype="fp32")
        embed_slides(slides / "a.tiff", tmp_path / str(place), tiling=tiling, config=again)
        (file,) = (tmp_path / str(place)).glob(f"{FOLDER}/features_*/a.h5")
        found.append(np.array(open_embeddings(file).views))
    for views in found[1:]:
        np.testing.assert_array_equal(views, found[0])


def test_a_view_is_what_its_definition_says(slides, tmp_path, tiling, config) -> None:
    """Tiles read, normalised, augmented and embedded by hand, one at a time."""
    config = replace(config, stain="macenko", backbone=("color_stats", "scattering"), dtype="fp32")
    assert embed_slides(slides / "a.tiff", tmp_path / "out", tiling=tiling, config=config).done == 1
    found = open_embeddings(_file(tmp_path / "out", "a"))
    assert check_file(found.path) == []
    assert found.view_spec == ViewSpec(augment=str(Chain.of(AUGMENT)), count=3, seed=5)
    assert found.provenance.specs["augment"] == str(Chain.of(AUGMENT))
    with open_slide(slides / "a.tiff") as slide:
        grid = plan_slide(slide, tiling, tissue_finder(tiling), tmp_path / "by hand", Provenance.now(), "")
        sample = torch.from_numpy(read_tiles(slide, grid, sample_rows(len(grid), stain_target.SAMPLE_TILES)))
        tiles = torch.from_numpy(read_tiles(slide, grid, np.arange(len(grid))))
    normal = create("stain", "macenko").fit(sample)(tiles)
    embedder = create("backbone", "color_stats").load(torch.device("cpu"))
    views, chain = views_of(config, 64), Chain.of(AUGMENT)
    np.testing.assert_array_equal(found.read(), embedder(normal).numpy())
    for view in range(3):
        for row in (0, 3, found.n - 1):
            seed = views.seeds("a", [row], view)
            by_hand = embedder(chain(normal[row : row + 1], seed))[0]
            np.testing.assert_array_equal(found.read(np.array([row]), view=view)[0], by_hand.numpy())
    assert open_embeddings(_file(tmp_path / "out", "a", "scattering")).view_spec == found.view_spec


def test_seeds_differ_by_slide_tile_view_and_seed() -> None:
    chain = Chain.of("d4")
    found = [
        Views(chain=chain, count=3, seed=seed).seeds(slide, range(50), view)
        for seed in (0, 1)
        for slide in ("a", "b")
        for view in range(3)
    ]
    assert len(torch.cat(found).unique()) == 2 * 2 * 3 * 50
    one = Views(chain=chain, count=3, seed=1).seeds("b", [7], 2)
    assert one == found[-1][7]
    # No separator of the hashed text can be part of a slide's name and move the rest.
    assert Views(chain=chain, count=1, seed=0).seeds("a\0001", [2], 0) != found[0][2]


def test_plain_features_are_the_same_with_and_without_views(slides, tmp_path, tiling, config) -> None:
    embed_slides(slides, tmp_path / "with", tiling=tiling, config=config)
    embed_slides(slides, tmp_path / "without", tiling=tiling, config=replace(config, views=0, augment=""))
    for name in "abc":
        one, other = (open_embeddings(_file(tmp_path / folder, name)) for folder in ("with", "without"))
        np.testing.assert_array_equal(one.read(), other.read())
        assert one.identity == other.identity
        assert (other.views, set(other.extras)) == (None, {"quality"})
        assert not any(np.array_equal(one.read(view=view), one.read()) for view in range(3))


def test_files_without_the_views_asked_for_are_made_again(slides, tmp_path, tiling, config, caplog) -> None:
    out, plain = tmp_path / "out", replace(config, views=0, augment="")
    assert embed_slides(slides, out, tiling=tiling, config=plain).done == 3
    with caplog.at_level(logging.WARNING):
        assert embed_slides(slides, out, tiling=tiling, config=config).done == 3
        assert not caplog.records  # nothing that was there is lost
        for same in (config, plain, replace(config, augment=str(Chain.of(AUGMENT)))):
            assert embed_slides(slides, out, tiling=tiling, config=same).skipped == 3
        for other in ({"seed": 6}, {"views": 2}, {"augment": "d4"}):
            caplog.clear()
            assert embed_slides(slides, out, tiling=tiling, config=replace(config, **other)).done == 3
            assert "are replaced" in caplog.text
            assert embed_slides(slides, out, tiling=tiling, config=replace(config, **other)).skipped == 3
            embed_slides(slides, out, tiling=tiling, config=config)


def test_a_slide_that_fails_takes_no_views_with_it(slides, tmp_path, tiling, config, add_bad_slides, reference) -> None:
    add_bad_slides(slides)
    summary = embed_slides(slides, tmp_path / "out", tiling=tiling, config=replace(config, augment=ALL, batch_size=64))
    assert (summary.done, len(summary.failed)) == (3, 4)
    for name in "abc":
        np.testing.assert_array_equal(_views(tmp_path / "out", name), reference[name])


def test_telemetry_counts_views(slides, tmp_path, tiling, config) -> None:
    told = embed_slides(slides, tmp_path / "out", tiling=tiling, config=config).telemetry
    assert told.seconds["augment"] > 0
    told = embed_slides(slides, tmp_path / "x", tiling=tiling, config=replace(config, views=0, augment="")).telemetry
    assert told.seconds["augment"] == 0


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"views": 2}, "--views 2 with --augment ''"),
        ({"augment": "d4"}, "--views 0 with --augment 'd4'"),
        ({"views": -1, "augment": "d4"}, "views is -1"),
        ({"views": 2, "augment": "d4", "seed": -1}, "seed is -1"),
        ({"views": 2, "augment": "d5"}, "no augment is called 'd5'"),
        ({"views": 2, "augment": "albumentations(pipeline='Resize(height=9, width=9)')"}, r"\(9, 9, 3\)"),
    ],
)
def test_wishes_that_make_no_sense_are_refused_before_any_slide(
    wrong: dict[str, object], said: str, slides, tmp_path, tiling
) -> None:
    with pytest.raises(HistotlError, match=said) as caught:
        embed_slides(slides, tmp_path / "out", tiling=tiling, config=EmbedConfig(backbone=("color_stats",), **wrong))
    assert caught.value.hint
    assert not (tmp_path / "out").exists()


@pytest.fixture
def patches(tmp_path: Path) -> Path:
    """Images of two sizes, square and not."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "patches"
    folder.mkdir()
    for place in range(20):
        shape = (40, 40, 3) if place % 3 else (40, 56, 3)
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(folder / f"{place:02}.png")
    return folder


def _set_views(out: Path, name: str) -> dict[str, np.ndarray]:
    found = open_embeddings(out / "features_color_stats" / f"{name}.h5")
    assert check_file(found.path) == []
    return {item: np.array(found.views[:, row]) for row, item in enumerate(found.items)}


def test_views_of_patches_follow_their_paths_alone(patches, tmp_path, config) -> None:
    assert embed_patches(patches, tmp_path / "one", config=replace(config, batch_size=16, workers=1)).done == 1
    wanted = _set_views(tmp_path / "one", "patches")
    for workers, batch_size in ((1, 1), (2, 7), (3, 64)):
        out = tmp_path / f"{workers}-{batch_size}"
        embed_patches(patches, out, config=replace(config, batch_size=batch_size, workers=workers))
        found = _set_views(out, "patches")
        for item, views in wanted.items():
            np.testing.assert_array_equal(found[item], views)
    # Another manifest: some of the patches, in another order.
    (patches / "some.csv").write_text("path\n" + "".join(f"{k:02}.png\n" for k in (7, 3, 12, 0)))
    embed_patches(patches / "some.csv", tmp_path / "some", config=config)
    for item, views in _set_views(tmp_path / "some", "some").items():
        np.testing.assert_array_equal(views, wanted[item])
    assert embed_patches(patches, tmp_path / "one", config=config).skipped == 1
    assert embed_patches(patches, tmp_path / "one", config=replace(config, seed=9)).done == 1


def test_a_run_that_was_stopped_goes_on_with_views(slides, tmp_path, tiling, config, reference) -> None:
    config = replace(config, augment=ALL)
    for name in "ab":
        shutil.move(slides / f"{name}.tiff", tmp_path / f"{name}.tiff")
    assert embed_slides(slides, tmp_path / "out", tiling=tiling, config=config).done == 1
    for name in "ab":
        shutil.move(tmp_path / f"{name}.tiff", slides / f"{name}.tiff")
    summary = embed_slides(slides, tmp_path / "out", tiling=tiling, config=config)
    assert (summary.done, summary.skipped) == (2, 1)
    for name in "abc":
        np.testing.assert_array_equal(_views(tmp_path / "out", name), reference[name])
        assert len(read_coords(tmp_path / "out" / FOLDER / "patches" / f"{name}_patches.h5").coords_l0) == len(
            reference[name][0]
        )
