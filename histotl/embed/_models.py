"""Loaded backbones, ready to be called."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

import torch

from histotl.backbones._half import hold_half
from histotl.backbones._network import NetworkEmbedder
from histotl.backbones._preprocess import channel_affine
from histotl.backbones._recorded import recorded
from histotl.backbones._runtime import accelerate
from histotl.backbones.base import Backbone, Embedder
from histotl.core.errors import HistotlError, SetupError, StoreError, UsageError
from histotl.core.registry import canonical, create
from histotl.core.values import BackboneCard, FeatureIdentity, TileSpec
from histotl.embed.config import EmbedConfig
from histotl.embed.device import FORMATS, choose_precision, fixed_batch
from histotl.image.stain.base import FusedTransform
from histotl.store.embeddings import open_embeddings
from histotl.store.extras import Extra, differences

log = logging.getLogger(__name__)

_TRIAL_TILES, _SLOW_S = (1, 1, 8, 8), (0.2, 0.04)
"""Tiles of the batches that tell how fast a network is, and the seconds a tile of the first and the second of them that
tell enough: a slow network is not asked again. The first batch of a size also pays for starting up."""

_FAST_S = 0.015
"""Seconds a tile below which a network's layers are so short that Python between them tells."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """A backbone on its device, with the number formats of this run.

    Args:
        spec: Canonical spec string.
        embedder: The loaded network.
        device: Where it is.
        identity: What its features are.
    """

    spec: str
    embedder: Embedder
    device: torch.device
    identity: FeatureIdentity

    @property
    def card(self) -> BackboneCard:
        """What it is."""
        return self.embedder.card

    def __call__(self, tiles: torch.Tensor, stain: FusedTransform | None = None) -> torch.Tensor:
        """Embed uint8 (b, h, w, 3) on the device into float32 (b, dim), still on the device.

        Args:
            tiles: The batch.
            stain: Normalises them on the way; it says that it is fused for them.

        Raises:
            SetupError: Not even one tile fits into the device's memory.
            HistotlError: The backbone does not do what its card says.
        """
        return self._embedded(tiles, partial(self._in_parts, stain))

    def whole(self, tiles: torch.Tensor) -> torch.Tensor:
        """The same, but a batch that does not fit is an error instead of being halved.

        Raises:
            torch.OutOfMemoryError: It does not fit into the device's memory.
            HistotlError: The backbone does not do what its card says.
        """
        return self._embedded(tiles, self.embedder)

    def _embedded(self, tiles: torch.Tensor, forward: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        half = FORMATS[self.identity.compute.partition("+")[0]]
        with torch.inference_mode(), torch.autocast(self.device.type, dtype=half, enabled=half is not torch.float32):
            features = forward(tiles)
        if features.shape != (len(tiles), self.card.dim):
            fact = f"{self.spec} gave {tuple(features.shape)} for {len(tiles)} tiles; its card says dim={self.card.dim}"
            raise HistotlError(fact, hint="correct the backbone's card or its pooling")
        return features.float()

    def _in_parts(self, stain: FusedTransform | None, tiles: torch.Tensor) -> torch.Tensor:
        try:
            return self.embedder(tiles) if stain is None else self._restained(tiles, stain)
        except torch.OutOfMemoryError as error:
            if len(tiles) == 1:
                cure = "use a smaller backbone or smaller tiles, or --device cpu"
                raise SetupError(
                    f"{self.spec}: one tile does not fit into the memory of {self.device}", hint=cure
                ) from error
        # Retried outside the except block, whose traceback keeps the tensors of the failed attempt alive.
        middle = len(tiles) // 2
        log.warning("%s: %d tiles do not fit into the memory of %s; trying halves", self.spec, len(tiles), self.device)
        torch.cuda.empty_cache()
        return torch.cat([self._in_parts(stain, tiles[:middle]), self._in_parts(stain, tiles[middle:])])

    def _restained(self, tiles: torch.Tensor, stain: FusedTransform) -> torch.Tensor:
        """Stain and the network's own normalisation in one kernel, unless tiles are resized between them."""
        network, card = self.embedder, self.card
        if not isinstance(network, NetworkEmbedder) or tiles.shape[1:3] != (card.input_px, card.input_px):
            return self.embedder(stain(tiles))
        scale, shift = channel_affine(card.mean, card.std)
        images = stain.prepared(tiles, scale=scale, shift=shift, dtype=network.input_dtype(tiles.device))
        return network.of_input(images.permute(0, 3, 1, 2))


