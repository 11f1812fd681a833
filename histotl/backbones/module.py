"""Any torch network, described by a small card file.

    module(card='my_net.toml')

with, in ``my_net.toml``:

    factory = "torchvision.models:squeezenet1_1"   # or file = "my_net.py" and factory = "build"
    submodule = "features"                          # use this part of what the factory gives
    weights = "squeezenet.pth"                      # a file, "own" (the factory loads them) or "random"
    mean = [0.485, 0.456, 0.406]
    std = [0.229, 0.224, 0.225]
    pooling = "avg"

Paths are relative to the card file. Loading runs the factory's code, so use only card files that you would run.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from histotl.backbones._network import NetworkEmbedder, finish, seeded
from histotl.backbones._pooling import Pooling, pool
from histotl.backbones._weights import load_strict, read_state
from histotl.core.config import from_mapping
from histotl.core.errors import MissingDependencyError, SpecError, UsageError
from histotl.core.registry import register
from histotl.core.values import BackboneCard

Triple = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class ModuleCard:
    """What a card file may say.

    Args:
        factory: ``package.module:name`` of a callable that gives a ``torch.nn.Module``; only ``name`` with ``file``.
        weights: A ``.safetensors``, ``.pth`` or ``.pt`` file; ``own`` when the factory loads them; ``random``.
        file: Python file that has the factory.
        kwargs: Arguments of the factory.
        submodule: Path of the part of the network to use.
        seed: Of ``random`` weights.
        name: Of the backbone; the card file's stem if empty.
        input_px: Side of the square input in pixels.
        mean: Mean of the input in [0, 1].
        std: Standard deviation of the same.
        interpolation: Of the resize to ``input_px``.
        pooling: ``avg`` of a map or of the patch tokens, ``cls``, ``cls+mean``, or ``none`` for a network that gives
            vectors.
        prefix_tokens: Tokens before the patch tokens, when the network gives tokens.
        native_mpp: Pixel size that it was trained at, µm.
        licence: Of the weights.
        fp32_only: Never run it in half precision.
    """

    factory: str
    weights: str
    file: str = ""
    kwargs: Mapping[str, object] = field(default_factory=dict)
    submodule: str = ""
    seed: int = 0
    name: str = ""
    input_px: int = 224
    mean: Triple = (0.485, 0.456, 0.406)
    std: Triple = (0.229, 0.224, 0.225)
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    pooling: Pooling = "avg"
    prefix_tokens: int = 1
    native_mpp: float | None = None
    licence: str = "unknown"
    fp32_only: bool = False

    def __post_init__(self) -> None:
        if self.input_px < 1:
            raise SpecError(f"input_px is {self.input_px}", hint="give a side such as 224")
        if not min(self.std) > 0:
            raise SpecError(f"std is {self.std}", hint="give three numbers above 0")


@register("backbone", "module")
@dataclass(frozen=True, kw_only=True)
class Module:
    """Any torch.nn.Module through a card file.

    Args:
        card: The TOML file.
    """

    card: Path

    def load(self, device: torch.device) -> NetworkEmbedder:
        """Build the network that the card file describes.

        Raises:
            UsageError: The card file is missing, unreadable or has unknown keys.
            SpecError: The factory, submodule or pooling does not fit.
            MissingDependencyError: The factory's module cannot be imported.
            WeightsError: The weights file is missing, damaged or does not fit.
        """
        wish = _read_card(self.card)
        with seeded(wish.seed):
            whole = _build(wish, self.card)
        net = _part(whole, wish, self.card)
        source = {"own": f"own({wish.factory})", "random": f"random(seed={wish.seed})"}.get(wish.weights)
        if source is None:
            path = self.card.parent / Path(wish.weights).expanduser()
            load_strict(net, _state_of_part(read_state(path), whole, wish.submodule), source=repr(path.name))
            source = f"file:{path.name}"
        card = BackboneCard(
            name=wish.name or self.card.stem,
            dim=0,
            pooling=wish.pooling,
            input_px=wish.input_px,
            mean=wish.mean,
            std=wish.std,
            interpolation=wish.interpolation,
            weights=source,
            native_mpp=wish.native_mpp,
            licence=wish.licence,
            fp32_only=wish.fp32_only,
        )
        arguments = {"factory": wish.factory, "submodule": wish.submodule, "kwargs": dict(wish.kwargs)}
        forward = partial(_features, net, how=wish.pooling, prefix=wish.prefix_tokens)
        return finish(net, forward, card, device, arguments=arguments)


def _features(net: torch.nn.Module, images: torch.Tensor, *, how: str, prefix: int) -> torch.Tensor:
    output = net(images)
    if not isinstance(output, torch.Tensor):
        fact = f"the network gives a {type(output).__name__}, not a tensor"
        raise SpecError(fact, hint="wrap it in a module whose forward returns the feature tensor")
    return pool(output, how, prefix=prefix)


def _read_card(path: Path) -> ModuleCard:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"card file {str(path)!r} cannot be read: {error.strerror}", hint="check card='…'") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"card file {str(path)!r} is not TOML: {error}", hint="correct that line") from error
    return from_mapping(ModuleCard, table, where=str(path))


def _build(wish: ModuleCard, card: Path) -> torch.nn.Module:
    factory = _factory(wish, card)
    if not callable(factory):
        raise SpecError(f"{card}: factory {wish.factory!r} is not callable", hint="name a function or a class")
    try:
        net = factory(**wish.kwargs)
    except TypeError as error:
        raise SpecError(f"{card}: {wish.factory} fails: {error}", hint="correct kwargs in the card file") from error
    if not isinstance(net, torch.nn.Module):
        fact = f"{card}: {wish.factory} gives a {type(net).__name__}, not a torch.nn.Module"
        raise SpecError(fact, hint="let the factory return the network")
    return net


def _part(whole: torch.nn.Module, wish: ModuleCard, card: Path) -> torch.nn.Module:
    try:
        return whole.get_submodule(wish.submodule)
    except AttributeError as error:
        names = ", ".join(name for name, _ in whole.named_children())
        raise SpecError(f"{card}: no submodule {wish.submodule!r}", hint=f"the top ones are: {names}") from error


def _state_of_part(state: dict[str, torch.Tensor], whole: torch.nn.Module, part: str) -> dict[str, torch.Tensor]:
    """Weights of the part, from a file of the part or of the whole network.

    In a file of the whole, entries of its other parts are left aside; entries that the whole does not know stay, and
    are refused by the strict loading that follows.
    """
    prefix = f"{part}."
    if not part or not any(key.startswith(prefix) for key in state):
        return state
    known = whole.state_dict().keys()
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix) or k not in known}


def _factory(wish: ModuleCard, card: Path) -> object:
    module_name, _, attribute = wish.factory.rpartition(":")
    if not attribute or bool(module_name) == bool(wish.file):
        cure = "write factory = 'package.module:name', or file = 'my_net.py' and factory = 'name'"
        raise SpecError(f"{card}: factory is {wish.factory!r} and file is {wish.file!r}", hint=cure)
    try:
        module = _import_file(card.parent / wish.file) if wish.file else importlib.import_module(module_name)
    except ImportError as error:
        cure = "install it, or put its folder on PYTHONPATH"
        raise MissingDependencyError(f"{card}: cannot import {wish.file or module_name}: {error}", hint=cure) from error
    if not hasattr(module, attribute):
        raise SpecError(f"{card}: {wish.file or module_name} has no {attribute!r}", hint="correct factory")
    found: object = getattr(module, attribute)
    return found


def _import_file(path: Path) -> object:
    # A name of its own for every file: two nets called model.py must not be taken for each other.
    name = f"histotl_module_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise SpecError(f"python file {str(path)!r} does not exist", hint="correct file in the card")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        del sys.modules[name]
        raise SpecError(f"{path} line {error.lineno}: {error.msg}", hint="correct that line") from error
    return module
