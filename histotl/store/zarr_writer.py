"""Writes a cohort: one zarr v3 store of many embeddings files."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import Crc32cCodec

from histotl.core.atomic import temporary_name
from histotl.core.errors import CorruptFileError, IdentityError, StoreError
from histotl.core.provenance import Provenance
from histotl.core.values import BackboneCard, FeatureIdentity
from histotl.store import schema
from histotl.store.extras import VIEWS, differences
from histotl.store.hdf5 import cannot_write
from histotl.store.reader import Embeddings, open_embeddings
from histotl.store.schema import Key
from histotl.store.values_json import to_json
from histotl.store.zarr_reader import FILES, ITEM_BYTES, ITEM_ENDS, CohortEntry

_CHUNK_BYTES: Final = 2**20
_CHUNKS_A_SHARD: Final = 32


def write_cohort(files: Sequence[Path], out: Path) -> None:
    """Put embeddings files of one identity into one store, in the order given.

    Args:
        files: Embeddings files of ours.
        out: Folder to make, such as ``cohort.zarr``; it must not exist.

    Raises:
        IdentityError: Two files differ in backbone, tiling, stain, dtype or extras (listed), or one has no identity.
        StoreError: No files, two of one name, slides and patch sets mixed, `out` exists, or the disk is full.
    """
    if out.exists():
        raise StoreError(f"{out} exists", hint="remove it or give another name")
    sources = [open_embeddings(path) for path in files]
    identity, card = _common_identity(sources)
    temporary = temporary_name(out)
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.parent.mkdir(parents=True, exist_ok=True)
        attributes: dict[str, Any] = {
            Key.SCHEMA: schema.version(tuple(sources[0].extras.values())),
            Key.KIND: "cohort",
            Key.IDENTITY: identity.to_json(),
            Key.CARD: to_json(dataclasses.asdict(card)),
            Key.PROVENANCE: Provenance.now(inputs={source.slide_id: source.digest for source in sources}).to_json(),
            FILES: to_json({"files": [dataclasses.asdict(entry) for entry in _entries(sources)]}),
        }
        group = zarr.create_group(temporary, zarr_format=3, attributes={str(k): v for k, v in attributes.items()})
        _write_arrays(group, sources, card.dim)
        _flush(temporary)
        temporary.rename(out)
    except OSError as error:
        raise error if isinstance(error, StoreError) else cannot_write(out, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _common_identity(sources: Sequence[Embeddings]) -> tuple[FeatureIdentity, BackboneCard]:
    if not sources:
        raise StoreError("a cohort of no files cannot be written", hint="give at least one embeddings file")
    first = sources[0]
    names: set[str] = set()
    for source in sources:
        if source.identity is None or source.card is None:
            fact = f"{source.path} was not made by histotl, so nothing says what its features are"
            raise IdentityError(fact, hint="embed the slide with histotl embed")
        if first.identity is not None and (lines := first.identity.differences(source.identity)):
            fact = f"{first.path} and {source.path} hold different features: {'; '.join(lines)}"
            raise IdentityError(fact, hint="give files of one backbone, tiling, stain and dtype")
        if lines := differences(first.extras, source.extras) or differences(source.extras, first.extras):
            fact = f"{first.path} and {source.path} differ in what they hold beside features: {'; '.join(lines)}"
            raise IdentityError(fact, hint="embed all of them with the same views and measures of quality")
        if source.slide_id in names:
            raise StoreError(f"two files are called {source.slide_id!r}", hint="give each slide once")
        names.add(source.slide_id)
    if first.identity is None or first.card is None:
        raise IdentityError(f"{first.path} has no identity")
    return first.identity, first.card


def _entries(sources: Iterable[Embeddings]) -> Iterator[CohortEntry]:
    start = 0
    shared = {item.name for item in dataclasses.fields(CohortEntry)} - {"start"}
    for source in sources:
        yield CohortEntry(start=start, **{name: getattr(source, name) for name in shared})
        start += source.n


def _write_arrays(group: zarr.Group, sources: Sequence[Embeddings], dim: int) -> None:
    total = sum(source.n for source in sources)
    features = _create(group, schema.FEATURES, (total, dim), sources[0].dtype, np.nan)
    _fill(features, (source.read(dtype=source.dtype) for source in sources))
    for name, extra in sources[0].extras.items():
        shape, kind = extra.shape(total, dim), extra.dtype(sources[0].dtype)
        # What stands for a shard that is not there is what no file may hold.
        array = _create(group, name, shape, kind, np.nan if name == VIEWS else -np.inf, extra.attributes())
        for plane in np.ndindex(*shape[:-2]):
            _fill(array, (_rows_of(source, name, plane) for source in sources), plane)
    if all(source.coords_l0 is not None for source in sources):
        coords = _create(group, schema.COORDS, (total, 2), np.dtype(np.int64), -1)
        _fill(coords, (_there(source.coords_l0) for source in sources))
        tissue = _create(group, schema.TISSUE, (total,), np.dtype(np.float32), -1)
        _fill(tissue, (_there(source.tissue_fraction) for source in sources))
    elif all(source.coords_l0 is None for source in sources):
        texts = [item.encode() for source in sources for item in source.items]
        ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
        _fill(_create(group, ITEM_ENDS, ends.shape, ends.dtype, -1), [ends])
        blob = np.frombuffer(b"".join(texts), dtype=np.uint8)
        _fill(_create(group, ITEM_BYTES, blob.shape, blob.dtype, 0), [blob])
    else:
        raise StoreError("slides and patch sets cannot share a cohort", hint="write one cohort for each")


def _rows_of(source: Embeddings, name: str, plane: tuple[int, ...]) -> npt.NDArray[Any]:
    if name == VIEWS:
        return source.read(dtype=source.dtype, view=plane[0])
    return _there(None if source.quality is None else source.quality.values)


def _create(
    group: zarr.Group,
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    fill: float,
    attributes: Mapping[str, Any] | None = None,
) -> Any:
    """An array whose rows are its first axis, or, where it has planes of rows, the last but one."""
    planes, (n, *width) = shape[:-2], shape[-2:] if len(shape) > 1 else shape
    row_bytes = dtype.itemsize * int(np.prod(width, dtype=np.int64))
    chunk = max(1, min(_CHUNK_BYTES // max(1, row_bytes), n))
    shard = chunk * max(1, min(_CHUNKS_A_SHARD, -(-n // chunk)))
    ones = (1,) * len(planes)
    return group.create_array(
        name,
        shape=shape,
        chunks=(*ones, chunk, *width),
        shards=(*ones, shard, *width),
        dtype=dtype,
        fill_value=fill,
        compressors=[Crc32cCodec()],
        config={"write_empty_chunks": True},
        attributes=None if attributes is None else dict(attributes),
    )


def _fill(array: Any, parts: Iterable[npt.NDArray[Any]], plane: tuple[int, ...] = ()) -> None:
    """Write parts one after the other, a whole shard at a time: half-filled shards would be read and written twice."""
    step, *width = array.shards[len(plane) :]
    buffer = np.empty((step, *width), array.dtype)
    start = filled = 0
    for part in parts:
        while len(part):
            take = min(step - filled, len(part))
            buffer[filled : filled + take], part = part[:take], part[take:]
            filled += take
            if filled == step:
                array[(*plane, slice(start, start + step))] = buffer
                start, filled = start + step, 0
    if filled:
        array[(*plane, slice(start, start + filled))] = buffer[:filled]


def _there(values: npt.NDArray[Any] | None) -> npt.NDArray[Any]:
    if values is None:
        raise CorruptFileError("a file of a slide has no coordinates or tissue fractions", hint="make it again")
    return values


def _flush(folder: Path) -> None:
    """Every file of a folder, then the folders themselves, to disk."""
    for path in [*sorted(folder.rglob("*"), reverse=True), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
