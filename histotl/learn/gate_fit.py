"""Fits the gate on training features and calibrates it on validation features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from histotl.core.errors import TableError
from histotl.learn.bags import Bags
from histotl.learn.gate import Ensemble, Floats, Gate, GateScores, NormalMap, fit_ensemble, segment_means

TILES_MAX = 20_000
"""Training tiles that tile detectors are fitted on, drawn evenly over the slides."""

SCORE_ROWS = 16384
"""Tiles in one pass while calibrating."""


def fit_gate(
    train: Bags,
    val: Bags,
    *,
    specs: Sequence[str],
    labels: npt.NDArray[np.int64] | None,
    patients: Sequence[str],
    with_tiles: bool,
    alpha: float,
    seed: int,
) -> Gate:
    """Fit detectors on train, calibrate on val, and on held-out train scores too where val is too small to flag.

    Args:
        train: Training cases; two at least.
        val: Calibration cases, of other patients.
        specs: Detectors.
        labels: int64 (B,) classes of the training cases, -1 where unknown; None for one cluster.
        patients: Patient of each training case.
        with_tiles: Cases are slides, whose tiles are scored as well.
        alpha: Share of in-distribution cases that may be flagged.
        seed: Of folds and of the choice of tiles.

    Raises:
        TableError: There is one training case only.
    """
    if len(train) < 2:
        cure = "add cases, or switch the gate off with --ood none"
        raise TableError(f"the out-of-distribution gate needs 2 training cases, not {len(train)}", hint=cure)
    groups = np.unique(np.asarray(patients), return_inverse=True)[1].astype(np.int64)
    vectors = torch.cat([_means(train, chunk) for chunk in train.chunks(SCORE_ROWS)])
    cases, held = fit_ensemble(specs, vectors, labels=labels, groups=groups, seed=seed)
    normal = [cases.maps[name](scores) for name, scores in held.items()]
    tiles, tile_map = None, None
    if with_tiles:
        tiles, tile_map, means = _fit_tiles(train, specs, groups, seed)
        normal.append(tile_map(means))
    gate = Gate(cases=cases, tiles=tiles, tile_map=tile_map, calibration=np.zeros(0), alpha=alpha)
    scores = np.concatenate([score_bags(gate, val, chunk).score for chunk in val.chunks(SCORE_ROWS)])
    if len(scores) + 1 < 1 / alpha:
        scores = np.concatenate([scores, np.mean(normal, axis=0)])
    return replace(gate, calibration=np.sort(scores))


def score_bags(gate: Gate, bags: Bags, chosen: npt.NDArray[np.int64]) -> GateScores:
    """Score some bags of a source."""
    packed = bags.gather(chosen)
    offsets = packed.offsets.numpy()
    return gate.score(mean_vectors(packed.x, offsets), packed.x, offsets)


def mean_vectors(x: torch.Tensor, offsets: npt.NDArray[np.int64]) -> torch.Tensor:
    """Mean of the rows of each bag: float32 (N, d) into (B, d), summed in float64."""
    sums = np.add.reduceat(x.numpy(), offsets[:-1], axis=0, dtype=np.float64)
    return torch.from_numpy((sums / np.diff(offsets)[:, None]).astype(np.float32))


def _means(bags: Bags, chosen: npt.NDArray[np.int64]) -> torch.Tensor:
    packed = bags.gather(chosen)
    return mean_vectors(packed.x, packed.offsets.numpy())


def _fit_tiles(
    train: Bags, specs: Sequence[str], groups: npt.NDArray[np.int64], seed: int
) -> tuple[Ensemble, NormalMap, Floats]:
    """The tiles' ensemble, the map of a slide's mean tile score, and that mean of each slide, held out."""
    sample, owner = train.tiles(max(1, TILES_MAX // len(train)), seed)
    vectors = torch.from_numpy(sample.source.read(sample.rows))
    tiles, held = fit_ensemble(specs, vectors, labels=None, groups=groups[owner], seed=seed)
    offsets = np.searchsorted(owner, np.arange(len(train) + 1)).astype(np.int64)
    means = segment_means(tiles.combine(held), offsets)
    return tiles, NormalMap.of(means), means
