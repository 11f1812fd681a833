"""Any network through a card file: the forms of it, and an answer to each mistake."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from histotl.core.errors import MissingDependencyError, SpecError, UnknownNameError, UsageError, WeightsError
from histotl.core.registry import create

CPU = torch.device("cpu")
NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=8, kind="map"):
        super().__init__()
        self.kind = kind
        self.features = nn.Conv2d(3, width, 4, stride=4)
        self.classifier = nn.Linear(width, 2)

    def forward(self, x):
        y = self.features(x)
        if self.kind == "tokens":
            return y.flatten(2).transpose(1, 2)
        if self.kind == "tuple":
            return (y,)
        return y.mean((2, 3)) if self.kind == "vector" else y

def build(**kwargs):
    return Net(**kwargs)

def number():
    return 3

constant = 5
"""

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    (tmp_path / "net.py").write_text(NET)

    def card(text: str = "", *, weights: str = "random", factory: str = "build", file: str = "net.py") -> Path:
        head = f'factory = "{factory}"\nweights = "{weights}"\n' + (f'file = "{file}"\n' if file else "")
        path = tmp_path / "card.toml"
        path.write_text(head + "input_px = 16\n" + text)
        return path

    return card


def load(path: Path) -> Any:
    return create("backbone", f"module(card={str(path)!r})").load(CPU)


