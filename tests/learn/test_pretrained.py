from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from sklearn.metrics import roc_auc_score

from histotl.cli.main import call
from histotl.core.errors import CorruptFileError, IdentityError, StoreError, UsageError
from histotl.learn.config import PredictConfig, TrainConfig
from histotl.learn.model import load_model
from histotl.learn.predict import predict
from histotl.learn.predictions import read_predictions
from histotl.learn.pretrained import export_aggregator, load_aggregator, save_aggregator
from histotl.learn.task import parse_task
from histotl.learn.train import prepare, preview, train
from histotl.learn.training_sets import training_key
from histotl.store.tile_scores import read_tile_scores

Cohort = tuple[pd.DataFrame, Path]
LESION = (parse_task("lesion: binary(classes=('no', 'yes'))"),)
TWO = (*LESION, parse_task("other: binary(column='lesion', classes=('no', 'yes'))"))
SMALL = "abmil(hidden=16, attention=8, dropout=0.0)"


def trained(cohort: Cohort, out: Path, config: TrainConfig, aggregator: str = SMALL, tasks: tuple = LESION) -> Path:
    table, features = cohort
    config = replace(config, aggregator=aggregator, min_steps=150, max_steps=150)
    return train(table, features, out, tasks=tasks, config=config).folder


def test_training_starts_from_what_was_saved(slide_cohort: Cohort, quick: TrainConfig, tmp_path: Path) -> None:
    table, features = slide_cohort
    first = load_model(trained(slide_cohort, tmp_path / "first", quick))
    file = save_aggregator(first, tmp_path / "kept" / "abmil.safetensors")
    kept = load_aggregator(file)
    assert kept.spec.startswith("abmil(hidden=16")
    assert (kept.in_dim, kept.outputs, kept.identity) == (16, (("lesion", 1),), first.identity)
    # One step of training with a rate of nearly nothing: aggregator and tile statistics are as they were saved.
    config = replace(quick, pretrained=str(file), min_steps=1, max_steps=1, learning_rates=(1e-12,))
    again = load_model(train(table, features, tmp_path / "again", tasks=TWO, config=config).folder)
    assert again.architecture.aggregator == kept.spec
    before, after = first.members[0].state_dict(), again.members[0].state_dict()
    names = [name for name in before if name.startswith("aggregator.") or name in ("mean", "std")]
    assert len(names) > 4
    for name in names:
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=1e-6)
    fresh = load_model(
        train(
            table, features, tmp_path / "fresh", tasks=TWO, config=replace(config, pretrained="", aggregator=SMALL)
        ).folder
    )
    assert (fresh.members[0].state_dict()[names[-1]] - before[names[-1]]).abs().max() > 1e-3


def test_another_file_under_the_same_name_is_another_training(
    slide_cohort: Cohort, quick: TrainConfig, tmp_path: Path
) -> None:
    file, keys = tmp_path / "a.safetensors", []
    for seed in (0, 1):
        save_aggregator(load_model(trained(slide_cohort, tmp_path / f"{seed}", replace(quick, seed=seed))), file)
        config = replace(quick, pretrained=str(file))
        store, level, cohort = prepare(*slide_cohort, LESION, config)
        keys += [training_key(cohort, store, level, config) for _ in range(2)]
    assert keys[0] == keys[1] != keys[2] == keys[3]


def test_other_features_tasks_and_aggregators_are_refused(
    slide_cohort: Cohort, quick: TrainConfig, write_slide: Callable[..., Path], tmp_path: Path
) -> None:
    table, features = slide_cohort
    model = load_model(trained(slide_cohort, tmp_path / "model", quick, aggregator="dsmil(hidden=8, query=4)"))
    kept = load_aggregator(save_aggregator(model, tmp_path / "a.safetensors"))
    config = replace(quick, pretrained=str(tmp_path / "a.safetensors"), max_steps=1, min_steps=1)
    with pytest.raises(UsageError, match="weights for its own tasks: lesion"):
        train(table, features, tmp_path / "x", tasks=TWO, config=config)
    with pytest.raises(UsageError, match="--aggregator is abmil"):
        train(table, features, tmp_path / "x", tasks=LESION, config=replace(config, aggregator="abmil"))
    with pytest.raises(UsageError, match="answers for tiles"):
        train(table, features, tmp_path / "x", tasks=LESION, config=replace(config, level="tile"))
    with pytest.raises(IdentityError, match="features 16 wide, these are 8"):
        kept.check(kept.identity, 8)
    assert kept.identity is not None
    with pytest.raises(IdentityError, match="stain"):
        kept.check(replace(kept.identity, stain="macenko"), 16)
    with pytest.raises(IdentityError, match="only its own say"):
        kept.check(None, 16)
    with pytest.raises(IdentityError, match="only these say"):
        replace(kept, identity=None).check(kept.identity, 16)


