"""A user's network run in windows gives what it gives on the whole picture; bad files and answers are named."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from histotl.core.errors import UsageError
from histotl.core.registry import canonical, create
from histotl.embed._plan import source_digest
from histotl.embed.config import TileConfig
from histotl.embed.tile import tile_slides
from histotl.store import layout
from histotl.store.coords import read_coords
from histotl.wsi.mask import find_tissue
from histotl.wsi.pyramid import write_pyramid
from histotl.wsi.slide import open_array
from histotl.wsi.tissue.torch_mask import TorchMask

Pixels = npt.NDArray[np.uint8]
PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


class Pink(torch.nn.Module):
    """Logit of tissue: how much less green than red there is in a neighbourhood of 5 x 5 pixels."""

    def __init__(self, maps: int = 1) -> None:
        super().__init__()
        self.maps = maps
        self.conv = torch.nn.Conv2d(3, 1, 5, padding=2, padding_mode="reflect", bias=True)
        with torch.no_grad():
            self.conv.weight.copy_(torch.tensor([1.0, -1.0, 0.0]).view(1, 3, 1, 1).expand(1, 3, 5, 5) / 25 * 100)
            self.conv.bias.fill_(-10.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logit = self.conv(x)
        if self.maps == 1:
            return logit
        return torch.cat([torch.zeros_like(logit), logit, torch.full_like(logit, -50.0)], 1)


class Wrong(torch.nn.Module):
    """Answers in ways that a network must not."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: torch.Tensor):
        if self.how == "small":
            return x[:, :1, ::2, ::2]
        if self.how == "flat":
            return x.mean()
        if self.how == "nan":
            return x[:, :1] / 0 * 0
        if self.how == "pair":
            return x, x
        if self.how == "logits":
            return x[:, :1] * 30 - 10
        raise RuntimeError("a layer that does not fit")


