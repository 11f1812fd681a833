"""A trained model that answers for sampled tiles, as `predict` answers for whole slides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch

from histotl.core.errors import IdentityError, UsageError
from histotl.core.registry import create, identified
from histotl.core.spec import split_version
from histotl.embed._models import Model as Backbone
from histotl.evaluate.metrics import Ints
from histotl.image.stain.base import StainNormalizer
from histotl.learn.bags import Packed
from histotl.learn.model import Model, load_model


@dataclass(frozen=True, kw_only=True)
class Judge:
    """The model with the backbone and the stain normaliser that it was trained with.

    Args:
        model: The trained model.
        backbone: Index of its backbone among those of the run.
        stain: Its normaliser.
        stain_spec: Spec of it.
        half: Whether features went through half precision on disk.
    """

    model: Model
    backbone: int
    stain: StainNormalizer
    stain_spec: str
    half: bool

    def answers(self, features: torch.Tensor, coords_l0: torch.Tensor) -> dict[tuple[str, str], Ints]:
        """Classes for one slide: (task, ``slide``) -> (1,), and for models of tiles (task, ``tile``) -> (n,).

        Args:
            features: float32 (n, d) on the CPU.
            coords_l0: int64 (n, 2).
        """
        x = features.half().float() if self.half else features
        found = self.model.answer(Packed(x=x, offsets=torch.tensor([0, len(x)]), coords=coords_l0)).tasks
        classes: dict[tuple[str, str], Ints] = {}
        for task in self.model.tasks:
            if not task.is_classification:
                continue
            if self.model.level == "tile":
                classes[task.name, "tile"] = self.model.decide(task, found[task.name])
            classes[task.name, "slide"] = self.model.decide(task, found[task.name].mean(axis=0, keepdims=True))
        return classes


def load_judge(folder: str, backbones: Sequence[Backbone], device: torch.device) -> Judge:
    """Load a model and find its backbone among those of the run.

    Raises:
        StoreError: It is no model folder, or damaged.
        UsageError: It is told covariates.
        IdentityError: It was trained on features that none of the backbones makes; the nearest differences are named.
    """
    model = load_model(folder).to(device)
    if model.covariates.parts:
        names = ", ".join(covariate.column for covariate in model.covariates.covariates)
        cure = "give a model that was trained without --covariate, or leave out --model"
        raise UsageError(f"{folder} is told {names}, which the slides alone do not say", hint=cure)
    identity = model.identity
    if identity is None or model.kind != "slides":
        seen = "patches" if model.kind != "slides" else "features that do not say what they were made by"
        raise IdentityError(
            f"{folder} was trained on {seen}", hint="give a model trained on slides embedded by histotl"
        )
    # The stain and the format on disk are the model's own business: tiles are normalised and features rounded for it.
    made = [replace(one.identity, stain=identity.stain, dtype=identity.dtype) for one in backbones]
    if identity not in made:
        nearest = min((identity.differences(other) for other in made), key=len)
        fact = f"{folder} was trained on other features: {'; '.join(nearest)}"
        raise IdentityError(fact, hint="name its backbone with --backbone, and give the tile options of its training")
    stain = create("stain", split_version(identity.stain)[0])
    if changes := identity.differences(replace(identity, stain=identified(stain))):
        fact = f"{folder} was trained on tiles that an older release normalised: {'; '.join(changes)}"
        raise IdentityError(fact, hint="embed the slides again, and train on that")
    if not any(task.is_classification for task in model.tasks):
        raise IdentityError(f"{folder} predicts no classes that could flip", hint="leave out --model")
    return Judge(
        model=model,
        backbone=made.index(identity),
        stain=cast("StainNormalizer", stain),
        stain_spec=identity.stain,
        half=identity.dtype == "fp16",
    )
