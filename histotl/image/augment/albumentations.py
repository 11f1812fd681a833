"""A pipeline of albumentations that was saved to a file, made a pure function of tile and seed.

    import albumentations as A
    A.save(A.Compose([A.HorizontalFlip(), A.RandomBrightnessContrast()]), "pipeline.json")

and then ``albumentations(pipeline='pipeline.json')``. It runs on the CPU, tile by tile.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from histotl.core.errors import MissingDependencyError, SpecError, UsageError
from histotl.core.registry import register


@register("augment", "albumentations")
@dataclass(frozen=True, kw_only=True)
class Albumentations:
    """A saved albumentations pipeline that keeps the tile's size.

    Args:
        pipeline: JSON file written by ``albumentations.save``.
    """

    pipeline: Path

    def __call__(self, tiles: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        """Run the pipeline on every tile of uint8 RGB (b, h, w, 3), seeded by seeds, int64 (b,).

        Raises:
            UsageError: The file is missing or is no pipeline.
            SpecError: The pipeline changes the size or type of a tile.
        """
        # Loaded for every batch: a pipeline has random state, which must not be shared between threads.
        run = _load(self.pipeline)
        out = torch.empty_like(tiles)
        for i, (tile, seed) in enumerate(zip(tiles.cpu().numpy(), seeds.tolist(), strict=True)):
            run.set_random_seed(seed & 0xFFFFFFFF)
            view = run(image=np.ascontiguousarray(tile))["image"]
            if view.shape != tile.shape or view.dtype != np.uint8:
                fact = f"{self.pipeline} turns a tile {tile.shape} uint8 into {view.shape} {view.dtype}"
                raise SpecError(fact, hint="take resizing, normalising and tensor conversion out of the pipeline")
            out[i] = torch.from_numpy(np.ascontiguousarray(view))
        return out


def _load(path: Path) -> Any:
    # The library asks its server for news on import unless this is set before.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    try:
        import albumentations
    except ImportError as error:
        cure = "pip install 'albumentations>=2.0.8,<3'"
        raise MissingDependencyError(f"albumentations cannot be imported: {error}", hint=cure) from error
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        fact = f"pipeline file {str(path)!r} cannot be read: {error.strerror}"
        raise UsageError(fact, hint="check pipeline='…'") from error
    except ValueError as error:
        raise UsageError(
            f"pipeline file {str(path)!r} is not JSON", hint="write it with albumentations.save"
        ) from error
    try:
        run = albumentations.from_dict(saved)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        fact = f"pipeline file {str(path)!r} is no pipeline of this albumentations: {error!r}"
        raise UsageError(fact, hint="write it with albumentations.save of the installed version") from error
    if not hasattr(run, "set_random_seed"):
        fact = f"pipeline file {str(path)!r} holds a {type(run).__name__}, not a Compose"
        raise UsageError(fact, hint="wrap it in albumentations.Compose")
    return run
