"""Pipelines of albumentations, as text and as files: a view is a function of tile and seed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from histotl.core.errors import HistotlError, SpecError, UsageError
from histotl.core.registry import canonical, create
from histotl.image.augment.albumentations import Albumentations

TEXT = "RandomRotate90(p=1.0) + RandomBrightnessContrast(p=1.0) + GaussNoise(p=0.5)"


def _saved(folder: Path, suffix: str) -> str:
    import albumentations as A

    path = folder / f"pipeline{suffix}"
    pipeline = A.Compose([A.RandomRotate90(p=1.0), A.RandomBrightnessContrast(p=1.0), A.GaussNoise(p=0.5)])
    A.save(pipeline, str(path), data_format="json" if suffix == ".json" else "yaml")
    return str(path)


def _pipeline(folder: Path, kind: str) -> str:
    return TEXT if kind == "text" else _saved(folder, kind)


@pytest.mark.parametrize("kind", ["text", ".json", ".yaml", ".yml"])
def test_a_view_is_a_function_of_tile_and_seed(kind: str, tmp_path: Path, tissue: torch.Tensor) -> None:
    augment = create("augment", f"albumentations(pipeline={_pipeline(tmp_path, kind)!r})")
    seeds = torch.tensor([5, 2**40, -3, 5])
    views = augment(tissue, seeds)
    assert not torch.equal(views, tissue)
    order = torch.tensor([2, 0, 3, 1])
    assert torch.equal(augment(tissue[order], seeds[order]), views[order])
    again = create("augment", canonical(augment))
    assert again == augment
    assert torch.equal(again(tissue, seeds), views)
    same = augment(tissue[:1].repeat(3, 1, 1, 1), torch.tensor([5, 6, 5]))
    assert torch.equal(same[0], same[2])
    assert not torch.equal(same[0], same[1])


def test_text_and_files_of_one_pipeline_give_the_same_views(tmp_path: Path, tissue: torch.Tensor) -> None:
    seeds = torch.arange(4)
    text = Albumentations(pipeline=TEXT)(tissue, seeds)
    for suffix in (".json", ".yaml"):
        assert torch.equal(Albumentations(pipeline=_saved(tmp_path, suffix))(tissue, seeds), text)


def test_another_file_of_the_same_name_is_another_augmentation(tmp_path: Path) -> None:
    import albumentations as A

    before = Albumentations(pipeline=_saved(tmp_path, ".json"))
    assert len(before.digest) == 16
    A.save(A.Compose([A.HorizontalFlip()]), str(tmp_path / "pipeline.json"))
    after = Albumentations(pipeline=before.pipeline)
    assert after != before
    with pytest.raises(UsageError, match=f"{before.digest} was used before"):
        create("augment", canonical(before))


@pytest.mark.parametrize("suffix", [".json", ".yaml"])
def test_files_that_do_not_fit_are_refused(suffix: str, tmp_path: Path, tissue: torch.Tensor) -> None:
    import albumentations as A

    path = tmp_path / f"p{suffix}"
    cases = [(None, "cannot be read"), ("{", "is not"), ("{}", "no pipeline"), ("[1]", "but a list")]
    for text, said in cases:
        if text is not None:
            path.write_text(text)
        with pytest.raises(UsageError, match=said):
            Albumentations(pipeline=str(path))
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not text"):
        Albumentations(pipeline=str(path))
    A.save(A.Compose([A.Resize(32, 32)]), str(path), data_format=suffix[1:])
    with pytest.raises(SpecError, match=r"\(32, 32, 3\)"):
        Albumentations(pipeline=str(path))(tissue, torch.arange(4))


def test_yaml_that_would_run_code_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("transform: !!python/object/apply:os.system ['true']")
    with pytest.raises(UsageError, match="is not YAML"):
        Albumentations(pipeline=str(path))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Horizontalflip", "no transform 'Horizontalflip'"),
        ("Compose", "no transform 'Compose'"),
        ("os", "no transform 'os'"),
        ("HorizontalFlip(q=1)", "no argument 'q'"),
        ("GaussianBlur(blur_limit='wide')", "blur_limit"),
        ("HorizontalFlip + ", "does not start with a name"),
        ("", "does not start with a name"),
    ],
)
def test_text_that_is_no_pipeline_is_refused(text: str, said: str) -> None:
    with pytest.raises(HistotlError, match=said) as caught:
        Albumentations(pipeline=text)
    assert caught.value.hint


def test_a_digest_of_text_is_refused() -> None:
    with pytest.raises(UsageError, match="of no file"):
        Albumentations(pipeline="HorizontalFlip", digest="beef")
