"""A pipeline of albumentations, made a pure function of tile and seed. It runs on the CPU, tile by tile.

Either as text, each transform written as a spec:

    albumentations(pipeline='HorizontalFlip + GaussianBlur(blur_limit=(3, 5), p=0.5)')

or as a file that albumentations saved, JSON or YAML:

    import albumentations as A
    A.save(A.Compose([A.HorizontalFlip(), A.RandomBrightnessContrast()]), "pipeline.json")

and then ``albumentations(pipeline='pipeline.json')``. The file's digest becomes part of the spec, so that views made
from one file are never taken for those of another of that name.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from histotl.core.errors import MissingDependencyError, SpecError, UsageError
from histotl.core.registry import register
from histotl.core.spec import Spec, parse_spec, split_spec

_FILES = (".json", ".yaml", ".yml")


@register("augment", "albumentations")
@dataclass(frozen=True, kw_only=True)
class Albumentations:
    """A pipeline of albumentations that keeps the tile's size.

    Args:
        pipeline: Transforms as specs joined by '+', or a JSON or YAML file written by ``albumentations.save``.
        digest: Of the file; found when left empty, and compared when given.
    """

    pipeline: str
    digest: str = ""
    _saved: dict[str, Any] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        saved = _from_text(self.pipeline)
        if self.pipeline.lower().endswith(_FILES):
            text = _read(Path(self.pipeline))
            found = hashlib.sha256(text.encode()).hexdigest()[:16]
            if self.digest not in ("", found):
                fact = f"pipeline file {self.pipeline!r} has the digest {found}, {self.digest} was used before"
                raise UsageError(fact, hint="bring the file of that time back, or leave the digest out")
            object.__setattr__(self, "digest", found)
            saved = _parse(text, self.pipeline)
        elif self.digest:
            raise UsageError(f"digest {self.digest!r} is of no file", hint="leave it out: the pipeline is all text")
        object.__setattr__(self, "_saved", saved)
        _build(saved, self.pipeline)  # what does not fit is refused here, before any tile is read

    def __call__(self, tiles: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        """Run the pipeline on every tile of uint8 RGB (b, h, w, 3), seeded by seeds, int64 (b,).

        Raises:
            SpecError: The pipeline changes the size or type of a tile.
        """
        # Built for every batch: a pipeline has random state, which must not be shared between threads.
        run = _build(self._saved, self.pipeline)
        out = torch.empty_like(tiles)
        for i, (tile, seed) in enumerate(zip(tiles.cpu().numpy(), seeds.tolist(), strict=True)):
            run.set_random_seed(seed & 0xFFFFFFFF)
            view = run(image=np.ascontiguousarray(tile))["image"]
            if view.shape != tile.shape or view.dtype != np.uint8:
                fact = f"{self.pipeline} turns a tile {tile.shape} uint8 into {view.shape} {view.dtype}"
                raise SpecError(fact, hint="take resizing, normalising and tensor conversion out of the pipeline")
            out[i] = torch.from_numpy(np.ascontiguousarray(view))
        return out


def _from_text(pipeline: str) -> dict[str, Any]:
    """Transforms written as specs, in the form in which albumentations saves them."""
    if pipeline.lower().endswith(_FILES):
        return {}
    transforms = [_transform(parse_spec(part), pipeline) for part in split_spec(pipeline)]
    saved: dict[str, Any] = _library().Compose(transforms).to_dict()
    return saved


def _transform(spec: Spec, pipeline: str) -> Any:
    library = _library()
    kind = getattr(library, spec.name, None)
    if not (inspect.isclass(kind) and issubclass(kind, library.BasicTransform)):
        cure = "write transforms such as HorizontalFlip(p=0.5), or the name of a .json or .yaml file"
        raise UsageError(f"albumentations has no transform {spec.name!r} (in {pipeline!r})", hint=cure)
    known = list(inspect.signature(kind).parameters)
    unknown = sorted(set(spec.args) - set(known))
    if unknown:
        cure = f"it takes: {', '.join(known)}"
        raise UsageError(f"{spec.name} of albumentations has no argument {unknown[0]!r}", hint=cure)
    try:
        return kind(**spec.args)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{spec} of albumentations: {error}", hint="give values that it takes") from error


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        fact = f"pipeline file {str(path)!r} cannot be read: {error.strerror}"
        raise UsageError(fact, hint="check pipeline='…'") from error
    except UnicodeDecodeError as error:
        fact = f"pipeline file {str(path)!r} is not text: {error.reason}"
        raise UsageError(fact, hint="write it with albumentations.save") from error


def _parse(text: str, name: str) -> dict[str, Any]:
    """What a saved file says; of YAML only plain values."""
    if name.lower().endswith(".json"):
        kind, load, wrong = "JSON", json.loads, ValueError
    else:
        import yaml  # albumentations brings it, for this very purpose

        kind, load, wrong = "YAML", yaml.safe_load, yaml.YAMLError
    try:
        saved: Any = load(text)
    except wrong as error:
        fact = f"pipeline file {name!r} is not {kind}: {error}"
        raise UsageError(fact, hint="write it with albumentations.save") from error
    if not isinstance(saved, dict):
        fact = f"pipeline file {name!r} is no pipeline but a {type(saved).__name__}"
        raise UsageError(fact, hint="write it with albumentations.save")
    return saved


def _build(saved: dict[str, Any], name: str) -> Any:
    try:
        run = _library().from_dict(saved)
    except (KeyError, TypeError, ValueError, AttributeError, NotImplementedError) as error:
        fact = f"pipeline {name!r} is no pipeline of this albumentations: {error!r}"
        raise UsageError(fact, hint="write it with albumentations.save of the installed version") from error
    if not hasattr(run, "set_random_seed"):
        fact = f"pipeline {name!r} holds a {type(run).__name__}, not a Compose"
        raise UsageError(fact, hint="wrap it in albumentations.Compose")
    return run


@cache
def _library() -> Any:
    # The library asks its server for news on import unless this is set before.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    try:
        import albumentations
    except ImportError as error:
        cure = "pip install 'albumentations>=2.0.8,<3'"
        raise MissingDependencyError(f"albumentations cannot be imported: {error}", hint=cure) from error
    return albumentations
