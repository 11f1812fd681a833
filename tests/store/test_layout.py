"""TRIDENT's folders, and finding files in them again."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from histotl.core.atomic import temporary_name
from histotl.core.errors import StoreError, UsageError
from histotl.core.values import BackboneCard, TileSpec
from histotl.store import layout


def _card(name: str) -> BackboneCard:
    return BackboneCard(name=name, dim=1, pooling="avg", input_px=1, mean=(0, 0, 0), std=(1, 1, 1))


UNI, RESNET = _card("uni_v2"), _card("timm/resnet50.a1_in1k")
SPEC = TileSpec(tile_px=256, mpp=0.5)


def test_names_are_tridents() -> None:
    out = Path("job")
    tiles = "job/20x_256px_0px_overlap"
    assert layout.tiles_folder(out, SPEC).as_posix() == tiles
    assert layout.features_path(out, SPEC, UNI, "a.b").as_posix() == f"{tiles}/features_uni_v2/a.b.h5"
    assert layout.features_path(out, SPEC, RESNET, "a").as_posix() == f"{tiles}/features_timm-resnet50.a1_in1k/a.h5"
    assert layout.coords_path(out, SPEC, "a").as_posix() == f"{tiles}/patches/a_patches.h5"
    assert layout.thumbnail_path(out, "a").as_posix() == "job/thumbnails/a.jpg"
    assert layout.contour_path(out, "a").as_posix() == "job/contours/a.jpg"
    assert layout.geojson_path(out, "a").as_posix() == "job/contours_geojson/a.geojson"
    assert layout.patch_set_path(out, UNI, "set").as_posix() == "job/features_uni_v2/set.h5"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../a", "a\\b", "a\0b", "x" * 300])
def test_a_slide_id_cannot_lead_out_of_its_folder(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be a file name"):
        layout.features_path(Path("job"), SPEC, UNI, name)


def _touch(*paths: Path) -> list[Path]:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return list(paths)


def test_files_are_found_from_every_folder_above_them(tmp_path: Path) -> None:
    wanted = _touch(*(layout.features_path(tmp_path, SPEC, UNI, name) for name in ("a", "b")))
    _touch(layout.coords_path(tmp_path, SPEC, "a"), temporary_name(wanted[0]), wanted[0].with_name("a.h5.lock"))
    for folder in (tmp_path, wanted[0].parents[1], wanted[0].parent):
        assert layout.find_features(folder) == wanted
        assert layout.find_features(folder, backbone="uni_v2") == wanted
    assert layout.find_features(wanted[0]) == wanted[:1]
    with pytest.raises(UsageError, match="is not of 'virchow'"):
        layout.find_features(wanted[0].parent, backbone="virchow")
    renamed = wanted[0].parent.rename(tmp_path / "from a colleague")
    assert [path.name for path in layout.find_features(renamed, backbone="uni_v2")] == ["a.h5", "b.h5"]


def test_several_backbones_or_tilings_must_be_told_apart(tmp_path: Path) -> None:
    uni = _touch(layout.features_path(tmp_path, SPEC, UNI, "a"))
    resnet = _touch(layout.features_path(tmp_path, SPEC, RESNET, "a"))
    with pytest.raises(UsageError, match=r"features_timm-resnet50\.a1_in1k.*features_uni_v2"):
        layout.find_features(tmp_path)
    assert layout.find_features(tmp_path, backbone="uni_v2") == uni
    names = ("timm/resnet50.a1_in1k", "timm-resnet50.a1_in1k", "timm/resnet50.a1_in1k(weights='x/y.pth')")
    for name in names:
        assert layout.find_features(tmp_path, backbone=name) == resnet
    with pytest.raises(UsageError, match=r"no features of 'virchow'.*features_uni_v2"):
        layout.find_features(tmp_path, backbone="virchow")
    coarse = TileSpec(tile_px=256, mpp=1.0)
    _touch(layout.features_path(tmp_path, coarse, UNI, "a"))
    with pytest.raises(UsageError, match=r"10x_256px_0px_overlap.features_uni_v2"):
        layout.find_features(tmp_path, backbone="uni_v2")
    assert layout.find_features(layout.tiles_folder(tmp_path, SPEC), backbone="uni_v2") == uni


def test_patch_sets_lie_beside_the_tiles(tmp_path: Path) -> None:
    wanted = _touch(layout.patch_set_path(tmp_path, UNI, "set"))
    assert layout.find_features(tmp_path) == wanted


def test_no_files_is_told(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no features files"):
        layout.find_features(tmp_path)
    with pytest.raises(StoreError, match="no folder"):
        layout.find_features(tmp_path / "nothing")


def test_only_parts_of_dead_processes_of_this_machine_are_removed(
    tmp_path: Path, write_file: Callable[..., object]
) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host, me = socket.gethostname(), os.getpid()
    orphans = _touch(tmp_path / "a" / f".x.h5.{host}.{dead.pid}.part", tmp_path / f".a.b.h5.{host}.{2**60}.part")
    ancient = _touch(tmp_path / f".y.h5.{host}.{me}.part")
    os.utime(ancient[0], (time.time() - 10**8,) * 2)  # before this process: its id came again
    folder = tmp_path / f".c.zarr.{host}.{dead.pid}.part"
    _touch(folder / "zarr.json")
    kept = _touch(
        temporary_name(tmp_path / "mine.h5"),
        tmp_path / f".x.h5.elsewhere.{dead.pid}.part",
        tmp_path / f".x.h5.not{host}.{dead.pid}.part",
        tmp_path / f".x.h5.{host}.pid.part",
        tmp_path / "x.part",
    )
    write_file(tmp_path / "s.h5")
    assert sorted(layout.remove_stale_parts(tmp_path)) == sorted([*orphans, *ancient, folder])
    assert all(path.exists() for path in [*kept, tmp_path / "s.h5"])
    assert not any(path.exists() for path in [*orphans, *ancient, folder])
    assert layout.remove_stale_parts(tmp_path / "missing") == []


def test_an_output_that_cannot_be_written_to_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout.prepare_output(tmp_path / "new" / "deep")
    assert (tmp_path / "new" / "deep").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file"):
        layout.prepare_output(tmp_path / "file")
    with pytest.raises(UsageError, match="cannot be made"):
        layout.prepare_output(tmp_path / "file" / "below")
    # Root may write anywhere, so rights are not tried but told.
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UsageError, match="no permission"):
        layout.prepare_output(tmp_path)
