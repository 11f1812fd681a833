"""The methods paragraphs of a report, written from what the files say, so that they cannot drift from what was done."""

from __future__ import annotations

from collections.abc import Mapping

from histotl.evaluate.calibration import CURVE_ROWS, N_BINS
from histotl.evaluate.evidence import Evidence, Source, plural
from histotl.evaluate.results import FEW, FEW_UNITS


def methods_text(evidence: Evidence) -> tuple[str, ...]:
    """Paragraphs: features, evaluation set, intervals, metrics, decisions, gate."""
    paragraphs = (
        _features(evidence.source),
        _rows(evidence),
        _intervals(evidence),
        _metrics(evidence),
        _other_metrics(evidence),
        _decided(evidence.source),
        _gate(evidence),
    )
    return tuple(paragraph for paragraph in paragraphs if paragraph)


def _features(source: Source) -> str:
    if not source.backbone:
        return ""
    sentences = [_tiles(source.tiles or {}), _backbone(source.backbone, source.compute)]
    if source.stain:
        sentences.append(
            "No stain normalisation." if source.stain == "none" else f"Stain normalisation: {source.stain}."
        )
    if source.aggregator and source.level == "slide":
        sentences.append(f"The tiles of a {source.row_name} became one vector by {source.aggregator}.")
    if source.model:
        sentences.append(f"Model: {source.model}.")
    return " ".join(sentences)


def _tiles(tiles: Mapping[str, object]) -> str:
    if tiles.get("patches") or "tile_px" not in tiles:
        return "Patch images were used whole."
    side, mpp = float(str(tiles["tile_px"])), float(str(tiles["mpp"]))
    sentence = (
        f"Slides were cut into tiles of {side:g} × {side:g} px at {mpp:g} µm/px ({side * mpp:g} µm), "
        f"with at least {float(str(tiles.get('min_tissue', 0))):.0%} tissue"
    )
    overlap = int(str(tiles.get("overlap_px", 0)))
    return sentence + (f" and {overlap} px overlap." if overlap else ", without overlap.")


def _backbone(card: Mapping[str, object], compute: str) -> str:
    weights = str(card.get("weights", "none"))
    if weights.startswith("random"):
        weights = f"RANDOM weights ({weights})"
    elif weights == "none":
        weights = "no learned weights"
    else:
        weights = f"weights {weights}"
    digest = str(card.get("weights_digest", ""))
    pieces = [weights + (f", digest {digest[:12]}" if digest else ""), f"pooling {card.get('pooling')}"]
    pieces += [f"forward pass in {compute}"] if compute else []
    return f"Each became {card.get('dim')} features by the backbone {card.get('name')} ({'; '.join(pieces)})."


def _rows(evidence: Evidence) -> str:
    config, row = evidence.config, plural(evidence.source.row_name, evidence.n)
    units = f", {evidence.units} patients" if evidence.by_patient else ""
    sentence = f"Evaluated were the {evidence.n} {row} with {config.split_column} = {config.split}{units}."
    if evidence.outside:
        sentence += f" {evidence.outside} predictions that the table does not name are in no metric."
    where = "training rows" if evidence.baseline == "train" else "evaluated rows"
    return (
        f"{sentence} The majority column answers every row with the most frequent class (or the mean value, or one "
        f"same risk) and the class shares of the {where}."
    )


def _intervals(evidence: Evidence) -> str:
    if not evidence.config.bootstrap:
        return "No intervals were asked for."
    unit = evidence.unit_names
    return (
        f"Intervals are 95 % percentile intervals over {evidence.config.bootstrap} bootstrap resamples of {unit} "
        f"(seed {evidence.config.seed}): as many {unit} as there are were drawn with replacement, each with all its "
        "rows; the value beside an interval is that of the real set. Resamples in which a metric is undefined, because "
        "a class is missing, are left out of it; with fewer than half left, no interval is given. Fewer than "
        f"{FEW} rows or {FEW_UNITS} {unit} of a class, or {FEW} {unit} in all, are marked."
    )


def _metrics(evidence: Evidence) -> str:
    if all(result.confusion is None for result in evidence.tasks):
        return ""
    return (
        "Means over classes leave out classes without rows. ECE compares the largest probability of each row with the "
        f"share of rows whose most probable class is right, in {N_BINS} bins of equal mass, cut once on the real set; "
        "it is never negative, so noise pushes it and its interval upwards in small sets. The reliability curve is "
        f"drawn with fewer bins where they would hold under {CURVE_ROWS} rows. Brier scores run from 0 to 1 "
        "for two classes and from 0 to 2 (summed over classes) for more. In a two-class task the second class counts "
        "as positive."
    )


def _other_metrics(evidence: Evidence) -> str:
    answers = [result.answers for result in evidence.tasks]
    sentences = []
    if any(entry.shares is not None for entry in answers):
        sentences.append(
            "Where labels are votes, their majority counts as the class; Brier score and NLL are given against it and "
            "against the shares of the votes."
        )
    if any(entry.answers == "labels" for entry in answers):
        sentences.append(
            "Each of several labels is measured on the rows that say something about it; means over labels leave out "
            "those without positives or without negatives."
        )
    if any(entry.interval is not None for entry in answers):
        sentences.append("Coverage is the share of true values inside the stated 90 % interval.")
    if any(entry.event is not None for entry in answers):
        sentences.append(
            "The C-index is the share of pairs of rows of known order that the risk puts in that order, ties counting "
            "half (Harrell); Uno's weighs each pair by the inverse square of the Kaplan-Meier chance to be still under "
            "observation, which is estimated once on the real set."
        )
    return " ".join(sentences)


def _decided(source: Source) -> str:
    if not source.decisions:
        return ""
    sets = "Sets and intervals are conformal; every patient of validation counts the same."
    return " ".join([*source.decisions, *([sets] if any("coverage" in text for text in source.decisions) else [])])


def _gate(evidence: Evidence) -> str:
    if evidence.gate is None:
        return ""
    sentences = []
    if evidence.source.alpha is not None:
        sentences.append(
            f"The gate flags conformal p-values up to {evidence.source.alpha:g}: no more than that share of cases like "
            "those of validation is flagged on average."
        )
    if evidence.gate.separation:
        sentences.append(
            "Separation compares the evaluated split with the rows marked as out of distribution. Two readings go by "
            "the name FPR95: the share of known rows that a threshold flags which catches 95 % of the OOD rows "
            "(id_flagged_at_95_ood_recall in metrics.json), and the share of OOD rows that pass a threshold which "
            "keeps 95 % of the known rows (ood_missed_at_95_id_kept)."
        )
    return " ".join(sentences)
