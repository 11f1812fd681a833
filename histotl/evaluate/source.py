"""Where predictions came from, as their files say it: for the methods paragraph and the pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from histotl.core.errors import HistotlError, StoreError
from histotl.evaluate.config import EvaluateConfig
from histotl.evaluate.evidence import Source
from histotl.learn.decisions import decision_from_dict
from histotl.learn.predictions import Predictions
from histotl.store.embeddings import Embeddings, open_embeddings
from histotl.store.layout import find_features

_ROW_NAMES = {"slide_id": "slide", "path": "patch"}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Features:
    """The features that predictions were made from.

    Args:
        files: Name of a slide (or patch set) -> file; empty when they were not found.
        problem: Why they were not found; empty when they were.
        example: One of the files, open.
    """

    files: Mapping[str, Path]
    problem: str = ""
    example: Embeddings | None = None


def find_source_features(predictions: Predictions, config: EvaluateConfig) -> Features:
    """Look for the features where the predictions (or ``--features``) say; not finding them is no error."""
    folder = config.features or str(predictions.meta.get("features") or "")
    wanted, backbone = predictions.meta.get("identity_digest"), predictions.meta.get("backbone")
    if not folder:
        return Features(files={}, problem="the predictions do not name them")
    try:
        paths = find_features(Path(folder), backbone=str(backbone) if backbone else None)
        example = open_embeddings(paths[0])
        digest = example.identity.digest if example.identity else None
        if wanted and digest != wanted:
            raise StoreError(f"features in {folder} are of another identity than the predictions")
    except HistotlError as error:
        return Features(files={}, problem=error.message)
    return Features(files={path.stem: path for path in paths}, example=example)


def source_of(predictions: Predictions, features: Features) -> Source:
    """What the predictions' description and the features file say; fields stay empty where they are silent."""
    meta = predictions.meta
    alpha = meta.get("alpha")
    source = Source(
        level=str(meta.get("level", "")),
        row_name=_ROW_NAMES.get(predictions.id_column, predictions.id_column),
        model=", digest ".join(str(meta[key]) for key in ("model", "model_digest") if meta.get(key)),
        aggregator=str(meta.get("aggregator") or ""),
        alpha=float(alpha) if isinstance(alpha, float | int) else None,
        decisions=_decisions(meta),
    )
    example = features.example
    if example is None or example.card is None or example.identity is None:
        return source
    return dataclasses.replace(
        source,
        backbone=dataclasses.asdict(example.card),
        tiles=example.identity.tiles,
        stain=example.identity.stain,
        compute=example.identity.compute,
    )


def _decisions(meta: Mapping[str, object]) -> tuple[str, ...]:
    """What validation decided, in words; nothing for predictions that do not say."""
    entries, found = meta.get("decisions"), []
    for task, entry in entries.items() if isinstance(entries, dict) else ():
        decision = decision_from_dict(entry)
        threshold, bound = decision.threshold, decision.conformal
        if threshold is not None:
            found.append(
                f"{task}: the second class is answered from a probability of {threshold.value:.3g} on, chosen on "
                f"validation by {threshold.rule}."
            )
        chosen = [label for label in decision.labels if label is not None]
        if chosen:
            values = ", ".join("0.5" if label is None else f"{label.value:.3g}" for label in decision.labels)
            found.append(
                f"{task}: the labels, in their order, are answered from probabilities of {values} on, chosen on "
                f"validation by {chosen[0].rule}."
            )
        if bound is not None:
            what = "interval" if bound.kind == "interval" else "set"
            source = f"from {bound.rows} validation cases of {bound.patients} patients"
            empty = "" if bound.bound is not None else "; these patients are too few, so it holds everything"
            found.append(f"{task}: {what} for {bound.coverage:.0%} coverage {source}{empty}.")
    return tuple(found)
