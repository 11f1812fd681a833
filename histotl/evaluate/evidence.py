"""All findings of one evaluation as one frozen value, and as plain JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from histotl.core.intervals import CONFIDENCE, Estimate
from histotl.core.provenance import Provenance
from histotl.embed.summary import SlideQuality
from histotl.evaluate.config import EvaluateConfig
from histotl.evaluate.gate import Gate, Selective
from histotl.evaluate.results import MEANINGS, ReliabilityBin, TaskResult

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where the predictions came from, as far as their files say; empty where they do not.

    Args:
        level: ``slide``, ``tile`` or a bag's column.
        row_name: What one row is called: ``slide``, ``patch`` or ``bag``.
        backbone: The card's fields.
        tiles: The tile spec's fields; ``{"patches": True}`` for patch sets.
        stain: Spec of the stain normaliser.
        compute: Number format of the forward pass.
        model: Path and digest of the model.
        aggregator: How the tiles of a slide became one vector.
        alpha: Share of in-distribution cases that the gate may flag; None without a gate.
        decisions: Sentences on how validation had answers decided: thresholds, and coverage of sets.
    """

    level: str = ""
    row_name: str = "row"
    backbone: Mapping[str, object] | None = None
    tiles: Mapping[str, object] | None = None
    stain: str = ""
    compute: str = ""
    model: str = ""
    aggregator: str = ""
    alpha: float | None = None
    decisions: tuple[str, ...] = ()

    @property
    def backbone_name(self) -> str:
        """Name of the backbone; empty when unknown."""
        return str(self.backbone["name"]) if self.backbone else ""


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """Everything that the report shows, without its pictures.

    Args:
        config: What was asked for.
        table: Path of the label table as given.
        n: Evaluated rows.
        units: Their patients.
        by_patient: Whether the bootstrap draws patients; else rows, because the table has no patient column.
        tasks: One a task with labels.
        unlabelled: Tasks without a label in the split.
        gate: None when the model has no gate.
        selective: One a classification task, when there is a failure score.
        baseline: Where the majority is from, ``train`` or the split itself.
        missing: Rows of the split without a prediction.
        outside: Predictions that the table does not know.
        source: Where the predictions came from.
        provenance: Who made this.
        quality: Quality figures of the evaluated slides, or of the patch set; empty where none were measured.
    """

    config: EvaluateConfig
    table: str
    n: int
    units: int
    by_patient: bool
    tasks: tuple[TaskResult, ...]
    unlabelled: tuple[str, ...]
    gate: Gate | None
    selective: tuple[Selective, ...]
    baseline: str
    missing: tuple[str, ...]
    outside: int
    source: Source
    provenance: Provenance
    quality: tuple[SlideQuality, ...] = ()

    @property
    def unit_name(self) -> str:
        """What the bootstrap draws."""
        return "patient" if self.by_patient else self.source.row_name

    @property
    def unit_names(self) -> str:
        """The same in the plural."""
        return plural(self.unit_name)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know before the numbers."""
        notes, rows = [], plural(self.source.row_name)
        if not self.by_patient:
            cure = f"the table has no column {self.config.patient!r}"
            notes.append(f"patients are unknown ({cure}), so {rows} were drawn: the intervals are likely too narrow")
        if self.missing:
            notes.append(f"{len(self.missing)} {rows} of the split have no prediction and are left out")
        if self.unlabelled:
            notes.append(f"no labels in this split for: {', '.join(self.unlabelled)}")
        if self.baseline != "train":
            notes.append("the table has no labelled training rows: the majority baseline is that of the split itself")
        return tuple(notes)

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON; undefined numbers are None."""
        return {
            "schema": SCHEMA,
            "split": self.config.split,
            "n": self.n,
            f"n_{'patients' if self.by_patient else 'units'}": self.units,
            "interval": {
                "method": "percentile bootstrap",
                "draws": self.unit_name,
                "resamples": self.config.bootstrap,
                "confidence": CONFIDENCE,
                "seed": self.config.seed,
            },
            "tasks": {result.answers.name: _task(result) for result in self.tasks},
            "gate": None if self.gate is None else _gate(self.gate),
            "failure_score": {entry.task: _selective(entry) for entry in self.selective},
            "missing_predictions": list(self.missing),
            "predictions_outside_table": self.outside,
            "notes": list(self.notes),
            "quality": [asdict(slide) for slide in self.quality],
            "source": asdict(self.source),
            "config": asdict(self.config),
            "provenance": asdict(self.provenance),
        }


def plural(word: str, n: int = 2) -> str:
    """The word as it stands after the number ``n``."""
    if n == 1:
        return word
    return f"{word}es" if word.endswith(("ch", "s", "x")) else f"{word}s"


def _task(result: TaskResult) -> dict[str, object]:
    answers = result.answers
    entry: dict[str, object] = {
        "kind": answers.kind,
        "n": len(answers),
        "n_units": result.units,
        "metrics": _estimates(result.metrics),
        "majority_baseline": {name: _number(value) for name, value in result.majority.items()},
        "notes": list(result.notes),
    }
    if result.labels:
        rows = {
            label.name: {
                "n": label.rows,
                "n_positive": label.positive,
                "auroc": label.auroc.to_dict(),
                "average_precision": label.average_precision.to_dict(),
            }
            for label in result.labels
        }
        return entry | {"labels": rows}
    if answers.event is not None:
        return entry | {"n_events": int(answers.event.sum())}
    if result.confusion is None:
        return entry
    return entry | {
        "classes": list(answers.classes),
        "recall": {r.name: {**r.recall.to_dict(), "n": r.rows, "n_units": r.units} for r in result.recalls},
        "confusion_matrix": result.confusion.tolist(),
        "reliability": [_bin(b) for b in result.reliability],
        "reliability_before_temperature": [_bin(b) for b in result.reliability_before],
        "ece_before_temperature": None if result.ece_before is None else result.ece_before.to_dict(),
    }


def _gate(gate: Gate) -> dict[str, object]:
    return {
        "flagged_share": [
            {"split": s.split, "site": s.site, "n": s.rows, "flagged": s.flagged, **s.share.to_dict()}
            for s in gate.shares
        ],
        "n_id": gate.n_known,
        "n_ood": gate.n_ood,
        "separation": {s.score: _estimates(s.metrics) for s in gate.separation},
        "flagged": [{**asdict(row), "score": _number(row.score), "p": _number(row.p)} for row in gate.flagged],
        "unscored": gate.unscored,
        "notes": list(gate.notes),
    }


def _selective(entry: Selective) -> dict[str, object]:
    return {
        "n": entry.rows,
        "errors": entry.errors,
        "augrc": entry.augrc.to_dict(),
        "auroc": entry.auroc.to_dict(),
        "coverage": entry.coverage.tolist(),
        "risk": entry.risk.tolist(),
    }


def _estimates(estimates: Mapping[str, Estimate]) -> dict[str, object]:
    return {
        name: {**value.to_dict(), **({"better": MEANINGS[name].better} if name in MEANINGS else {})}
        for name, value in estimates.items()
    }


def _bin(entry: ReliabilityBin) -> dict[str, object]:
    return {"n": entry.rows, "confidence": entry.confidence, "correct": entry.correct.to_dict()}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