def embed(embedder: Any, tiles: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return embedder(tiles)


def test_the_card_file_becomes_the_card(write: Write) -> None:
    text = 'name = "mine"\nmean = [0.5, 0.6, 0.7]\nstd = [0.1, 0.2, 0.3]\ninterpolation = "bicubic"\n'
    text += 'native_mpp = 0.25\nlicence = "MIT"\nfp32_only = true\nseed = 3\nkwargs = {width = 12}\n'
    card = load(write(text)).card
    assert (card.name, card.dim, card.pooling, card.input_px) == ("mine", 12, "avg", 16)
    assert (card.mean, card.std, card.interpolation) == ((0.5, 0.6, 0.7), (0.1, 0.2, 0.3), "bicubic")
    assert (card.native_mpp, card.licence, card.fp32_only) == (0.25, "MIT", True)
    assert card.weights == "random(seed=3)"
    assert load(write()).card.name == "card"


def test_weights_from_a_file_beside_the_card(write: Write, tmp_path: Path, tiles: torch.Tensor) -> None:
    random = load(write("seed = 9"))
    save_file({k: v.contiguous() for k, v in random.module.state_dict().items()}, str(tmp_path / "w.safetensors"))
    file = load(write(weights="w.safetensors"))
    assert file.card.weights == "file:w.safetensors"
    assert file.card.weights_digest == random.card.weights_digest
    assert torch.equal(embed(file, tiles), embed(random, tiles))
    assert not torch.allclose(embed(file, tiles), embed(load(write()), tiles), atol=1e-3)


def test_a_part_takes_weights_of_the_whole_or_of_itself(write: Write, tmp_path: Path, tiles: torch.Tensor) -> None:
    whole = load(write("seed = 9")).module.state_dict()
    part = {k.removeprefix("features."): v for k, v in whole.items() if k.startswith("features.")}
    results = []
    for state in (whole, part):
        torch.save(dict(state), tmp_path / "w.pth")
        results.append(load(write('submodule = "features"', weights="w.pth")))
    assert torch.equal(embed(results[0], tiles), embed(results[1], tiles))
    torch.save({**whole, "stranger.weight": torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"unexpected: stranger\.weight"):
        load(write('submodule = "features"', weights="w.pth"))


def test_poolings(write: Write, tiles: torch.Tensor) -> None:
    average = embed(load(write()), tiles)
    vector = embed(load(write('pooling = "none"\nkwargs = {kind = "vector"}')), tiles)
    tokens = embed(load(write('prefix_tokens = 0\nkwargs = {kind = "tokens"}')), tiles)
    torch.testing.assert_close(average, vector)
    torch.testing.assert_close(average, tokens)
    first = load(write('pooling = "cls"\nkwargs = {kind = "tokens"}'))
    both = load(write('pooling = "cls+mean"\nkwargs = {kind = "tokens"}'))
    assert both.card.dim == 2 * first.card.dim
    assert torch.equal(embed(both, tiles)[:, : first.card.dim], embed(first, tiles))


def test_the_digest_sees_arguments_of_the_factory(write: Write) -> None:
    a, b = (load(write(f'kwargs = {{kind = "{k}"}}\nprefix_tokens = 0')).card for k in ("map", "tokens"))
    assert a.weights_digest != b.weights_digest


def test_own_weights_are_the_factorys(write: Write, tiles: torch.Tensor) -> None:
    embedder = load(write(weights="own"))
    assert embedder.card.weights == "own(build)"
    assert torch.equal(embed(embedder, tiles), embed(load(write(weights="own")), tiles))


def test_a_factory_of_an_installed_package(write: Write, tiles: torch.Tensor) -> None:
    path = write('submodule = "layer1"\nmean = [0, 0, 0]', factory="torchvision.models:resnet18", file="")
    with pytest.raises(SpecError, match="fails on a 16 px input"):  # layer1 wants 64 channels
        load(path)
    embedder = load(write('submodule = "conv1"', factory="torchvision.models:resnet18", file=""))
    assert embed(embedder, tiles).shape == (5, 64)


MISTAKES = [
    ({"factory": "nobody"}, "", SpecError, "has no 'nobody'"),
    ({"factory": "pkg:build"}, "", SpecError, "factory is 'pkg:build' and file is 'net.py'"),
    ({"file": ""}, "", SpecError, "factory is 'build' and file is ''"),
    ({"factory": "no_such_package.x:y", "file": ""}, "", MissingDependencyError, "cannot import no_such_package"),
    ({"file": "gone.py"}, "", SpecError, r"gone\.py' does not exist"),
    ({"factory": "constant"}, "", SpecError, "'constant' is not callable"),
    ({"factory": "number"}, "", SpecError, "gives a int, not a torch"),
    ({}, "kwargs = {wide = 3}", SpecError, "unexpected keyword argument 'wide'"),
    ({}, 'submodule = "body"', SpecError, "no submodule 'body'"),
    ({}, 'pooling = "cls"', SpecError, r"pooling='cls' does not fit a network output of shape \(1, 8, 4, 4\)"),
    ({}, 'kwargs = {kind = "vector"}', SpecError, r"pooling='avg' does not fit .* \(1, 8\)"),
    ({}, 'kwargs = {kind = "tuple"}', SpecError, "gives a tuple, not a tensor"),
    ({}, 'pooling = "cls"\nprefix_tokens = 0\nkwargs = {kind = "tokens"}', SpecError, "no class token"),
    ({}, "std = [0.1, 0.0, 0.1]", SpecError, "std is"),
    ({"weights": "gone.pth"}, "", WeightsError, r"gone\.pth' does not exist"),
    ({}, "widht = 3", UsageError, "no key 'widht'"),
    ({}, 'pooling = "max"', SpecError, "pooling='max'"),
    ({}, "mean = [0.5]", SpecError, "mean="),
    ({}, "mean = ", UsageError, "is not TOML"),
]


@pytest.mark.parametrize(("given", "text", "kind", "said"), MISTAKES, ids=[m[3][:25] for m in MISTAKES])
def test_each_mistake_has_its_answer(write: Write, given: dict[str, str], text: str, kind: type, said: str) -> None:
    with pytest.raises(kind, match=said) as caught:
        load(write(text, **given))
    assert caught.value.hint


def test_missing_card_missing_keys_and_a_broken_python_file(write: Write, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        load(tmp_path / "gone.toml")
    (tmp_path / "empty.toml").write_text("")
    with pytest.raises(UsageError, match="needs 'factory'"):
        load(tmp_path / "empty.toml")
    (tmp_path / "broken.py").write_text("x = (\n")
    before = set(sys.modules)
    with pytest.raises(SpecError, match=r"broken\.py line 1"):
        load(write(file="broken.py"))
    assert set(sys.modules) == before
    with pytest.raises(UnknownNameError):
        create("backbone", "modul(card='x')")
