"""Augmented views in training and prediction."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from histotl.core.errors import CorruptFileError, IdentityError, UsageError
from histotl.learn.bags import Bags, BagStore
from histotl.learn.config import PredictConfig, TrainConfig
from histotl.learn.model import load_model
from histotl.learn.predict import predict
from histotl.learn.predictions import read_predictions
from histotl.learn.rows import ArrayRows
from histotl.learn.task import Task, parse_task
from histotl.learn.train import train
from histotl.store.embeddings import open_embeddings
from histotl.store.tile_scores import read_tile_scores

DIM, K = 16, 3
CPU = PredictConfig(device="cpu")
LESION = (Task(name="lesion", kind="binary", classes=("no", "yes")),)


def _with_views(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return x[None] + 0.5 * rng.normal(size=(K, *x.shape))


@pytest.fixture
def patches(tmp_path: Path, write_patches: Callable[..., Path]) -> tuple[pd.DataFrame, Path]:
    rng = np.random.default_rng(0)
    n = 120
    label = np.arange(n) // 2 % 2
    x = rng.normal(size=(n, DIM)) + 2.0 * label[:, None]
    table = pd.DataFrame(
        {
            "path": [f"{i:03}.png" for i in range(n)],
            "label": np.take(["no", "yes"], label),
            "size": label + 0.1 * rng.normal(size=n),
            "patient": [f"P{i // 4:02}" for i in range(n)],
            "split": np.repeat(["train", "val", "test"], n // 3),
        }
    )
    path = tmp_path / "features_scattering" / "set.h5"
    return table, write_patches(path, list(table["path"]), x, views=_with_views(x, rng))


@pytest.fixture
def slides(tmp_path: Path, write_slide: Callable[..., Path]) -> tuple[pd.DataFrame, Path]:
    rng, folder, rows = np.random.default_rng(1), tmp_path / "20x_224px_0px_overlap" / "features_scattering", []
    for i in range(30):
        x = rng.normal(size=(int(rng.integers(3, 20)), DIM)) + 1.5 * (i % 2)
        write_slide(folder, f"S{i:02}", x, views=_with_views(x, rng))
        split = "train" if i < 16 else "val" if i < 24 else "test"
        rows.append({"slide_id": f"S{i:02}", "patient": f"P{i}", "split": split, "lesion": ("no", "yes")[i % 2]})
    return pd.DataFrame(rows), folder


TASKS = (parse_task("label: binary(classes=('no', 'yes'))"), parse_task("size: regression"))


@pytest.mark.parametrize("memory_bytes", [10**9, 30 * DIM * 4 * 10, 1])
def test_rows_of_views_are_those_of_the_files(slides: tuple[pd.DataFrame, Path], memory_bytes: int) -> None:
    store = BagStore.open(slides[1], views=True, memory_gb=memory_bytes / 2**30)
    assert store.views is not None
    assert store.source.n_views == K
    files = [open_embeddings(path) for path in sorted(slides[1].glob("*.h5"))]
    every = np.stack([np.concatenate([file.read(view=view) for file in files]) for view in range(K)])
    plain = np.concatenate([file.read() for file in files])
    rng = np.random.default_rng(0)
    rows, views = rng.integers(0, len(plain), 200), rng.integers(-1, K, 200)
    wanted = np.where((views < 0)[:, None], plain[rows], every[views, rows])
    np.testing.assert_array_equal(store.source.read(rows, views), wanted)
    np.testing.assert_array_equal(store.source.read(rows), plain[rows])
    everything = store.bags([[i] for i in range(len(files))])
    one = everything.gather(np.array([4, 2]), view=1)
    spans = [slice(*store.starts[[i, i + 1]]) for i in (4, 2)]
    np.testing.assert_array_equal(one.x.numpy(), np.concatenate([every[1, span] for span in spans]))


def test_a_drawn_view_is_plain_or_any_view_equally_often(slides: tuple[pd.DataFrame, Path]) -> None:
    store = BagStore.open(slides[1], views=True)
    bags, rng = store.bags([[0]]), np.random.default_rng(0)
    versions = [bags.gather(np.array([0])).x, *(bags.gather(np.array([0]), view=view).x for view in range(K))]
    counts = np.zeros(K + 1)
    for _ in range(400):
        drawn = bags.gather(np.array([0]), rng=rng, mixed=True).x
        found = np.array([(drawn == version).all(1).numpy() for version in versions])
        assert (found.sum(0) == 1).all()
        counts += found.sum(1)
    assert counts.min() > 0.9 * counts.sum() / (K + 1)
    # Two tiles of one slide are drawn apart.
    assert not np.array_equal(found[:, 0], found[:, 1]) or not np.array_equal(found[:, 1], found[:, 2])


@pytest.mark.parametrize("aggregator", ["mean", "abmil(hidden=16)"])
def test_slides_learn_from_views(
    slides: tuple[pd.DataFrame, Path], quick: TrainConfig, tmp_path: Path, aggregator: str
) -> None:
    config = replace(quick, aggregator=aggregator, views=True)
    result = train(*slides, tmp_path / "a", tasks=LESION, config=config)
    assert result.validation["lesion"]["auroc"] > 0.9
    extra = load_model(tmp_path / "a").extra
    assert extra["views"] == {"augment": "d4", "count": K, "seed": 0}
    again = train(*slides, tmp_path / "b", tasks=LESION, config=config)
    plain = train(*slides, tmp_path / "c", tasks=LESION, config=replace(config, views=False))
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "abc"]
    assert weights[0] == weights[1]  # the draws follow the seed
    assert weights[0] != weights[2]
    assert again.validation == result.validation
    assert plain.validation["lesion"]["auroc"] > 0.9
    assert load_model(tmp_path / "c").extra["views"] is None


def test_rows_learn_from_views_in_batches_of_their_own_size(
    patches: tuple[pd.DataFrame, Path], quick: TrainConfig, tmp_path: Path
) -> None:
    result = train(*patches, tmp_path / "model", tasks=TASKS, config=replace(quick, views=True))
    assert result.validation["label"]["auroc"] > 0.95
    tiles = replace(quick, views=True, level="tile")
    assert train(*patches, tmp_path / "tiles", tasks=TASKS, config=tiles).level == "tile"


def test_validation_sees_no_view(slides: tuple[pd.DataFrame, Path], quick: TrainConfig, tmp_path: Path, write_slide):
    """Views of validation slides that are far off change nothing of what training comes to."""
    train(*slides, tmp_path / "a", tasks=LESION, config=replace(quick, views=True))
    for i in range(16, 30):
        found = open_embeddings(slides[1] / f"S{i:02}.h5")
        write_slide(slides[1], f"S{i:02}", found.read(), views=np.full((K, found.n, DIM), 9e3))
    train(*slides, tmp_path / "b", tasks=LESION, config=replace(quick, views=True))
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()


def _numbers(folder: Path) -> pd.DataFrame:
    frame = read_predictions(folder).frame
    return frame[[name for name in frame if (":" in name and not name.endswith(":set")) or name == "size"]]


def test_tta_is_the_mean_over_plain_and_views(
    patches: tuple[pd.DataFrame, Path], quick: TrainConfig, tmp_path: Path, write_patches: Callable[..., Path]
) -> None:
    table, features = patches
    model = train(table, features, tmp_path / "model", tasks=TASKS, config=quick).folder
    plain = predict(model, features, tmp_path / "plain", config=CPU)
    tta = predict(model, features, tmp_path / "tta", config=replace(CPU, tta=True, batch_tiles=50))
    found = open_embeddings(features)
    parts = [_numbers(plain)]
    for view in range(K):
        one = write_patches(tmp_path / f"v{view}" / "set.h5", list(found.items), found.read(view=view))
        parts.append(_numbers(predict(model, one, tmp_path / f"out{view}", config=CPU)))
    mean = sum(parts) / (K + 1)
    np.testing.assert_allclose(_numbers(tta).to_numpy(), mean.to_numpy(), rtol=1e-6, atol=1e-8)
    assert np.abs(_numbers(tta) - parts[0]).to_numpy().max() > 1e-3
    frames = [read_predictions(folder).frame for folder in (plain, tta)]
    for name in ("ood_score", "ood_p", "ood_flag", "n_tiles"):  # the gate looks at plain features
        np.testing.assert_array_equal(frames[0][name], frames[1][name])
    best = frames[1][["label:no", "label:yes"]].to_numpy().argmax(1)
    assert list(frames[1]["label"]) == np.take(["no", "yes"], best).tolist()
    assert json.loads((tta / "predictions.json").read_text())["tta"] == {"augment": "d4", "count": K, "seed": 0}
    assert json.loads((plain / "predictions.json").read_text())["tta"] is None


def test_tta_of_slides_averages_attention_too(
    slides: tuple[pd.DataFrame, Path], quick: TrainConfig, tmp_path: Path
) -> None:
    config = replace(quick, aggregator="abmil(hidden=16)", views=True)
    model = train(*slides, tmp_path / "model", tasks=LESION, config=config).folder
    predict(model, slides[1], tmp_path / "tta", config=replace(CPU, tta=True))
    store, loaded = BagStore.open(slides[1], views=True), load_model(model)
    bags = store.bags([[0]])
    answers = [loaded.answer(bags.gather(np.array([0]), view=view)) for view in (None, *range(K))]
    scores = read_tile_scores(tmp_path / "tta" / "tile_scores" / "S00.h5").columns
    np.testing.assert_allclose(scores["attention"], np.mean([a.weights for a in answers], axis=0), rtol=1e-5)
    frame = read_predictions(tmp_path / "tta").frame
    wanted = np.mean([a.tasks["lesion"][0] for a in answers], axis=0)
    np.testing.assert_allclose(frame.loc[0, ["lesion:no", "lesion:yes"]].to_numpy(float), wanted, rtol=1e-5)


def test_files_without_views_and_with_others_are_refused(
    slides: tuple[pd.DataFrame, Path], quick: TrainConfig, tmp_path: Path, write_slide: Callable[..., Path]
) -> None:
    table, folder = slides
    model = train(table, folder, tmp_path / "model", tasks=LESION, config=quick).folder
    x = np.zeros((4, DIM))
    wishes = (
        lambda: train(table, folder, tmp_path / "no", tasks=LESION, config=replace(quick, views=True)),
        lambda: predict(model, folder, tmp_path / "no", config=replace(CPU, tta=True)),
    )
    for other in ({"views": np.zeros((K, 4, DIM)), "view_seed": 1}, {"views": np.zeros((2, 4, DIM))}, {}):
        write_slide(folder, "S07", x, **other)
        for wish in wishes:
            with pytest.raises(IdentityError, match=r"S00\.h5 and S07\.h5 differ in views") as caught:
                wish()
            assert "--augment" in caught.value.hint
    train(table, folder, tmp_path / "plain", tasks=LESION, config=quick)  # nobody asked for views
    for file in folder.glob("*.h5"):
        write_slide(folder, file.stem, x)
    for wish in wishes:
        with pytest.raises(UsageError, match="no augmented views") as caught:
            wish()
        assert "--views" in caught.value.hint
    assert not (tmp_path / "no").exists() or not list((tmp_path / "no").iterdir())


def test_views_that_are_not_finite_are_refused(slides: tuple[pd.DataFrame, Path]) -> None:
    import h5py

    with h5py.File(slides[1] / "S03.h5", "r+") as file:
        file["views"][1, 0, 0] = np.nan
    store = BagStore.open(slides[1], views=True)
    assert np.isfinite(store.source.read(np.arange(store.source.n))).all()
    with pytest.raises(CorruptFileError, match=r"S03\.h5: 1 of"):
        store.source.read(np.arange(store.source.n), np.ones(store.source.n, dtype=np.int64))


def test_an_array_has_no_views() -> None:
    bags = Bags.singles(ArrayRows(np.zeros((3, 2))), np.arange(3))
    with pytest.raises(OSError, match="no augmented views"):
        bags.gather(np.array([0]), view=0)
    assert bags.gather(np.array([0]), mixed=True, rng=np.random.default_rng(0)).x.shape == (1, 2)
