"""The gate as plain values and tensors, for the model file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import numpy as np
import torch

from histotl.core.registry import canonical, create
from histotl.learn.gate import Ensemble, Gate, NormalMap
from histotl.learn.ood.base import Detector


def _ensembles(gate: Gate) -> Iterator[tuple[str, Ensemble]]:
    yield "cases", gate.cases
    if gate.tiles is not None:
        yield "tiles", gate.tiles


def pack_gate(gate: Gate) -> tuple[dict[str, object], dict[str, torch.Tensor]]:
    """Description for JSON, and tensors whose names begin with ``gate.``."""
    tensors = {"gate.calibration": torch.from_numpy(gate.calibration)}
    meta: dict[str, object] = {"alpha": gate.alpha, "n_calibration": len(gate.calibration)}
    for part, ensemble in _ensembles(gate):
        names = list(ensemble.detectors)
        meta[part] = {
            "names": names,
            "specs": [canonical(ensemble.detectors[name]) for name in names],
            "slopes": [ensemble.maps[name].slope for name in names],
            "states": [sorted(ensemble.states[name]) for name in names],
        }
        for i, name in enumerate(names):
            prefix = f"gate.{part}.{i}."
            tensors |= {f"{prefix}state.{key}": value for key, value in ensemble.states[name].items()}
            tensors |= _pack_map(prefix, ensemble.maps[name])
    if gate.tile_map is not None:
        meta["tile_slope"] = gate.tile_map.slope
        tensors |= _pack_map("gate.tile_map.", gate.tile_map)
    return meta, tensors


def unpack_gate(meta: dict[str, object], tensors: dict[str, torch.Tensor]) -> Gate:
    """Inverse of :func:`pack_gate`."""
    parts: dict[str, Ensemble] = {}
    for part in ("cases", "tiles"):
        if part not in meta:
            continue
        entry = cast("dict[str, list[object]]", meta[part])
        names = [str(name) for name in entry["names"]]
        prefixes = {name: f"gate.{part}.{i}." for i, name in enumerate(names)}
        states = cast("list[list[str]]", entry["states"])
        parts[part] = Ensemble(
            detectors={
                name: cast("Detector", create("ood", str(spec)))
                for name, spec in zip(names, entry["specs"], strict=True)
            },
            states={
                name: {key: tensors[f"{prefixes[name]}state.{key}"] for key in keys}
                for name, keys in zip(names, states, strict=True)
            },
            maps={
                name: _unpack_map(prefixes[name], cast("float", slope), tensors)
                for name, slope in zip(names, entry["slopes"], strict=True)
            },
        )
    slope = cast("float | None", meta.get("tile_slope"))
    return Gate(
        cases=parts["cases"],
        tiles=parts.get("tiles"),
        tile_map=None if slope is None else _unpack_map("gate.tile_map.", slope, tensors),
        calibration=tensors["gate.calibration"].numpy(),
        alpha=cast("float", meta["alpha"]),
    )


def _pack_map(prefix: str, normal_map: NormalMap) -> dict[str, torch.Tensor]:
    pair = (("raw", normal_map.raw), ("normal", normal_map.normal))
    return {f"{prefix}map.{name}": torch.from_numpy(np.ascontiguousarray(values)) for name, values in pair}


def _unpack_map(prefix: str, slope: float, tensors: dict[str, torch.Tensor]) -> NormalMap:
    raw, normal = (tensors[f"{prefix}map.{name}"].numpy() for name in ("raw", "normal"))
    return NormalMap(raw=raw, normal=normal, slope=slope)
