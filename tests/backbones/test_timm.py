"""Any timm model: weights from everywhere, poolings, sizes, and errors that say the cure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from histotl.backbones import timm as ours
from histotl.core.errors import SpecError, UnknownNameError, WeightsError
from histotl.core.registry import canonical, create

CPU = torch.device("cpu")


def load(spec: str) -> Any:
    return create("backbone", spec).load(CPU)


def embed(embedder: Any, tiles: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return embedder(tiles)


def test_random_weights_are_seeded_marked_and_leave_torch_alone(tiles: torch.Tensor) -> None:
    torch.manual_seed(7)
    before = torch.rand(1)
    torch.manual_seed(7)
    first, again, other = (load(f"timm/test_vit(weights='random', seed={s})") for s in (1, 1, 2))
    assert torch.equal(torch.rand(1), before)
    assert first.card == again.card
    assert first.card.weights == "random(seed=1)"
    assert first.card.weights_digest != other.card.weights_digest
    assert torch.equal(embed(first, tiles), embed(again, tiles))
    assert not torch.allclose(embed(first, tiles), embed(other, tiles), atol=1e-3)
    assert not torch.allclose(embed(first, tiles)[0], embed(first, tiles)[1], atol=1e-3)


def test_hub_weights_equal_the_same_file_given_by_hand(
    classifier_file: Path, tiles: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def fetch(repo: str, names: tuple[str, ...]) -> Path:
        asked.append((repo, names[0]))
        return classifier_file

    monkeypatch.setattr(ours, "fetch", fetch)
    hub = load("timm/test_byobnet.r160_in1k")
    assert asked == [("timm/test_byobnet.r160_in1k", "model.safetensors")]
    file = load(f"timm/test_byobnet(weights={str(classifier_file)!r})")
    assert hub.card.weights == "hub:timm/test_byobnet.r160_in1k"
    assert hub.card.licence == "apache-2.0"
    assert file.card.weights == "file:byob.safetensors"
    assert file.card.licence == "unknown"
    assert hub.card.weights_digest == file.card.weights_digest
    assert torch.equal(embed(hub, tiles), embed(file, tiles))
    assert not torch.allclose(embed(hub, tiles), embed(load("timm/test_byobnet(weights='random')"), tiles), atol=1e-3)


def test_a_hub_repository_by_its_own_name(
    classifier_file: Path, tmp_path: Path, tiles: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {"input_size": [3, 96, 96], "mean": [0.7, 0.6, 0.7], "std": [0.2, 0.2, 0.2], "interpolation": "bilinear"}
    config = {"num_classes": 1000, "classifier": "head.fc", "first_conv": "stem.conv", "license": "mit", **own}
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "test_byobnet", "pretrained_cfg": config}))
    monkeypatch.setattr(ours, "fetch", lambda _, n: tmp_path / n[0] if n[0] == "config.json" else classifier_file)
    embedder = load("timm/hf-hub:lab/net")
    card = embedder.card
    assert (card.name, card.weights, card.licence) == ("timm/hf-hub:lab/net", "hub:lab/net", "mit")
    assert (card.input_px, card.mean, card.interpolation) == (96, (0.7, 0.6, 0.7), "bilinear")
    by_hand = f"timm/test_byobnet(weights={str(classifier_file)!r}, input_px=96, mean=(0.7, 0.6, 0.7), "
    by_hand += "std=(0.2, 0.2, 0.2), interpolation='bilinear')"
    assert torch.equal(embed(embedder, tiles), embed(load(by_hand), tiles))


def test_hub_weights_of_another_architecture_are_refused(
    classifier_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = load_file(str(classifier_file))
    name = "stages.0.0.attn.fc1.weight"
    del state[name]
    save_file(state, str(tmp_path / "less.safetensors"))
    monkeypatch.setattr(ours, "fetch", lambda *_: tmp_path / "less.safetensors")
    with pytest.raises(WeightsError, match="do not fit"):
        load("timm/test_byobnet.r160_in1k")
    with pytest.raises(WeightsError, match=f"1 missing: {name}"):
        load(f"timm/test_byobnet(weights={str(tmp_path / 'less.safetensors')!r})")


def test_dropped_modules_become_the_identity_and_their_weights_are_left(
    classifier_file: Path, tmp_path: Path, tiles: torch.Tensor
) -> None:
    whole = load(f"timm/test_byobnet(weights={str(classifier_file)!r})")
    less = load(f"timm/test_byobnet(weights={str(classifier_file)!r}, drop=('stages.3.0.attn',))")
    assert isinstance(less.module.stages[3][0].attn, torch.nn.Identity)
    assert less.card.weights_digest != whole.card.weights_digest
    whole.module.stages[3][0].attn = torch.nn.Identity()
    assert torch.equal(embed(whole, tiles), embed(less, tiles))
    # Weights that lack the part are the reason for dropping it; they fit now, and did not before.
    state = {k: v for k, v in load_file(str(classifier_file)).items() if not k.startswith("stages.3.0.attn.")}
    save_file(state, str(tmp_path / "cut.safetensors"))
    cut = f"timm/test_byobnet(weights={str(tmp_path / 'cut.safetensors')!r}"
    assert torch.equal(embed(load(f"{cut}, drop=('stages.3.0.attn',))"), tiles), embed(less, tiles))
    with pytest.raises(WeightsError, match=r"missing: stages\.3\.0\.attn"):
        load(f"{cut})")
    with pytest.raises(SpecError, match="no submodule") as caught:
        load("timm/test_byobnet(weights='random', drop=('stages.3.0.attm',))")
    assert "stages.3.0.attn" in caught.value.hint


def test_arguments_outside_the_weights_are_in_the_digest(classifier_file: Path) -> None:
    plain, other = (
        load(f"timm/test_efficientnet(weights='random', model_args={args!r})") for args in ({}, {"bn_eps": 0.1})
    )
    assert plain.module.bn1.eps != other.module.bn1.eps
    assert plain.card.weights_digest != other.card.weights_digest


def test_poolings_of_a_transformer_are_what_they_say(tiles: torch.Tensor) -> None:
    spec = "timm/test_vit(weights='random', pooling={!r}, seed=4)"
    by = {how: load(spec.format(how)) for how in ("model", "avg", "cls", "cls+mean")}
    vectors = {how: embed(embedder, tiles) for how, embedder in by.items()}
    assert {how: e.card.pooling for how, e in by.items()} == {how: how for how in by}
    assert [by[how].card.dim for how in ("avg", "cls", "cls+mean")] == [64, 64, 128]
    assert torch.equal(vectors["cls+mean"], torch.cat([vectors["cls"], vectors["avg"]], 1))
    with torch.inference_mode():
        from histotl.backbones._preprocess import prepare

        tokens = by["avg"].module.forward_features(prepare(tiles, by["avg"].card))
    torch.testing.assert_close(vectors["avg"], tokens[:, 1:].mean(1))
    torch.testing.assert_close(vectors["model"], tokens[:, 0])  # this model pools by its class token


@pytest.mark.parametrize("name", ["test_byobnet", "test_convnext", "test_mambaout"])
def test_average_of_a_map_in_either_memory_order(name: str, tiles: torch.Tensor) -> None:
    import timm

    from histotl.backbones._preprocess import prepare

    if not timm.is_model(name):
        pytest.skip(f"this timm has no {name}")
    embedder = load(f"timm/{name}(weights='random', pooling='avg')")
    with torch.inference_mode():
        feature_map = embedder.module.forward_features(prepare(tiles, embedder.card))
    axes = [i for i in (1, 2, 3) if feature_map.shape[i] != embedder.card.dim]
    assert len(axes) == 2
    torch.testing.assert_close(embed(embedder, tiles), feature_map.mean(axes))


def test_poolings_that_do_not_fit_are_refused() -> None:
    for how in ("cls", "cls+mean"):
        with pytest.raises(SpecError, match="no class token") as caught:
            load(f"timm/test_byobnet(weights='random', pooling={how!r})")
        assert "pooling='avg'" in caught.value.hint
    with pytest.raises(SpecError, match="no class token"):
        load("timm/test_vit2(weights='random', pooling='cls', model_args={'class_token': False})")
    with pytest.raises(SpecError, match="is not"):
        load("timm/test_byobnet(weights='random', pooling='max')")


def test_sizes_come_from_the_model_and_wrong_ones_are_refused(tiles: torch.Tensor) -> None:
    assert load("timm/test_vit(weights='random')").card.input_px == 160
    assert load("timm/test_vit(weights='random', model_args={'img_size': 64})").card.input_px == 64
    assert load("timm/test_byobnet(weights='random', input_px=64)").card.input_px == 64
    with pytest.raises(SpecError, match="fails on a 100 px input") as caught:
        load("timm/test_vit2(weights='random', input_px=100)")
    assert "img_size" in caught.value.hint


def test_unknown_names_answer_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="'resnet8'") as caught:
        load("timm/resnet8")
    assert "timm/resnet18" in caught.value.hint
    with pytest.raises(WeightsError, match="no weights tagged 'a9_in1k'") as tag:
        load("timm/resnet18.a9_in1k")
    assert "a1_in1k" in tag.value.hint
    with pytest.raises(WeightsError, match="no pretrained weights") as none:
        load("timm/mobilenetv2_035")
    assert "weights='random'" in none.value.hint
    with pytest.raises(SpecError, match="needs 'model'"):
        create("backbone", "timm")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("timm/test_byobnet(model_args={'checkpoint_path': 'x'})", "may not set checkpoint_path"),
        ("timm/test_byobnet(model_args={'num_classes': 5})", "may not set num_classes"),
        ("timm/test_byobnet(std=(0.5, 0.5, 0.0))", "std is"),
        ("timm/test_byobnet(input_px=0)", "input_px is 0"),
        ("timm/test_byobnet(weights='random', model_args={'no_such': 1})", "no_such"),
        ("timm/test_byobnet(pooling=3)", "pooling=3"),
    ],
)
def test_wrong_arguments_are_refused(spec: str, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        load(spec)


def test_the_text_of_a_full_spec_builds_it_again() -> None:
    text = "timm/mobilenetv1_100(weights='a.pth', model_args={'pad_type': 'same', 'bn_eps': 0.001}, "
    text += "drop=('blocks.4.1',), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), name='m1')"
    built = create("backbone", text)
    assert create("backbone", canonical(built)) == built
    assert built.drop == ("blocks.4.1",)
    with pytest.raises(WeightsError, match=r"'a\.pth' does not exist"):
        built.load(CPU)


def test_a_name_tells_variants_apart() -> None:
    assert load("timm/test_byobnet(weights='random', name='control')").card.slug == "control"