def saved(net: torch.nn.Module, path: Path, side: int = 64) -> str:
    """TorchScript for .pt, the archive of torch.export for .pt2."""
    example = torch.rand(1, 3, side, side)
    if path.suffix == ".pt2":
        torch.export.save(torch.export.export(net, (example,)), path)
        return str(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer versions of torch deprecate TorchScript
        torch.jit.trace(net, example, check_trace=False).save(str(path))
    return str(path)


def scripted(net: torch.nn.Module, path: Path) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(net).save(str(path))
    return str(path)


@pytest.fixture
def net_file(tmp_path: Path) -> Callable[..., str]:
    def make(maps: int = 1, suffix: str = ".pt") -> str:
        return saved(Pink(maps).eval(), tmp_path / f"net{maps}{suffix}")

    return make


def picture(height: int = 150, width: int = 215) -> Pixels:
    rng = np.random.default_rng(0)
    image = rng.normal(240, 2, (height, width, 3))
    y, x = np.mgrid[:height, :width]
    image[np.hypot(y - height / 2, x - width / 3) < height / 4, 1] -= 80
    image[rng.random((height, width)) < 0.02, 1] -= 120
    return np.clip(image, 0, 255).astype(np.uint8)


def plain(image: Pixels) -> npt.NDArray[np.bool_]:
    """What the network says of a whole picture, without windows."""
    x = torch.from_numpy(image.astype(np.float32) / 255).permute(2, 0, 1)[None]
    with torch.inference_mode():
        found: npt.NDArray[np.bool_] = (Pink()(x)[0, 0] >= 0).numpy()
    return found


@pytest.mark.parametrize("shape", [(150, 215), (64, 64), (65, 200), (128, 64), (300, 70)])
@pytest.mark.parametrize("maps", [1, 3])
@pytest.mark.parametrize("suffix", [".pt", ".pt2"])
def test_windows_give_what_the_whole_picture_gives(
    net_file: Callable[..., str], shape: tuple[int, int], maps: int, suffix: str
) -> None:
    image = picture(*shape)
    before = image.copy()
    finder = TorchMask(file=net_file(maps, suffix), tile_px=64, margin_px=4, **PLAIN)
    mask = finder.segment(image, 8.0)
    assert 0.02 < mask.mean() < 0.5
    np.testing.assert_array_equal(mask, plain(image))
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("shape", [(1, 1), (20, 90), (3, 40)])
def test_pictures_smaller_than_a_window_are_mirrored(net_file: Callable[..., str], shape: tuple[int, int]) -> None:
    image = np.full((*shape, 3), 240, np.uint8)
    image[..., 1] = 150
    assert TorchMask(file=net_file(), tile_px=64, margin_px=4, **PLAIN).segment(image, 8.0).all()


def test_mean_std_threshold_and_probabilities(tmp_path: Path) -> None:
    class Green(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, 1:2]

    file = saved(Green(), tmp_path / "green.pt")
    image = np.repeat(np.arange(0, 256, 4, dtype=np.uint8)[None, :, None], 64, 0).repeat(3, 2)
    finder = TorchMask(
        file=file,
        tile_px=64,
        margin_px=0,
        scores="probabilities",
        threshold=0.25,
        mean=(0, 0.2, 0),
        std=(1, 0.8, 1),
    )
    with pytest.raises(UsageError, match="no probabilities"):
        finder.segment(image, 8.0)
    bright = np.maximum(image, 52)
    np.testing.assert_array_equal(finder.segment(bright, 8.0), (bright[..., 1] / 255 - 0.2) / 0.8 >= 0.25)


def test_a_scripted_network_and_a_class_that_there_is_not(tmp_path: Path) -> None:
    path = scripted(Pink(3), tmp_path / "scripted.pt")
    image = picture()
    finder = TorchMask(file=path, tile_px=64, margin_px=4, **PLAIN)
    np.testing.assert_array_equal(finder.segment(image, 8.0), plain(image))
    with pytest.raises(UsageError, match="gives 3 maps and tissue_class is 7"):
        TorchMask(file=path, tile_px=64, margin_px=4, tissue_class=7, **PLAIN).segment(image, 8.0)


@pytest.mark.parametrize(
    ("how", "match"),
    [
        ("small", r"answers with \(1, 1, 32, 32\)"),
        ("flat", r"answers with \(\)"),
        ("nan", "numbers that are none"),
        ("pair", "answers with tuple"),
        ("fails", "a layer that does not fit"),
    ],
)
def test_answers_that_cannot_be_used_are_named(tmp_path: Path, how: str, match: str) -> None:
    path = tmp_path / "wrong.pt"
    if how == "fails":
        scripted(Fails(), path)
    else:
        saved(Wrong(how), path)
    with pytest.raises(UsageError, match=match) as caught:
        TorchMask(file=str(path), tile_px=64, margin_px=4, **PLAIN).segment(picture(), 8.0)
    assert caught.value.hint


class Fails(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] == 1:
            raise RuntimeError("a layer that does not fit")
        return x


def test_files_that_are_no_torchscript_are_refused_before_any_slide(tmp_path: Path) -> None:
    weights, pickled, text = tmp_path / "weights.pt", tmp_path / "whole.pt", tmp_path / "net.txt"
    torch.save(Pink().state_dict(), weights)
    torch.save(Pink(), pickled)
    text.write_text("no network")
    for path in (weights, pickled, text):
        with pytest.raises(UsageError, match=path.name) as caught:
            create("tissue", f"torch_mask(file={str(path)!r})")
        assert "torch.jit" in caught.value.hint
    with pytest.raises(UsageError, match="no such file"):
        TorchMask(file=str(tmp_path / "missing.pt"))


def rewritten(source: str, path: Path, **changes: bytes) -> Path:
    """The archive with some members, named by the end of their path, replaced."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            data = next(
                (data for end, data in changes.items() if name.endswith(end.replace("__", "/"))), old.read(name)
            )
            new.writestr(name, data)
    return path


def test_exported_files_with_pickles_or_formulas_inside_are_refused(
    tmp_path: Path, net_file: Callable[..., str]
) -> None:
    good = net_file(1, ".pt2")
    with zipfile.ZipFile(good) as archive:
        (config,) = (archive.read(n) for n in archive.namelist() if n.endswith("model_weights_config.json"))
    pickles = rewritten(good, tmp_path / "p.pt2", **{"model_weights_config.json": config.replace(b"false", b"true")})
    custom = rewritten(
        good,
        tmp_path / "c.pt2",
        **{"model_constants_config.json": b'{"config": {"a": {"path_name": "custom_obj_0", "use_pickle": false}}}'},
    )
    legacy, other = tmp_path / "legacy.pt2", tmp_path / "other.pt2"
    for path, member in ((legacy, "data/weights/model.pt"), (other, "models/other.json")):
        shutil.copy(good, path)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(f"net/{member}", b"x")
    both = tmp_path / "both.pt2"
    shutil.copy(pickles, both)
    with zipfile.ZipFile(both, "a") as archive:
        archive.writestr("net/constants.pkl", b"x")
        archive.writestr("net/code/a.py", b"x")
    for path in (pickles, custom, legacy, other, both):
        with pytest.raises(UsageError, match="pickles inside"):
            TorchMask(file=str(path))
    twice = tmp_path / "twice.pt2"
    shutil.copy(good, twice)
    with zipfile.ZipFile(twice, "a") as archive:
        archive.writestr("other/models/model.json", b"{}")
    with pytest.raises(UsageError, match="holds a file twice"):
        TorchMask(file=str(twice))
    damaged = rewritten(good, tmp_path / "d.pt2", **{"model_weights_config.json": b"{"})
    with pytest.raises(UsageError, match="is damaged"):
        TorchMask(file=str(damaged))
    height = torch.export.Dim("height", min=32, max=512)
    program = torch.export.export(Pink(), (torch.rand(1, 3, 64, 64),), dynamic_shapes=({2: height},))
    torch.export.save(program, tmp_path / "dynamic.pt2")
    with pytest.raises(UsageError, match="no fixed size"):
        TorchMask(file=str(tmp_path / "dynamic.pt2"))
    trap = tmp_path / "trap"
    sample = io.BytesIO()
    torch.save(Trap(trap), sample)
    sly = rewritten(good, tmp_path / "s.pt2", **{"sample_inputs__model.pt": sample.getvalue()})
    with pytest.raises(UsageError, match="cannot be loaded"):
        TorchMask(file=str(sly), tile_px=64, margin_px=4).segment(picture(), 8.0)
    assert not trap.exists()


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_an_exported_network_may_hold_constants(tmp_path: Path) -> None:
    class Constant(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = torch.tensor([1.0, -1.0, 0.0])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x * self.weights.view(1, 3, 1, 1)).sum(1, keepdim=True) - torch.tensor(0.1)

    file = saved(Constant(), tmp_path / "constant.pt2")
    image = picture()
    mask = TorchMask(file=file, tile_px=64, margin_px=4, **PLAIN).segment(image, 8.0)
    light = image.astype(np.float32) / 255
    np.testing.assert_array_equal(mask, light[..., 0] - light[..., 1] >= np.float32(0.1))


def test_a_damaged_file_is_named(tmp_path: Path, net_file: Callable[..., str]) -> None:
    path = tmp_path / "damaged.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/constants.pkl", b"x")
        archive.writestr("net/code/a.py", b"x")
    with pytest.raises(UsageError, match="cannot be loaded on cpu"):
        TorchMask(file=str(path)).segment(picture(), 8.0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"mpp": 0.0},
        {"threshold": 1.0},
        {"std": (1.0, 0.0, 1.0)},
        {"tissue_class": -1},
        {"margin_px": 256},
        {"tile_px": 0},
    ],
)
def test_impossible_settings_are_refused(net_file: Callable[..., str], wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError) as caught:
        TorchMask(**({"file": net_file()} | wrong))
    assert caught.value.hint


def test_it_is_a_finder_like_others_and_its_file_belongs_to_what_tiles_come_from(
    tmp_path: Path, net_file: Callable[..., str]
) -> None:
    file = net_file()
    finder = TorchMask(file=file, tile_px=64, margin_px=4, **PLAIN)
    assert create("tissue", canonical(finder)) == finder
    slide = open_array(picture(1200, 1720), mpp=1.0)
    found = find_tissue(slide, finder, min_area_um2=2000, max_hole_um2=2000)
    assert found.mask.shape == (150, 215)
    assert found.area_mm2 > 0
    before = source_digest(slide.info, TileConfig(), finder)
    assert source_digest(slide.info, TileConfig(), finder) == before
    saved(Pink(3), Path(file))
    assert source_digest(slide.info, TileConfig(), finder) != before
    assert finder.segment(picture(), 8.0).any()  # the new file is read


def test_tiles_are_made_again_when_the_network_changes(tmp_path: Path, net_file: Callable[..., str]) -> None:
    image = np.full((1024, 1024, 3), 240, np.uint8)
    image[:512, :512, 1] = 150
    slides = tmp_path / "slides"
    slides.mkdir()
    write_pyramid(slides / "a.tiff", image, mpp=0.5, levels=(1,))
    file, plainly = net_file(), "mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)"
    tiling = TileConfig(tile_px=128, tissue=f"torch_mask(file={file!r}, tile_px=64, margin_px=4, {plainly})")
    first = tile_slides(slides, tmp_path / "out", tiling=tiling)
    assert (first.done, first.failed) == (1, ())
    coords = read_coords(layout.coords_path(tmp_path / "out", tiling.spec, "a")).coords_l0
    assert coords.max() <= 512
    assert tile_slides(slides, tmp_path / "out", tiling=tiling).skipped == 1
    opposite = Pink()
    with torch.no_grad():
        opposite.conv.weight.mul_(-1)
        opposite.conv.bias.mul_(-1)
    saved(opposite, Path(file))
    assert tile_slides(slides, tmp_path / "out", tiling=tiling).done == 1
    assert read_coords(layout.coords_path(tmp_path / "out", tiling.spec, "a")).coords_l0.max() > 512


def test_listing_the_finders_loads_no_torch() -> None:
    code = (
        "import sys\nfrom histotl.core.registry import available\n"
        "assert 'torch_mask' in available('tissue')\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