def test_files_that_hold_no_aggregator(slide_cohort: Cohort, quick: TrainConfig, tmp_path: Path) -> None:
    model = load_model(trained(slide_cohort, tmp_path / "model", quick))
    with pytest.raises(UsageError, match="member 3 of 1"):
        save_aggregator(model, tmp_path / "a", member=3)
    with pytest.raises(UsageError, match="'mean' has no trained weights"):
        save_aggregator(load_model(trained(slide_cohort, tmp_path / "mean", quick, aggregator="mean")), tmp_path / "a")
    with pytest.raises(StoreError, match="cannot be read"):
        load_aggregator(tmp_path / "nothing")
    save_file({"a": torch.zeros(1)}, tmp_path / "plain")
    with pytest.raises(StoreError, match="holds no aggregator"):
        load_aggregator(tmp_path / "plain")
    path = save_aggregator(model, tmp_path / "a.safetensors")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CorruptFileError, match="no whole safetensors file"):
        load_aggregator(path)
    save_file({"a": torch.zeros(1)}, tmp_path / "odd", metadata={"histotl.aggregator": '{"schema": 1}'})
    with pytest.raises(CorruptFileError, match="description"):
        load_aggregator(tmp_path / "odd")
    save_file({"a": torch.zeros(1)}, tmp_path / "late", metadata={"histotl.aggregator": '{"schema": 2}'})
    with pytest.raises(StoreError, match="schema 2"):
        load_aggregator(tmp_path / "late")


@pytest.mark.parametrize(
    "aggregator", ["abmil(hidden=8, attention=4, rows='task')", "clam(hidden=8, branches='multi')"]
)
def test_attention_of_every_task_is_written(
    slide_cohort: Cohort, quick: TrainConfig, tmp_path: Path, aggregator: str
) -> None:
    model = trained(slide_cohort, tmp_path / "model", quick, aggregator, TWO)
    found = read_predictions(predict(model, slide_cohort[1], tmp_path / "pred", config=PredictConfig(device="cpu")))
    path = found.tile_scores("S03")
    assert path is not None
    columns = read_tile_scores(path).columns
    own = [columns[f"attention:{task.name}"].astype(np.float64) for task in TWO]
    np.testing.assert_allclose([each.sum() for each in own], 1, atol=1e-3)
    np.testing.assert_allclose(columns["attention"], np.mean(own, axis=0), atol=1e-3)


def test_a_dry_run_refuses_what_training_would(
    slide_cohort: Cohort, quick: TrainConfig, write_slide: Callable[..., Path], tmp_path: Path
) -> None:
    table, features = slide_cohort
    two = replace(quick, compare_single=False)
    model = trained(slide_cohort, tmp_path / "model", two, "dsmil(hidden=8, query=4)", TWO)
    file = export_aggregator(model, tmp_path / "kept")
    assert file == tmp_path / "kept" / "aggregator.safetensors"
    config = replace(two, pretrained=str(file))
    assert preview(table, features, tasks=TWO, config=config)["lesion"]["train"] == {"no": 10, "yes": 10, "missing": 0}
    with pytest.raises(UsageError, match="answers for its 2 tasks, and cannot for one of them alone") as caught:
        preview(table, features, tasks=TWO, config=replace(config, compare_single=True))
    assert "--no-compare-single" in str(caught.value.hint)
    with pytest.raises(UsageError, match="weights for its own tasks: lesion"):
        preview(table, features, tasks=LESION, config=config)
    with pytest.raises(UsageError, match="--aggregator is abmil"):
        preview(table, features, tasks=TWO, config=replace(config, aggregator="abmil"))
    with pytest.raises(UsageError, match="answers for tiles"):
        preview(table, features, tasks=TWO, config=replace(config, level="tile"))
    with pytest.raises(StoreError, match="cannot be read"):
        preview(table, features, tasks=TWO, config=replace(config, pretrained=str(tmp_path / "none")))
    narrow = tmp_path / "narrow" / "features_scattering"
    for name in table["slide_id"]:
        write_slide(narrow, name, np.zeros((3, 8)))
    with pytest.raises(IdentityError, match="takes features 16 wide, these are 8"):
        preview(table, narrow, tasks=TWO, config=config)


