"""The stage retrieve against brute force, and what it leaves out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from histotl.cli.main import call
from histotl.core.errors import IdentityError, UsageError
from histotl.core.progress import Step
from histotl.learn.bags import BagStore
from histotl.learn.config import TrainConfig
from histotl.learn.model import load_model
from histotl.learn.neighbours import Index
from histotl.learn.retrieval import retrieve
from histotl.learn.retrieve_config import RetrieveConfig
from histotl.learn.train import train

Cohort = tuple[pd.DataFrame, Path]
CPU = RetrieveConfig(device="cpu")
LABEL = "label: embedding(width=12, k=5)"


@pytest.fixture
def noisy_cohort(patch_cohort: Cohort) -> Cohort:
    """Every fourth label is another one, so that lists are not perfect."""
    table, features = patch_cohort
    table = table.copy()
    wrong = np.random.default_rng(0).random(len(table)) < 0.25
    table.loc[wrong, "label"] = table.loc[wrong, "label"].map({"normal": "low", "low": "high", "high": "normal"})
    return table, features


@pytest.fixture
def patch_model(noisy_cohort: Cohort, quick: TrainConfig, tmp_path: Path) -> Path:
    table, features = noisy_cohort
    tasks = [LABEL, "size: regression"]
    config = replace(quick, members=2, ood=(), compare_single=False)
    return train(table, features, tmp_path / "m", tasks=tasks, config=config).folder


def cosines(model: Path, features: Path) -> np.ndarray:
    """Mean cosine of every patch with every training patch, by the first layers of the members alone."""
    loaded, store = load_model(model), BagStore.open(features)
    task = loaded.tasks[0]
    packed = store.bags([[i] for i in range(len(store.ids))]).gather(np.arange(len(store.ids)))
    found = []
    for member in loaded.members:
        kept, own = member.recall(task.name), member.heads[0]
        assert kept is not None
        with torch.inference_mode():
            bags = (packed.x - member.mean) / member.std
            shared = member.sharing.own(member.common(bags))[0]
            seen = (shared @ own.weight.T + own.bias)[:, :12].double().numpy()  # type: ignore[union-attr, operator]
        unit = seen / np.linalg.norm(seen, axis=1, keepdims=True)
        found.append(unit @ kept.bank.double().numpy().T)
    return np.mean(found, axis=0)


def test_lists_are_those_of_brute_force(noisy_cohort: Cohort, patch_model: Path, tmp_path: Path) -> None:
    table, features = noisy_cohort
    path = tmp_path / "table.csv"
    table.to_csv(path, index=False)
    out = tmp_path / "near.csv"
    found = retrieve(patch_model, features, out, k=6, config=replace(CPU, table=str(path)))
    rows = pd.read_csv(out)
    assert list(rows.columns) == ["query", "query_class", "rank", "id", "patient", "class", "similarity"]
    assert len(rows) == 240 * 6
    assert found.unknown_patients == 0
    every, train_rows = cosines(patch_model, features), table[table["split"] == "train"]
    hits, precisions, right = [], [], []
    for number, (query, label, patient) in enumerate(zip(table["path"], table["label"], table["patient"], strict=True)):
        allowed = np.flatnonzero((train_rows["patient"] != patient).to_numpy())
        order = allowed[np.argsort(-every[number, allowed], kind="stable")][:6]
        mine = rows[rows["query"] == query]
        assert list(mine["rank"]) == [1, 2, 3, 4, 5, 6]
        np.testing.assert_allclose(mine["similarity"], every[number, order], atol=1e-5)
        assert not set(mine["patient"]) & {patient}
        assert (train_rows.set_index("path").loc[mine["id"], "label"].to_numpy() == mine["class"]).all()
        assert set(mine["query_class"]) == {label}
        relevant = (mine["class"] == label).to_numpy()
        total = int((train_rows["label"].to_numpy()[allowed] == label).sum())
        hits.append(relevant.any())
        precisions.append(sum(relevant[: i + 1].mean() for i in range(6) if relevant[i]) / min(6, total))
        votes = mine["class"].value_counts()
        best = set(votes[votes == votes.max()].index)
        right.append(next(name for name in mine["class"] if name in best) == label)
    assert found.measured == 240
    assert found.metrics["recall@6"].value == pytest.approx(np.mean(hits))
    assert found.metrics["map@6"].value == pytest.approx(np.mean(precisions))
    assert found.metrics["knn_accuracy@6"].value == pytest.approx(np.mean(right))
    interval = found.metrics["map@6"]
    assert interval.low < interval.value < interval.high


def test_the_query_and_its_patient_are_left_out(patch_cohort: Cohort, patch_model: Path, tmp_path: Path) -> None:
    table, features = patch_cohort
    own = table["patient"] == "P03"
    name = table.loc[own, "path"].iloc[0]
    out = tmp_path / "near.csv"
    retrieve(patch_model, features, out, k=500, config=replace(CPU, ids=(name,)))
    # The model knows whose its training rows are: no table is needed for them.
    rows = pd.read_csv(out)
    assert len(rows) == 144 - 6
    assert "P03" not in set(rows["patient"])
    assert rows["query_class"].isna().all()
    retrieve(patch_model, features, out, k=500, config=replace(CPU, ids=(name,), other_patients=False))
    rows = pd.read_csv(out)
    assert len(rows) == 143
    assert name not in set(rows["id"])
    assert (rows["patient"] == "P03").sum() == 5
    assert (np.diff(rows["similarity"]) <= 1e-9).all()


def test_strangers_have_no_patient(patch_cohort: Cohort, patch_model: Path, tmp_path: Path) -> None:
    table, features = patch_cohort
    told: list[Step] = []
    names = tuple(table.loc[table["split"] == "test", "path"][:3])
    found = retrieve(patch_model, features, tmp_path / "a.csv", config=replace(CPU, ids=names), report=told.append)
    assert found.unknown_patients == 3
    assert any("patients of 3 queries are not known" in step.message for step in told)
    assert not found.metrics
    assert list(dict.fromkeys(pd.read_csv(tmp_path / "a.csv")["query"])) == list(names)


def test_wrong_questions_name_what_is_wrong(
    patch_cohort: Cohort, patch_model: Path, quick: TrainConfig, tmp_path: Path
) -> None:
    table, features = patch_cohort
    name, out = table["path"].iloc[7], tmp_path / "near.csv"
    with pytest.raises(UsageError, match="no 'nobody"):
        retrieve(patch_model, features, out, config=replace(CPU, ids=(name, "nobody.jpg")))
    with pytest.raises(UsageError) as caught:
        retrieve(patch_model, features, out, config=replace(CPU, ids=(name[:-1],)))
    assert name in caught.value.hint
    with pytest.raises(UsageError, match="k is 0"):
        retrieve(patch_model, features, out, k=0, config=CPU)
    with pytest.raises(UsageError, match="no task 'grade'"):
        retrieve(patch_model, features, out, config=replace(CPU, task="grade"))
    with pytest.raises(UsageError, match="keeps no training rows"):
        retrieve(patch_model, features, out, config=replace(CPU, task="size"))
    with pytest.raises(UsageError, match="is a folder"):
        retrieve(patch_model, features, tmp_path, config=CPU)
    with pytest.raises(UsageError, match="without a table"):
        RetrieveConfig(splits=("test",))
    assert not out.exists()
    plain = train(table, features, tmp_path / "plain", tasks=["label: multiclass"], config=quick).folder
    with pytest.raises(UsageError, match="no task of the model keeps training rows") as caught:
        retrieve(plain, features, out, config=CPU)
    assert "label: embedding(column='label')" in caught.value.hint
    both = [LABEL, "again: embedding(column='label')"]
    double = train(table, features, tmp_path / "both", tasks=both, config=replace(quick, compare_single=False)).folder
    with pytest.raises(UsageError, match="2 tasks keep training rows"):
        retrieve(double, features, out, config=CPU)
    assert retrieve(double, features, out, config=replace(CPU, task="again")).task == "again"


def test_features_of_others_are_refused(patch_model: Path, slide_cohort: Cohort, tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match="trained on patches"):
        retrieve(patch_model, slide_cohort[1], tmp_path / "near.csv", config=CPU)


def test_tiles_come_with_their_places(slide_cohort: Cohort, quick: TrainConfig, tmp_path: Path) -> None:
    table, features = slide_cohort
    tasks = ["lesion: embedding(width=8, classes=('no', 'yes'))"]
    model = train(table, features, tmp_path / "m", tasks=tasks, config=replace(quick, level="tile", ood=())).folder
    out = tmp_path / "near.csv"
    index = Index(load_model(model), load_model(model).tasks[0])
    size = int((index.case == 1).sum())
    retrieve(model, features, out, k=len(index), config=replace(CPU, ids=("S01",), other_patients=False))
    rows = pd.read_csv(out)
    assert list(rows.columns)[-4:] == ["query_x", "query_y", "x", "y"]
    # Each tile of the slide finds all training tiles but itself.
    assert len(rows) == size * (len(index) - 1)
    own = rows[rows["id"] == "S01"]
    assert not ((own["query_x"] == own["x"]) & (own["query_y"] == own["y"])).any()
    retrieve(model, features, out, k=4, config=replace(CPU, ids=("S01",)))
    rows = pd.read_csv(out)
    assert len(rows) == 4 * size
    assert "S01" not in set(rows["id"])


def test_the_verb(slide_cohort: Cohort, quick: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, features = slide_cohort
    path, out = tmp_path / "table.csv", tmp_path / "near.csv"
    table.to_csv(path, index=False)
    config = replace(quick, aggregator="abmil(hidden=16, attention=8)", ood=())
    tasks = ["lesion: embedding(width=8, classes=('no', 'yes'))"]
    model = train(table, features, tmp_path / "m", tasks=tasks, config=config).folder
    argv = ["retrieve", str(model), str(features), "--out", str(out), "--quiet", "--device", "cpu"]
    assert call([*argv, "--ids", "S30", "--ids", "S31", "-k", "3"]) == 0
    assert "2 rows, 20 training rows" in capsys.readouterr().out
    rows = pd.read_csv(out)
    assert rows.groupby("query").size().to_dict() == {"S30": 3, "S31": 3}
    assert set(rows["id"]) <= {f"S{i:02d}" for i in range(20)}
    assert call([*argv, "--table", str(path), "--splits", "test", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["queries"] == 8
    assert set(said["metrics"]) == {"recall@10", "map@10", "knn_accuracy@10"}
    assert call([*argv, "--table", str(path), "--splits", "test", "--no-other-patients"]) == 0
    assert "map@10" in capsys.readouterr().out
    assert call([*argv, "--ids", "S99"]) == 2
    assert "S99" in capsys.readouterr().err


def test_the_step_of_a_recipe(patch_cohort: Cohort, patch_model: Path, tmp_path: Path, capsys) -> None:
    features, recipe, out = patch_cohort[1], tmp_path / "recipe.toml", tmp_path / "near"
    text = f'[[step]]\nverb = "retrieve"\nmodel = "{patch_model}"\nfeatures = "{features}"\nout = "{out}"\n'
    recipe.write_text(text + 'k = 3\ndevice = "cpu"\n')
    assert call(["run", str(recipe), "--quiet"]) == 0
    assert "training rows" in capsys.readouterr().out
    rows = pd.read_csv(out / "neighbours.csv")
    assert (rows.groupby("query").size() == 3).all()
    assert call(["run", str(recipe), "--quiet"]) == 0
    assert "fresh, skipped" in capsys.readouterr().out
    for changed, told in (('k = 2\ndevice = "cpu"\n', ""), ("k = 0\n", "k is 0"), ("kk = 2\n", "kk")):
        recipe.write_text(text + changed)
        assert call(["run", str(recipe), "--quiet"]) == (2 if told else 0)
        said = capsys.readouterr()
        assert told in said.err
        assert "fresh" not in said.out
    assert (pd.read_csv(out / "neighbours.csv").groupby("query").size() == 2).all()
