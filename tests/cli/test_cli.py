"""The command line as a person uses it: the chain of verbs, exit codes, errors with cures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import h5py
import pandas as pd
import pytest

from histotl.cli.main import call
from histotl.core.registry import PLUGIN_FOLDERS
from histotl.embed.config import TileConfig

TASKS = [
    "--task", "type: multiclass(column='type', classes=('normal','serrated','adenoma'))",
    "--task", "dysplasia: ordinal(column='dysplasia', classes=('none','low','high'))",
]  # fmt: skip


@pytest.fixture(scope="module")
def job(painted_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chain from slides to a page, run once through the command line."""
    out = tmp_path_factory.mktemp("job")
    table = str(painted_cohort)
    assert call(["embed", table, f"{out}/features", "--stain", "macenko", "--backbone", "color_stats",
                 "--backbone", "scattering", "--quiet"]) == 0  # fmt: skip
    features = next((out / "features").glob("*/features_scattering"))
    assert call(["train", table, str(features), f"{out}/model", *TASKS, "--quiet"]) == 0
    assert call(["predict", f"{out}/model", str(features), f"{out}/predictions", "--quiet"]) == 0
    assert call(["evaluate", f"{out}/predictions", table, f"{out}/evaluation", "--quiet"]) == 0
    return out


def test_chain_ends_in_a_page(job: Path) -> None:
    page = (job / "evaluation" / "report.html").read_text(encoding="utf-8")
    assert "<img" in page or "<svg" in page
    assert "dysplasia" in page
    metrics = json.loads((job / "evaluation" / "metrics.json").read_text())
    assert "balanced_accuracy" in json.dumps(metrics)


def test_predictions_hold_every_slide_once(job: Path, painted_cohort: Path) -> None:
    frame = pd.read_csv(job / "predictions" / "predictions.csv", dtype={"slide_id": str})
    assert sorted(frame["slide_id"]) == sorted(pd.read_csv(painted_cohort, dtype=str)["slide_id"])
    share = frame[["type:normal", "type:serrated", "type:adenoma"]].sum(axis=1)
    assert ((share - 1).abs() < 1e-4).all()


