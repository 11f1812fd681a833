"""The embeddings file against bare bytes. The page cache is warm on both sides."""

from __future__ import annotations

import os
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt

from benchmarks.speed.harness import Case, Figure, case
from benchmarks.speed.inputs import Inputs
from histotl.core.provenance import Provenance
from histotl.core.values import BackboneCard, FeatureIdentity
from histotl.store.embeddings import EmbeddingsMeta, EmbeddingsWriter, open_embeddings

_BATCH = 256
Half = npt.NDArray[np.float16]


def _meta(rows: int, dim: int) -> EmbeddingsMeta:
    card = BackboneCard(name="any", dim=dim, pooling="avg", input_px=224, mean=(0.5,) * 3, std=(0.5,) * 3)
    identity = FeatureIdentity.of(card, None, stain="none", compute="fp32", dtype="fp16")
    items = tuple(f"{row}.png" for row in range(rows))
    return EmbeddingsMeta(identity=identity, card=card, provenance=Provenance.now(), items=items)


def _write(path: Path, features: npt.NDArray[np.float32], meta: EmbeddingsMeta) -> None:
    """As the engine does: batch after batch of float32, then the seal."""
    with EmbeddingsWriter(path, n=len(features), dim=features.shape[1], dtype="fp16", meta=meta) as writer:
        for start in range(0, len(features), _BATCH):
            part = features[start : start + _BATCH]
            writer.put(np.arange(start, start + len(part)), part)
        writer.seal()


def _write_raw(path: Path, values: Half) -> None:
    with path.open("wb") as file:
        values.tofile(file)
        os.fsync(file.fileno())


def _files(inputs: Inputs) -> tuple[Path, Path, str]:
    """The same rows as an embeddings file and as bare bytes, and their size in words."""
    ours, raw = inputs.folder / "features.h5", inputs.folder / "features.bin"
    if not ours.exists():
        _write(ours, inputs.features, _meta(*inputs.features.shape))
        _write_raw(raw, inputs.features.astype(np.float16))
    return ours, raw, f"{inputs.scale.rows:,} × {inputs.scale.dim} fp16"


@case("store/write")
def write(inputs: Inputs) -> Case:
    """Convert, check, write, digest, flush, rename; against writing and flushing what is converted already."""
    features = inputs.features
    values, meta = features.astype(np.float16), _meta(*features.shape)
    ours, raw = inputs.folder / "written.h5", inputs.folder / "written.bin"
    return Case(
        name=f"store write, {len(features):,} × {features.shape[1]} fp16",
        against="`tofile` + fsync",
        ours=lambda: _write(ours, features, meta),
        reference=lambda: _write_raw(raw, values),
        goal=6.0,
        units=len(features),
        unit="rows",
    )


@case("store/read-whole")
def read_whole(inputs: Inputs) -> Case:
    """Read everything, as every epoch but the first does."""
    ours, raw, size = _files(inputs)
    opened, shape = open_embeddings(ours), inputs.features.shape
    return Case(
        name=f"store whole read, {size}",
        against="`np.fromfile`",
        ours=lambda: opened.read(dtype=np.float16),
        reference=lambda: np.fromfile(raw, np.float16).reshape(shape),
        same=np.array_equal,
        goal=1.2,
        units=shape[0],
        unit="rows",
        close=opened.close,
    )


@case("store/open-and-read-whole")
def open_and_read_whole(inputs: Inputs) -> Case:
    """Open, check that it is what it says, and read everything: what a file costs that is read once."""
    ours, raw, size = _files(inputs)
    shape = inputs.features.shape

    def read() -> npt.NDArray[np.floating]:
        with open_embeddings(ours) as file:
            return file.read(dtype=np.float16)

    return Case(
        name=f"store open + whole read, {size}",
        against="`np.fromfile`",
        ours=read,
        reference=lambda: np.fromfile(raw, np.float16).reshape(shape),
        same=np.array_equal,
        units=shape[0],
        unit="rows",
    )


@case("store/open-many")
def open_many(inputs: Inputs) -> Case:
    """Open many files one after the other and read each whole, as the first epoch over a cohort does."""
    folder, rows = inputs.folder / "bags", max(1, inputs.scale.rows // 100)
    folder.mkdir()
    count = inputs.scale.bag_files
    part = inputs.features[:rows]
    ours, raw = [folder / f"{i:03}.h5" for i in range(count)], [folder / f"{i:03}.bin" for i in range(count)]
    for path, bare in zip(ours, raw, strict=True):
        _write(path, part, _meta(*part.shape))
        _write_raw(bare, part.astype(np.float16))

    def read(path: Path) -> Half:
        with open_embeddings(path) as file:
            return cast("Half", file.read(dtype=np.float16))

    return Case(
        name=f"store, open and read {count} files of {rows} × {part.shape[1]} fp16",
        against="`np.fromfile` of each",
        ours=lambda: sum(len(read(path)) for path in ours),
        reference=lambda: sum(len(np.fromfile(path, np.float16).reshape(-1, part.shape[1])) for path in raw),
        same=lambda a, b: a == b,
        figures=(Figure(text="{} ms a file", of=lambda s: s.ours / count * 1e3),),
        units=count,
        unit="files",
    )


@case("store/read-rows")
def read_rows(inputs: Inputs) -> Case:
    """Random rows of an open file."""
    ours, raw, size = _files(inputs)
    rows = np.random.default_rng(3).choice(inputs.scale.rows, inputs.scale.picked, replace=False)
    opened = open_embeddings(ours)
    _ = opened.features
    mapped = np.memmap(raw, np.float16, "r", shape=inputs.features.shape)
    return Case(
        name=f"store, {len(rows)} random rows of {size}",
        against="`np.memmap`",
        ours=lambda: opened.read(rows, dtype=np.float16),
        reference=lambda: np.array(mapped[rows]),
        same=np.array_equal,
        goal=2.0,
        units=len(rows),
        unit="rows",
    )
