"""Whole-slide histopathology transfer learning.

The public names below are loaded on first use, so ``import histotl`` costs nothing: neither torch nor timm nor pandas
is imported before something needs it.
"""

from __future__ import annotations

import importlib

__version__ = "0.1.0"

_EXPORTS = {
    "BackboneCard": "histotl.core.values",
    "CrossConfig": "histotl.learn.cross_config",
    "EmbedConfig": "histotl.embed.config",
    "EvaluateConfig": "histotl.evaluate.config",
    "ExplainConfig": "histotl.learn.explain_config",
    "FeatureIdentity": "histotl.core.values",
    "HistotlError": "histotl.core.errors",
    "KNNClassifier": "histotl.learn.estimators",
    "LinearProbe": "histotl.learn.estimators",
    "MILClassifier": "histotl.learn.estimators",
    "MultiTaskEstimator": "histotl.learn.estimators",
    "PredictConfig": "histotl.learn.config",
    "RetrieveConfig": "histotl.learn.retrieve_config",
    "StainConfig": "histotl.evaluate.stain.config",
    "Task": "histotl.learn.task",
    "TileConfig": "histotl.embed.config",
    "TileSpec": "histotl.core.values",
    "TrainConfig": "histotl.learn.config",
    "available": "histotl.core.registry",
    "compare_stains": "histotl.evaluate.stain.stage",
    "create": "histotl.core.registry",
    "cross_validate": "histotl.learn.cross_validate",
    "embed_patches": "histotl.embed.patches",
    "embed_slides": "histotl.embed.engine",
    "evaluate_predictions": "histotl.evaluate.stage",
    "explain": "histotl.learn.explaining",
    "open_embeddings": "histotl.store.embeddings",
    "open_slide": "histotl.wsi.slide",
    "predict": "histotl.learn.predict",
    "register": "histotl.core.registry",
    "retrieve": "histotl.learn.retrieval",
    "tile_slides": "histotl.embed.tile",
    "train": "histotl.learn.train",
}

__all__ = sorted([*_EXPORTS, "__version__"])


def __getattr__(name: str) -> object:
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'histotl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
