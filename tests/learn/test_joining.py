"""Cohorts with tables, features and labels of their own, trained on together."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from histotl.core.errors import IdentityError, LeakageError, StoreError, TableError, UsageError
from histotl.core.progress import Step
from histotl.learn.bags import BagStore
from histotl.learn.config import TrainConfig
from histotl.learn.cross_config import CrossConfig
from histotl.learn.cross_validate import cross_validate
from histotl.learn.joining import join_tables
from histotl.learn.model import load_model
from histotl.learn.predict import predict
from histotl.learn.predictions import read_predictions
from histotl.learn.train import prepare, preview, train
from histotl.learn.training_sets import labelled_part, training_key

TASKS = ("lesion: binary(classes=('no', 'yes'))", "grade: binary(classes=('low', 'high'))")
DIM = 16


@pytest.fixture
def cohorts(tmp_path: Path, write_slide: Callable[..., Path]) -> tuple[list[Path], list[Path]]:
    """Tables and features of two cohorts: 36 slides with ``lesion``, 12 with ``grade``; and a table with neither."""
    rng = np.random.default_rng(1)
    tables, folders = [], []
    for name, n, label, values in (("a", 36, "lesion", ("no", "yes")), ("b", 12, "grade", ("low", "high"))):
        folder, rows = tmp_path / name / "features_scattering", []
        for i in range(n):
            x = rng.normal(size=(int(rng.integers(3, 12)), DIM))
            x[:2] += 3.0 * (i % 2)
            write_slide(folder, f"{name}{i:02d}", x)
            split = "train" if i < n * 2 // 3 else "val"
            rows.append(
                {
                    "slide_id": f"{name}{i:02d}",
                    "patient": f"{name}{i}",
                    "split": split,
                    label: values[i % 2],
                    "site": name,
                }
            )
        pd.DataFrame(rows).to_csv(tmp_path / f"{name}.csv", index=False)
        tables.append(tmp_path / f"{name}.csv")
        folders.append(folder)
    return tables, folders


def both(tables: list[Path], folders: list[Path], quick: TrainConfig, **more: object) -> TrainConfig:
    settings = {"more_tables": tables[1:], "more_features": folders[1:], "compare_single": False, "ood": ()} | more
    return replace(quick, **settings)  # type: ignore[arg-type]


def change(table: Path, **columns: object) -> None:
    pd.read_csv(table, dtype=str).assign(**columns).to_csv(table, index=False)


def test_one_model_learns_from_both_and_answers_each(
    cohorts: tuple[list[Path], list[Path]], quick: TrainConfig, tmp_path: Path
) -> None:
    tables, folders = cohorts
    config = both(tables, folders, quick, sampling="dataset_balanced", ensure_tasks=2)
    result = train(tables[0], folders[0], tmp_path / "model", tasks=TASKS, config=config)
    assert result.cases == {"train": 32, "val": 16, "test": 0}
    assert result.notes["rows_in_table"] == 48
    assert result.notes["cohorts"] == {
        str(tables[0]): {"train": 24, "val": 12, "test": 0},
        str(tables[1]): {"train": 8, "val": 4, "test": 0},
    }
    counts = json.loads((tmp_path / "model" / "training.json").read_text())["label_counts"]
    assert counts["lesion"]["train"] == {"no": 12, "yes": 12, "missing": 8}
    assert counts["grade"]["train"] == {"low": 4, "high": 4, "missing": 24}
    inputs = load_model(result.folder).extra["provenance"]["inputs"]  # type: ignore[index]
    assert {"table", f"table:{tables[1]}", "features:a00", "features:b00"} <= inputs.keys()
    for folder, n in zip(folders, (36, 12), strict=True):
        found = read_predictions(predict(result.folder, folder, tmp_path / folder.parent.name / "predictions"))
        assert len(found.frame) == n
        assert {"lesion:yes", "grade:high"} <= set(found.frame.columns)


def test_the_same_from_one_table_with_a_column(cohorts: tuple[list[Path], list[Path]], quick: TrainConfig) -> None:
    """Two tables, two tables with a column, and one table of both: the same cases, labels and data sets."""
    tables, folders = cohorts
    joined = pd.concat([pd.read_csv(table) for table in tables], ignore_index=True)
    config = both(tables, folders, quick, sampling="dataset_balanced")
    parts = []
    for table, settings in (
        (tables[0], config),
        (tables[0], replace(config, cohort_column="site")),
        (joined, replace(config, cohort_column="site", more_tables=())),
    ):
        store, level, cohort = prepare(table, folders[0], TASKS, settings)
        parts.append(labelled_part(cohort, "train", level, store, settings))
        assert cohort.cases.cohorts[0] == ("a" if settings.cohort_column else str(tables[0]))
    for part in parts:
        assert part.groups is not None
        assert part.groups.tolist() == [0] * 24 + [1] * 8
        assert np.array_equal(part.bags.rows, parts[0].bags.rows)
        for name, target in part.targets.items():
            np.testing.assert_array_equal(target, parts[0].targets[name])


def test_tiles_and_bags_know_their_data_set(cohorts: tuple[list[Path], list[Path]], quick: TrainConfig) -> None:
    tables, folders = cohorts
    config = both(tables, folders, quick, sampling="dataset_balanced", level="tile", max_tiles=4)
    store, level, cohort = prepare(tables[0], folders[0], TASKS, config)
    part = labelled_part(cohort, "train", level, store, config)
    assert part.groups is not None
    assert len(part.groups) == len(part.bags) > 32
    # A tile has the label of its slide, and the slides of each data set have one task.
    assert np.array_equal(np.isnan(part.targets["lesion"]), part.groups == 1)
    keys = [training_key(cohort, store, level, config) for _ in range(2)]
    other = replace(cohort, cases=replace(cohort.cases, cohorts=("x", *cohort.cases.cohorts[1:])))
    assert keys[0] == keys[1] != training_key(other, store, level, config)


def test_an_id_in_two_cohorts_is_refused(
    cohorts: tuple[list[Path], list[Path]], quick: TrainConfig, write_slide: Callable[..., Path]
) -> None:
    tables, folders = cohorts
    config = both(tables, folders, quick)
    ids = pd.read_csv(tables[1])["slide_id"].tolist()
    change(tables[1], slide_id=["a03", "a01", *ids[2:]])
    with pytest.raises(TableError, match=r"a\.csv and .*b\.csv have 2 ids in common: a01, a03") as caught:
        preview(tables[0], folders[0], tasks=TASKS, config=config)
    assert "other names" in str(caught.value.hint)
    change(tables[1], slide_id=ids)
    write_slide(folders[1], "a05", np.zeros((3, DIM)))
    with pytest.raises(StoreError, match="two rows of features are called 'a05'"):
        preview(tables[0], folders[0], tasks=TASKS, config=config)


def test_what_one_table_lacks_is_told_with_its_name(cohorts: tuple[list[Path], list[Path]], quick: TrainConfig) -> None:
    tables, folders = cohorts
    config = both(tables, folders, quick, sampling="dataset_balanced", cohort_column="site")
    plain = tables[1].read_text()

    def told(match: str, **settings: object) -> None:
        with pytest.raises(TableError, match=match) as caught:
            preview(tables[0], folders[0], tasks=TASKS, config=replace(config, **settings))  # type: ignore[arg-type]
        assert caught.value.hint

    pd.read_csv(tables[1]).drop(columns="split").to_csv(tables[1], index=False)
    told(r"a\.csv has a column 'split', .*b\.csv has none")
    tables[1].write_text(plain)
    change(tables[1], patient="")
    told(r"b\.csv: column 'patient' is empty in 12 rows")
    tables[1].write_text(plain)
    told(r"a\.csv: the table has no column 'hospital'", cohort_column="hospital")
    told(r"a\.csv is given twice", more_tables=(str(tables[0]),))
    change(tables[1], site="a")
    told("all training cases are of one data set, 'a'")
    with pytest.raises(UsageError, match="more_tables is a DataFrame"):
        TrainConfig(more_tables=[pd.DataFrame()])  # type: ignore[list-item]


def test_features_of_another_kind_are_refused(
    cohorts: tuple[list[Path], list[Path]], quick: TrainConfig, write_slide: Callable[..., Path], tmp_path: Path
) -> None:
    tables, folders = cohorts
    other = tmp_path / "other" / "features_scattering"
    write_slide(other, "c00", np.zeros((3, DIM)), stain="macenko")
    with pytest.raises(IdentityError, match="stain"):
        preview(tables[0], folders[0], tasks=TASKS, config=both(tables, [*folders, other], quick))


def test_patch_sets_of_one_name_keep_their_digests(write_patches: Callable[..., Path], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    files = [
        write_patches(tmp_path / name / "features_scattering" / "patches.h5", [f"{name}/{i}.png" for i in range(4)], x)
        for name, x in zip("ab", rng.normal(size=(2, 4, DIM)), strict=True)
    ]
    store = BagStore.open(files[0], more=[str(files[1])])
    assert store.ids == tuple(f"{name}/{i}.png" for name in "ab" for i in range(4))
    assert store.digests.keys() == {str(file) for file in files}
    assert len(set(store.digests.values())) == 2


def test_bags_of_patches_lie_in_one_data_set(patch_cohort: tuple[pd.DataFrame, Path], quick: TrainConfig) -> None:
    frame, features = patch_cohort
    config = replace(quick, bag="patient", sampling="dataset_balanced", cohort_column="site")
    task = ("size: regression",)
    frame = frame.assign(site=np.where(frame["patient"] < "P12", "a", "b"))
    cohort = prepare(frame, features, task, config)[2]
    assert cohort.cases.cohorts[:13] == ("a",) * 12 + ("b",)
    frame.loc[0, "site"] = "b"
    with pytest.raises(LeakageError, match="holds rows of several cohorts: a, b"):
        prepare(frame, features, task, config)


def test_splits_that_are_made_spread_the_data_sets(cohorts: tuple[list[Path], list[Path]], quick: TrainConfig) -> None:
    tables, folders = cohorts
    for table in tables:
        pd.read_csv(table).drop(columns="split").to_csv(table, index=False)
    config = both(tables, folders, quick)
    _, _, cohort = prepare(tables[0], folders[0], TASKS, config)
    shares = cohort.notes["cohorts"]
    assert isinstance(shares, dict)
    for found, n in zip(shares.values(), (36, 12), strict=True):
        assert abs(found["train"] - 0.6 * n) <= 2
        assert min(found.values()) >= 1


def test_folds_draw_from_every_data_set(
    cohorts: tuple[list[Path], list[Path]], quick: TrainConfig, tmp_path: Path
) -> None:
    tables, folders = cohorts
    config = both(tables, folders, quick, sampling="dataset_balanced", ensure_tasks=1, max_steps=5, min_steps=5)
    result = cross_validate(
        tables[0], folders[0], tmp_path / "cv", tasks=TASKS, config=config, cross=CrossConfig(folds=3)
    )
    frame = pd.read_csv(result.predictions[0] / "predictions.csv")
    assert len(frame) == 48
    table = pd.crosstab(frame["fold"], frame["slide_id"].str[0])
    assert (table["a"] - 12).abs().max() <= 2
    assert (table["b"] - 4).abs().max() <= 1


def test_tables_are_joined_as_they_were_read(tmp_path: Path) -> None:
    """Numbers from a DataFrame, texts from a file, columns of one of them, and ids under another name."""
    (tmp_path / "b.csv").write_text("sample_id;patient;size;stage\ns3;p3;1.50;II\n")
    first = pd.DataFrame({"slide_id": ["s1", "s2"], "patient": [1, 2], "size": [1.0, np.nan]})
    config = TrainConfig(more_tables=(tmp_path / "b.csv",))  # type: ignore[arg-type]
    frame, column = join_tables(first, config, "slide_id")
    assert frame["slide_id"].tolist() == ["s1", "s2", "s3"]
    assert frame[column].tolist() == ["the table", "the table", str(tmp_path / "b.csv")]
    assert frame["size"].tolist()[::2] == [1.0, "1.50"]
    assert frame["stage"].isna().tolist() == [True, True, False]


def test_an_interrupted_training_of_several_cohorts_goes_on(
    cohorts: tuple[list[Path], list[Path]], quick: TrainConfig, tmp_path: Path
) -> None:
    tables, folders = cohorts
    config = both(tables, folders, quick, sampling="dataset_balanced", ensure_tasks=2, members=3, dropout=0.2)
    whole = train(tables[0], folders[0], tmp_path / "whole", tasks=TASKS, config=config)

    class StoppedError(Exception):
        pass

    def stop(step: Step) -> None:
        if step.done == 2:
            raise StoppedError

    with pytest.raises(StoppedError):
        train(tables[0], folders[0], tmp_path / "model", tasks=TASKS, config=config, report=stop)
    told: list[Step] = []
    again = train(tables[0], folders[0], tmp_path / "model", tasks=TASKS, config=config, report=told.append)
    assert sum("of the start before" in step.message for step in told) == 2
    for one, two in zip(load_model(whole.folder).members, load_model(again.folder).members, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