def load_models(config: EmbedConfig, tiles: TileSpec | None, *, stain: str, device: torch.device) -> tuple[Model, ...]:
    """Load every backbone once, before any slide is opened; :func:`made_ready` is what a batch needs beside that.

    Args:
        config: Names them, and the number formats.
        tiles: The tile spec, None for patch sets.
        stain: The stain normaliser, as identities say it.
        device: Where they go.

    Raises:
        UnknownNameError: No backbone is called so.
        WeightsError: Weights cannot be had.
        UsageError: Two backbones would write the same file, or the runtime is none for this device.
    """
    if config.runtime != "torch" and device.type != "cpu":
        fact = f"--runtime {config.runtime} runs on a CPU, not on {device}"
        raise UsageError(fact, hint="use --runtime torch, or --device cpu")
    backbones = [cast("Backbone", create("backbone", spec)) for spec in config.backbone]
    embedders = [backbone.load(device) for backbone in backbones]
    models: list[Model] = []
    for backbone, embedder in zip(backbones, embedders, strict=True):
        card = embedder.card
        compute = choose_precision(config.precision, card, device)
        # A compiler keeps to torch's arithmetic; other libraries have their own, so their features are others.
        own = compute if config.runtime == "torch" else f"{compute}+{config.runtime}"
        identity = FeatureIdentity.of(card, tiles, stain=stain, compute=own, dtype=config.dtype)
        models.append(Model(spec=canonical(backbone), embedder=embedder, device=device, identity=identity))
        if config.precision not in ("auto", compute):
            log.warning("%s runs in %s: its card says that %s is wrong for it", card.name, compute, config.precision)
    _refuse_equal_names(models)
    return tuple(models)


def made_ready(models: Sequence[Model], config: EmbedConfig) -> tuple[Model, ...]:
    """Loaded models with their weights in the right format, in the runtime that was asked for.

    That takes seconds to minutes and is for runs that have something to embed.

    Raises:
        UsageError: The runtime cannot run such a backbone.
        SetupError: It cannot take this network, or gives other features than torch.
        MissingDependencyError: Its library is not installed.
    """
    return tuple(replace(model, embedder=_prepared(model, config)) for model in models)


def _seconds_a_tile(embedder: Embedder) -> float:
    """About how long a network takes for a tile of a batch. The first call warms up; slow ones are not asked twice."""
    side, seconds = embedder.card.input_px, 0.0
    for turn, count in enumerate(_TRIAL_TILES):
        tiles = torch.zeros(count, side, side, 3, dtype=torch.uint8)
        began = time.perf_counter()
        with torch.inference_mode():
            embedder(tiles)
        seconds = (time.perf_counter() - began) / count
        if turn < len(_SLOW_S) and seconds > _SLOW_S[turn]:
            break
    return seconds


def _prepared(model: Model, config: EmbedConfig) -> Embedder:
    embedder, device, compute = model.embedder, model.device, model.identity.compute.partition("+")[0]
    half = None if compute == "fp32" else FORMATS[compute]
    if half is not None:
        embedder = hold_half(embedder, half)
    prepared = accelerate(
        embedder,
        "compile" if config.compile else config.runtime,
        batch_size=config.batch_size or fixed_batch(device),
        threads=torch.get_num_threads(),
        device=device,
        half=half,
    )
    is_plain = half is None and device.type == "cpu"
    if is_plain and isinstance(prepared, NetworkEmbedder) and _seconds_a_tile(prepared) < _FAST_S:
        return recorded(prepared)
    return prepared


def warn_of_other_identity(path: Path, model: Model, extras: Sequence[Extra] = (), *, tissue: str = "") -> None:
    """Say that a file which is there has other features, or extras, than a model would put into its folder.

    Args:
        path: The file.
        model: Whose features go there.
        extras: What they have beside them.
        tissue: What finds the tissue, as identities say it; empty where nothing does.
    """
    try:
        found = open_embeddings(path)
    except StoreError:
        return  # damaged: said when its turn comes
    changes = ["it is not of histotl"] if found.identity is None else found.identity.differences(model.identity)
    known = None if found.provenance is None else found.provenance.specs.get("tissue")
    if tissue and known not in (None, tissue):
        changes.append(f"tissue: {known!r} != {tissue!r}")
    # What is not there yet is not lost.
    changes += differences({extra.name: extra for extra in extras if extra.name in found.extras}, found.extras)
    if changes:
        fact = "%s has features made with other options (%s); those of the same slides are replaced. "
        log.warning(fact + "Give another output folder to keep both", path.parent, "; ".join(changes))


def _refuse_equal_names(models: Sequence[Model]) -> None:
    seen: dict[str, str] = {}
    for model in models:
        other = seen.setdefault(model.card.slug, model.spec)
        if other is not model.spec:
            fact = f"backbones {other} and {model.spec} both write to features_{model.card.slug}"
            cure = "embed them into two output folders, or name one: name='…' in a timm spec or in a card file"
            raise UsageError(fact, hint=cure)