def test_the_verbs_export_and_dry_run(
    slide_cohort: Cohort, quick: TrainConfig, write_slide: Callable[..., Path], tmp_path: Path
) -> None:
    table, features = slide_cohort
    model = trained(slide_cohort, tmp_path / "model", quick)
    assert call(["export", str(model), str(tmp_path / "kept")]) == 0
    file = tmp_path / "kept" / "aggregator.safetensors"
    assert load_aggregator(file).in_dim == 16
    assert call(["export", str(model), str(tmp_path / "kept"), "--member", "5"]) == 2
    table.to_csv(tmp_path / "table.csv", index=False)
    task = "lesion: binary(classes=('no', 'yes'))"
    argv = ["train", str(tmp_path / "table.csv"), str(features), str(tmp_path / "again"), "--task", task, "--dry-run"]
    assert call([*argv, "--pretrained", str(file)]) == 0
    narrow = tmp_path / "narrow" / "features_scattering"
    for name in table["slide_id"]:
        write_slide(narrow, name, np.zeros((3, 8)))
    argv[2] = str(narrow)
    assert call(argv) == 0
    assert call([*argv, "--pretrained", str(file)]) == 2
    assert not (tmp_path / "again").exists()


def test_a_small_cohort_gains_from_what_large_ones_taught(
    quick: TrainConfig, write_slide: Callable[..., Path], tmp_path: Path
) -> None:
    """Two cohorts with a label each, both about the same rare tiles; a small one with a question of its own."""
    rng = np.random.default_rng(0)
    known, noise = rng.normal(size=(2, 16))
    parts = {"a": (60, "first"), "b": (40, "second"), "small": (72, "lesion")}
    tables = {}
    for name, (n, column) in parts.items():
        rows = []
        for i in range(n):
            x = rng.normal(size=(40, 16))
            # Two tiles of every slide stand out; in half of the slides they do for the reason that counts.
            x[:2] += 0.8 * (known if i % 2 else noise)
            write_slide(tmp_path / name / "features_scattering", f"{name}{i:02d}", x)
            split = "val" if i % 10 < 2 else "train"
            if name == "small":
                split = "train" if i < 8 else "val" if i < 16 else "test"
            rows.append({"slide_id": f"{name}{i:02d}", "patient": f"{name}{i}", "split": split, column: "ny"[i % 2]})
        tables[name] = pd.DataFrame(rows)
    tables["b"].to_csv(tmp_path / "b.csv", index=False)
    config = replace(quick, ood=(), compare_single=False, learning_rates=(0.003,), min_steps=300, max_steps=300)
    joined = replace(
        config,
        aggregator=SMALL,
        more_tables=(str(tmp_path / "b.csv"),),
        more_features=(str(tmp_path / "b"),),
        sampling="dataset_balanced",
        ensure_tasks=2,
    )
    tasks = tuple(f"{name}: binary(classes=('n', 'y'))" for name in ("first", "second"))
    teacher = train(tables["a"], tmp_path / "a", tmp_path / "teacher", tasks=tasks, config=joined).folder
    file = str(export_aggregator(teacher, tmp_path / "kept"))
    found = {}
    for name, settings in (
        ("pretrained", replace(config, pretrained=file)),
        ("scratch", replace(config, aggregator=SMALL)),
    ):
        model = train(
            tables["small"],
            tmp_path / "small",
            tmp_path / name,
            tasks=("lesion: binary(classes=('n', 'y'))",),
            config=settings,
        ).folder
        frame = read_predictions(
            predict(model, tmp_path / "small", tmp_path / f"{name}_out", config=PredictConfig(device="cpu"))
        ).frame
        test = frame["model_split"] == "test"
        found[name] = roc_auc_score(tables["small"].loc[test.to_numpy(), "lesion"] == "y", frame.loc[test, "lesion:y"])
    assert found["pretrained"] > 0.8
    assert found["pretrained"] > found["scratch"] + 0.1