def test_second_run_does_nothing(job: Path, painted_cohort: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["embed", str(painted_cohort), f"{job}/features", "--stain", "macenko", "--backbone",
            "color_stats", "--backbone", "scattering", "--quiet", "--json"]  # fmt: skip
    assert call(argv) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["done"] == 0
    assert summary["skipped"] == len(pd.read_csv(painted_cohort))


def test_check_finds_a_flipped_bit_and_repairs(job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(job / "features", tmp_path / "features")
    assert call(["check", str(tmp_path / "features")]) == 0
    victim = sorted((tmp_path / "features").glob("*/features_color_stats/*.h5"))[0]
    data = bytearray(victim.read_bytes())
    data[-3] ^= 1
    victim.write_bytes(data)
    capsys.readouterr()
    assert call(["check", str(tmp_path / "features"), "--json"]) == 1
    assert list(json.loads(capsys.readouterr().out)["bad"]) == [str(victim)]
    assert call(["check", str(tmp_path / "features"), "--repair"]) == 0
    assert not victim.exists()


def test_features_of_another_backbone_are_refused(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = next((job / "features").glob("*/features_color_stats"))
    assert call(["predict", f"{job}/model", str(other), f"{job}/nothing", "--quiet"]) == 2
    told = capsys.readouterr().err
    assert "scattering" in told
    assert "color_stats" in told
    assert not (job / "nothing" / "predictions.csv").exists()


def test_a_bad_slide_does_not_stop_the_run(
    painted_slide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slides = tmp_path / "slides"
    slides.mkdir()
    shutil.copy(painted_slide, slides / "good.tiff")
    (slides / "bad.svs").write_bytes(b"II*\0 this is no slide")
    assert call(["embed", str(slides), str(tmp_path / "out"), "--quiet"]) == 1
    told = capsys.readouterr()
    assert "1 done" in told.out
    assert "bad" in told.err
    failures = pd.read_csv(tmp_path / "out" / "failures.csv")
    assert failures["slide_id"].tolist() == ["bad"]
    assert failures["hint"].notna().all()
    assert len(list((tmp_path / "out").glob("*/features_scattering/*.h5"))) == 1


@pytest.mark.parametrize(
    ("argv", "status", "told"),
    [
        (["embed", "x", "y", "--stian", "none"], 2, "--stain"),
        (["embd"], 2, "embed"),
        (["embed", "no_such_folder", "out"], 2, "no_such_folder"),
        (["embed", ".", "out", "--backbone", "scatering"], 2, "scattering"),
        (["embed", ".", "out", "--stain", "macenko(alhpa=1)"], 2, "alpha"),
        (["embed", ".", "out", "--min-tissue", "3"], 2, "min_tissue"),
        (["list", "stian"], 2, "stain"),
        (["check", "no_such_folder"], 2, "no_such_folder"),
        (["train", "t.csv", "f", "o"], 2, "--task"),
        (["run", "no_such_recipe.toml"], 2, "no_such_recipe.toml"),
        (["embed", ".", "slide.tiff"], 2, "slide.tiff is a file"),
        (["tile", ".", "slide.tiff/out"], 2, "cannot be made"),
        (["embed", ".", "out", "--patches", "--mpp", "0.25"], 2, "--mpp has no effect"),
        (["embed", ".", "out", "--backbone", "timm/resnet18(weights='no_such_file.pth')"], 3, "no_such_file.pth"),
    ],
)
def test_usage_errors(
    argv: list[str], status: int, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], painted_slide: Path,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    shutil.copy(painted_slide, tmp_path / "slide.tiff")
    assert call(argv) == status
    seen = capsys.readouterr()
    assert told in seen.err + seen.out


def test_dry_run_writes_nothing(painted_cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiles = TileConfig().spec.folder
    for verb, folder in (("tile", tiles), ("embed", tiles), ("stain", "")):
        assert call([verb, str(painted_cohort), str(tmp_path / "out"), "--dry-run"]) == 0
        told = capsys.readouterr().out.replace("\n", "")
        assert f"{tmp_path / 'out' / folder}; nothing was written" in told
    assert not (tmp_path / "out").exists()


def test_a_dry_run_of_stain_refuses_what_the_run_would(painted_cohort: Path, tmp_path: Path) -> None:
    argv = ["stain", str(painted_cohort), str(tmp_path / "out"), "--dry-run"]
    assert call([*argv, "--stain", "macenco"]) == 2
    assert call([*argv, "--vectors", "macenco"]) == 2
    (tmp_path / "sites.csv").write_text("slide_id,site\nnobody,a\n")
    assert call([*argv, "--sites", str(tmp_path / "sites.csv")]) == 2


def test_info(painted_slide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["info", str(painted_slide), "--json"]) == 0
    (facts,) = json.loads(capsys.readouterr().out)
    assert facts["mpp"].startswith("0.5×0.5 µm/px (from ")
    (tmp_path / "broken.svs").write_bytes(b"no")
    assert call(["info", str(tmp_path / "broken.svs"), str(painted_slide)]) == 1
    seen = capsys.readouterr()
    assert "broken.svs" in seen.err
    assert str(painted_slide) in seen.out


@pytest.mark.parametrize(("why", "state"), [("", "ok"), ("no C compiler", "slower")])
def test_doctor_says_how_a_gpu_normalises_stains(monkeypatch: pytest.MonkeyPatch, why: str, state: str) -> None:
    import torch

    from histotl.cli import doctor
    from histotl.image import _device

    for name, value in (
        ("is_available", True),
        ("device_count", 1),
        ("mem_get_info", (2**30, 2**31)),
        ("is_bf16_supported", True),
        ("get_device_name", "a GPU"),
    ):
        monkeypatch.setattr(torch.cuda, name, lambda *args, value=value: value)
    monkeypatch.setattr(_device, "why_no_kernels", lambda device: why)
    rows = doctor._device()
    assert rows[1] == ("gpu 0", "ok", "a GPU, 1 of 2 GiB free, bf16")
    assert rows[2][:2] == ("stain on gpu 0", state)
    assert why in rows[2][2]


def test_list_and_doctor(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert call(["list"]) == 0
    told = capsys.readouterr().out
    for name in ("macenko", "openslide", "timm/NAME", "scattering", "abmil", "mahalanobis", "ordinal"):
        assert name in told
    assert call(["list", "backbone", "timm/resnet1*", "--json"]) == 0
    assert "timm/resnet18" in {row["name"] for row in json.loads(capsys.readouterr().out)}
    assert call(["doctor", str(tmp_path), "--json"]) == 0
    rows = {row["what"]: row["state"] for row in json.loads(capsys.readouterr().out)}
    assert rows["one slide"] == "ok"
    assert "bad" not in rows.values()


def test_a_piped_table_has_one_line_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line == line.rstrip() for line in lines)
    assert all(line.split()[0] in {"kind", *PLUGIN_FOLDERS} for line in lines)
    assert call(["list", "backbone", "no_such"]) == 0
    assert capsys.readouterr().out == "nothing matches 'no_such'\n"
    assert call(["list", "--help"]) == 0
    assert "timm/*resnet*" in capsys.readouterr().out


def test_hundreds_of_failures_are_not_all_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "slides.csv"
    table.write_text("path\n" + "".join(f"s{i}.svs\n" for i in range(50)))
    assert call(["tile", str(table), str(tmp_path / "out"), "--quiet"]) == 1
    told = capsys.readouterr().err
    assert told.count("failed: ") == 20
    assert "and 30 more" in told
    assert len(pd.read_csv(tmp_path / "out" / "failures.csv")) == 50


def test_json_of_the_learning_verbs(job: Path, painted_cohort: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, features = str(painted_cohort), str(next((job / "features").glob("*/features_scattering")))
    assert call(["train", table, features, f"{job}/dry", *TASKS, "--dry-run", "--json"]) == 0
    counts = json.loads(capsys.readouterr().out)
    assert counts["type"]["train"]["normal"] >= 1
    assert sum(split["missing"] for split in counts["dysplasia"].values()) >= 1
    assert not (job / "dry").exists()
    assert call(["predict", f"{job}/model", features, f"{job}/again", "--json", "--quiet"]) == 0
    assert Path(json.loads(capsys.readouterr().out)["predictions"]).is_file()
    assert call(["evaluate", f"{job}/again", table, f"{job}/again/evaluation", "--json", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out)["tasks"]["type"]["metrics"]["balanced_accuracy"]["value"] >= 0


def test_repair_never_removes_the_files_of_other_tools(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = next((job / "features").glob("*/features_color_stats"))
    shutil.copytree(folder, tmp_path / "features_color_stats")
    ours = sorted((tmp_path / "features_color_stats").glob("*.h5"))[0]
    ours.write_bytes(ours.read_bytes()[:3000])
    foreign = ours.with_name("of_another_tool.h5")
    with h5py.File(foreign, "w") as file:
        file["feats"] = [[1.0, 2.0]]
    assert call(["check", str(tmp_path), "--repair"]) == 1
    seen = capsys.readouterr()
    assert "1 of other tools" in seen.out
    assert seen.err.count(str(foreign)) == 1
    assert foreign.exists()
    assert not ours.exists()
