"""Every model of timm by its name, with weights from the hub, from a file, or random by asking.

    timm/resnet50.a1_in1k
    timm/hf-hub:organisation/name
    timm/mobilenetv2_035(weights='mobilenetv2.pth', model_args={'pad_type': 'same', 'bn_eps': 1e-3})
    timm/vit_small_patch16_224(pooling='cls+mean')
    timm/resnet18(weights='random', seed=1)

Input size, mean, standard deviation and interpolation come from the model's own configuration; those given here replace
them, for local weights that were trained another way, and go to the card. Models run without their classifier.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch

from histotl.backbones._hub import explain, fetch
from histotl.backbones._network import Forward, NetworkEmbedder, finish, seeded
from histotl.backbones._pooling import pool
from histotl.backbones._weights import load_strict, read_state
from histotl.core.errors import SpecError, UnknownNameError, WeightsError
from histotl.core.registry import register
from histotl.core.values import BackboneCard

Triple = tuple[float, float, float]

_HUB = "hf-hub:"
# Arguments that would bypass the rules here: other weights, another head, another kind of output.
_RESERVED = frozenset(
    (
        *("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "model_name"),
        *("num_classes", "in_chans", "global_pool", "features_only", "out_indices"),
        *("scriptable", "exportable", "no_jit"),
    )
)
_HUB_FILES = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors", "open_clip_pytorch_model.bin")


@register("backbone", "timm", family=True)
@dataclass(frozen=True, kw_only=True)
class Timm:
    """Any timm model: timm/<name>, weights from the hub, a local file, or random by asking.

    Args:
        model: timm's name, with the tag of its weights (``resnet50.a1_in1k``), or ``hf-hub:organisation/name``.
        weights: ``pretrained``, a path to a ``.safetensors``, ``.pth`` or ``.pt`` file, or ``random``.
        pooling: ``model``: the model's own pooling and head layers; ``avg``: mean of the last map or of the patch
            tokens; ``cls``: the class token; ``cls+mean``: class token and mean of the patch tokens.
        seed: Of ``random`` weights.
        model_args: Further arguments of ``timm.create_model``, such as ``{'img_size': 448}``.
        drop: Paths of submodules to leave out: each is replaced by the identity, and its weights are not loaded.
        input_px: Side of the input, replacing the model's own.
        mean: Mean of the input in [0, 1], replacing the model's own.
        std: Standard deviation, likewise.
        interpolation: Of the resize, likewise.
        name: On the card, and so of the output folder; tells variants of one model apart. ``timm/<model>`` if empty.
    """

    model: str
    weights: str = "pretrained"
    pooling: Literal["model", "avg", "cls", "cls+mean"] = "model"
    seed: int = 0
    model_args: Mapping[str, object] = field(default_factory=dict)
    drop: tuple[str, ...] = ()
    input_px: int | None = None
    mean: Triple | None = None
    std: Triple | None = None
    interpolation: Literal["bilinear", "bicubic"] | None = None
    name: str = ""

    def __post_init__(self) -> None:
        reserved = sorted(_RESERVED.intersection(self.model_args))
        if reserved:
            cure = "use this backbone's own arguments: weights, pooling, drop, input_px"
            raise SpecError(f"timm/{self.model}: model_args may not set {', '.join(reserved)}", hint=cure)
        if self.std is not None and not min(self.std) > 0:
            raise SpecError(f"timm/{self.model}: std is {self.std}", hint="give three numbers above 0")
        if self.input_px is not None and self.input_px < 1:
            raise SpecError(f"timm/{self.model}: input_px is {self.input_px}", hint="give a side such as 224")

    @staticmethod
    def models(pattern: str) -> list[str]:
        """Names that match a glob, with and without the tags of their weights; for `histotl list backbone`."""
        import timm

        return sorted({*timm.list_models(pattern), *timm.list_pretrained(pattern)})

    def load(self, device: torch.device) -> NetworkEmbedder:
        """Build the model with its weights.

        Raises:
            UnknownNameError: timm has no such model.
            WeightsError: The weights cannot be had, or do not fit.
            SpecError: An argument does not fit the model.
        """
        with seeded(self.seed):
            net, source = self._build()
        card = self._card(net.pretrained_cfg, source)
        # The digest covers them because paddings and epsilons change features but stand in no state dict.
        arguments = {"model_args": dict(self.model_args), "drop": list(self.drop)}
        return finish(net, self._forward(net), card, device, arguments=arguments)

    def _build(self) -> tuple[Any, str]:
        if not self.model.startswith(_HUB):
            _check_name(self.model)
        if self.weights == "pretrained":
            net, source = self._pretrained()
            self._cut(net)
            return net, source
        name = _hub_folder(self.model)[0] if self.model.startswith(_HUB) else self.model
        net = self._create(name, num_classes=0)
        self._cut(net)
        if self.weights == "random":
            return net, f"random(seed={self.seed})"
        path = Path(self.weights).expanduser()
        dropped = tuple(f"{name}." for name in self.drop)
        state = {key: tensor for key, tensor in read_state(path).items() if not key.startswith(dropped)}
        load_strict(net, state, source=repr(path.name), spare=_classifiers(net.pretrained_cfg))
        return net, f"file:{path.name}"

    def _pretrained(self) -> tuple[Any, str]:
        """Build with hub weights, loaded strictly with the classifier they came with, which is then taken off."""
        from timm.models import get_pretrained_cfg

        overlay: dict[str, object] = {}
        if self.model.startswith(_HUB):
            name, source = _hub_folder(self.model)
            overlay = {"file": str(fetch(source, _HUB_FILES)), "source": "", "custom_load": False}
        else:
            name, config = self.model, get_pretrained_cfg(self.model)
            source = str((config.hf_hub_id or config.url or "") if config is not None else "")
            if config is None or not source:
                cure = "give weights='path/to/file', or weights='random' for a control"
                raise WeightsError(f"timm has no pretrained weights for {self.model!r}", hint=cure)
            if config.hf_hub_id:
                own = config.hf_hub_filename
                names = (str(Path(own).with_suffix(".safetensors")), own) if own else _HUB_FILES
                overlay = {"file": str(fetch(source, names)), "custom_load": False}
        try:
            net = self._create(name, pretrained=True, pretrained_cfg_overlay=overlay)
        except RuntimeError as error:
            fact = f"the weights of {source} do not fit {self.model!r} as asked for: {_first_line(error)}"
            cure = "leave model_args away, or give weights='path/to/file' that fit them"
            raise WeightsError(fact, hint=cure) from error
        except OSError as error:
            raise explain(source, error) from error
        net.reset_classifier(0)
        return net, f"hub:{source}"

    def _create(self, name: str, **more: Any) -> Any:
        import timm

        arguments: dict[str, Any] = {**more, **self.model_args}
        try:
            return timm.create_model(name, **arguments)
        except (TypeError, AssertionError, ValueError) as error:
            fact = f"timm/{self.model}: model_args={dict(self.model_args)!r} do not fit: {_first_line(error)}"
            raise SpecError(fact, hint="give arguments that this timm model takes, or none") from error

    def _cut(self, net: torch.nn.Module) -> None:
        for path in self.drop:
            parent, _, child = path.rpartition(".")
            try:
                net.get_submodule(path)
                net.get_submodule(parent).register_module(child, torch.nn.Identity())
            except AttributeError as error:
                near = difflib.get_close_matches(path, [n for n, _ in net.named_modules() if n], n=3)
                cure = f"did you mean {' or '.join(near)}?" if near else "give the path of a submodule, as blocks.4.1"
                raise SpecError(f"timm/{self.model} has no submodule {path!r} to drop", hint=cure) from error

    def _card(self, config: Mapping[str, Any], source: str) -> BackboneCard:
        # A few models name a resampler that torch lacks (lanczos) or 'random': bicubic is nearest to the former.
        own = "bilinear" if config.get("interpolation") == "bilinear" else "bicubic"
        size = self.model_args.get("img_size", config["input_size"][-1])
        return BackboneCard(
            name=self.name or f"timm/{self.model}",
            dim=0,
            pooling=self.pooling,
            input_px=self.input_px or cast("int", size if isinstance(size, int) else config["input_size"][-1]),
            mean=self.mean or cast("Triple", tuple(map(float, config["mean"]))),
            std=self.std or cast("Triple", tuple(map(float, config["std"]))),
            interpolation=self.interpolation or cast("Literal['bilinear', 'bicubic']", own),
            weights=source,
            licence="none" if self.weights == "random" else self._licence(config),
        )

    def _licence(self, config: Mapping[str, Any]) -> str:
        # The licence in timm's configuration is that of timm's own weights, not of a file that the user brings.
        return str(config.get("license") or "unknown") if self.weights == "pretrained" else "unknown"

    def _forward(self, net: Any) -> Forward:
        if self.pooling == "model":
            return cast("Callable[[torch.Tensor], torch.Tensor]", partial(_own_head, net))
        prefix = int(getattr(net, "num_prefix_tokens", 0) or 0)
        # A class token is not the first prefix token where a model has registers only.
        if self.pooling != "avg" and (prefix < 1 or getattr(net, "cls_token", None) is None):
            cure = "use pooling='avg' or pooling='model'"
            raise SpecError(f"timm/{self.model} has no class token for pooling={self.pooling!r}", hint=cure)
        last = str(getattr(net, "output_fmt", "NCHW")) == "NHWC"
        return partial(_features, net, how=self.pooling, prefix=prefix, channels_last=last)


def _own_head(net: Any, images: torch.Tensor) -> torch.Tensor:
    output: torch.Tensor = net(images)
    if output.ndim != 2:
        fact = f"the model's own pooling gives shape {tuple(output.shape)}, not one vector a tile"
        raise SpecError(fact, hint="use pooling='avg', 'cls' or 'cls+mean'")
    return output


def _features(net: Any, images: torch.Tensor, *, how: str, prefix: int, channels_last: bool) -> torch.Tensor:
    return pool(net.forward_features(images), how, prefix=prefix, channels_last=channels_last)


def _check_name(model: str) -> None:
    import timm
    from timm.models import get_pretrained_cfg

    name, _, tag = model.partition(".")
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        cure = f"did you mean {' or '.join('timm/' + n for n in near)}?" if near else "see `histotl list backbone`"
        raise UnknownNameError(f"timm has no model called {name!r}", hint=cure)
    try:
        get_pretrained_cfg(model)
    except RuntimeError as error:
        tags = [n.partition(".")[2] for n in timm.list_pretrained(f"{name}.*")]
        cure = f"it has: {', '.join(tags)}" if tags else "it has none; give weights='path/to/file'"
        raise WeightsError(f"timm's {name!r} has no weights tagged {tag!r}", hint=cure) from error


def _hub_folder(model: str) -> tuple[str, str]:
    """Fetch a hub model's configuration; timm's name of that local folder, and the repository."""
    repo = model.removeprefix(_HUB)
    return f"local-dir:{fetch(repo, ('config.json',)).parent}", repo


def _classifiers(config: Mapping[str, Any]) -> tuple[str, ...]:
    names = config.get("classifier") or ()
    return (names,) if isinstance(names, str) else tuple(names)


def _first_line(error: Exception) -> str:
    return (str(error) or repr(error)).strip().splitlines()[0]
