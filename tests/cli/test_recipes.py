"""Every recipe in pipelines/ runs, skips what is fresh, and refuses what it does not know."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from histotl.cli._steps import _inputs
from histotl.cli.main import call
from histotl.cli.run import read_recipe
from histotl.core.errors import UsageError
from histotl.learn.pretrained import load_aggregator

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "pipelines").glob("*.toml"))


@pytest.fixture(scope="module")
def patch_set(painted_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A patch set with EBHI's columns, cut from painted slides: 30 patients, six classes."""
    folder = tmp_path_factory.mktemp("patches")
    rng = np.random.default_rng(0)
    images = []
    for slide in sorted((painted_cohort.parent / "slides").glob("*.tif*")):
        with Image.open(slide) as image:
            images.append(np.asarray(image.convert("RGB")))
    labels = ["normal", "polyp", "serrated", "lgin", "hgin", "adenoca"]
    rows = []
    for patient in range(30):
        for i, label in enumerate(labels):
            image = images[(patient + i) % len(images)]
            y, x = rng.integers(0, image.shape[0] - 96), rng.integers(0, image.shape[1] - 96)
            name = f"{label}/p{patient:02d} {i}.png"
            (folder / label).mkdir(exist_ok=True)
            Image.fromarray(image[y : y + 96, x : x + 96] // (i + 1)).save(folder / name)
            split = "train" if patient < 15 else "val" if patient < 22 else "test"
            rows.append((name, label, f"P{patient}", split, rng.random()))
    table = pd.DataFrame(rows, columns=["path", "label", "patient", "split", "lesion_fraction"])
    table.to_csv(folder / "manifest.csv", index=False)
    return folder / "manifest.csv"


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda p: p.stem)
def test_head_says_command_cost_and_figure(recipe: Path) -> None:
    head = recipe.read_text(encoding="utf-8").split("[vars]")[0]
    assert f"histotl run pipelines/{recipe.name}" in head
    assert "Cost:" in head
    assert "Expect:" in head
    assert "FIGURE" not in head


def test_painted_slides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["run", str(ROOT / "pipelines" / "painted_slides.toml"), "--set", f"out={tmp_path}/painted", "--quiet"]
    argv += ["--set", "patients=12"]
    assert call(argv) == 0
    assert (tmp_path / "painted" / "evaluation" / "report.html").is_file()
    capsys.readouterr()
    assert call(argv) == 0
    told = capsys.readouterr().out
    assert told.count("fresh, skipped") == 4, told


def test_painted_stain(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["run", str(ROOT / "pipelines" / "painted_stain.toml"), "--set", f"out={tmp_path}/painted", "--quiet"]
    argv += ["--set", "patients=6", "--set", "tiles=2", "--set", "backbone=color_stats", "--set", "bootstrap=20"]
    assert call(argv) == 0
    page = tmp_path / "painted" / "stain" / "stain.html"
    assert str(page) in capsys.readouterr().out
    assert call(argv) == 0
    assert capsys.readouterr().out.count("fresh, skipped") == 2
    # A slide that changed makes the page stale, though the table that names it is as it was.
    slide = next((tmp_path / "painted" / "slides" / "slides").glob("*.tiff"))
    slide.write_bytes(slide.read_bytes() + b"\0")
    assert call(argv) == 0
    assert capsys.readouterr().out.count("fresh, skipped") == 1
    (tmp_path / "painted" / "stain" / "stain.json").unlink()
    assert call(argv) == 0
    assert page.with_name("stain.json").is_file()


def test_pretrain_aggregator(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(ROOT / "pipelines" / "pretrain_aggregator.toml")
    argv = ["run", recipe, "--set", f"out={tmp_path}/out", "--quiet", "--set", "size_um=[420.0, 340.0]"]
    argv += ["--set", "patients=12", "--set", "few=12", "--set", "backbone=color_stats", "--set", "min_steps=40"]
    assert call(argv) == 0
    told = json.loads((tmp_path / "out" / "teacher" / "training.json").read_text())
    # North tells no dysplasia, and south no type.
    assert (
        told["label_counts"]["type"]["train"]["missing"]
        == told["notes"]["cohorts"][f"{tmp_path}/out/south/cohort.csv"]["train"]
    )
    assert load_aggregator(tmp_path / "out" / "aggregator" / "aggregator.safetensors").spec.startswith(
        "abmil(hidden=128"
    )
    assert (tmp_path / "out" / "evaluation" / "report.html").is_file()
    capsys.readouterr()
    assert call(argv) == 0
    assert capsys.readouterr().out.count("fresh, skipped") == 11
    # A damaged file is written again, and what started from it is still what it was.
    kept = tmp_path / "out" / "aggregator" / "aggregator.safetensors"
    kept.write_bytes(kept.read_bytes() + b"\0")
    assert call(argv) == 0
    assert capsys.readouterr().out.count("fresh, skipped") == 10
    step = read_recipe(ROOT / "pipelines" / "pretrain_aggregator.toml", {"out": str(tmp_path / "out")})[8]
    assert kept in [place for _, place in _inputs(step)]
    second = [place for _, place in _inputs(read_recipe(ROOT / "pipelines" / "pretrain_aggregator.toml", {})[6])]
    assert {Path("pretrained/south/cohort.csv"), Path("pretrained/south/features")} <= set(second)


def test_polyp_patches(patch_set: Path, tmp_path: Path) -> None:
    recipe = str(ROOT / "pipelines" / "polyp_patches.toml")
    argv = ["run", recipe, "--set", f"manifest={patch_set}", "--set", f"out={tmp_path}/out", "--quiet"]
    assert call(argv) == 0
    predictions = pd.read_csv(tmp_path / "out" / "predictions" / "predictions.csv")
    assert predictions["path"].tolist() == pd.read_csv(patch_set)["path"].tolist()
    assert {"type", "dysplasia:yes", "grade:expected", "lesion_fraction"} <= set(predictions.columns)


def test_dry_run_does_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for recipe in RECIPES:
        assert call(["run", str(recipe), "--dry-run"]) == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[[step]]\nverb = 'embd'", "embd"),
        ("[[step]]\nverb = 'embed'\nslides = 'a'", "needs out"),
        ("[[step]]\nverb = 'embed'\nslides = 'a'\nout = 'b'\nbackbon = ['x']", "backbon"),
        ("[[step]]\nverb = 'embed'\nslides = 'a'\nout = 'b'\ntile_px = 'big'", "tile_px='big'"),
        ("[[step]]\nverb = 'train'\ntable = 'a'\nfeatures = 'b'\nout = 'c'", "no tasks"),
        ("[stage]\nx = 1", "stage"),
        ("[vars]\nx = 1", "no \\[\\[step"),
        ("[[step", "not TOML"),
    ],
)
def test_wrong_recipes_are_refused_before_anything_runs(text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(text)
    with pytest.raises(UsageError, match=told):
        read_recipe(tmp_path / "recipe.toml", {})


def test_unknown_variable(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no variable 'outt'"):
        read_recipe(RECIPES[0], {"outt": "x"})
