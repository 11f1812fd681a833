"""Is a file whole, and is it the one that is wanted?"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

from histotl.core.errors import StoreError
from histotl.core.values import FeatureIdentity
from histotl.store import schema
from histotl.store.attributes import number_attribute
from histotl.store.digest import blocks, data_digest, planes
from histotl.store.extras import QUALITY, VIEWS, Extra, differences
from histotl.store.hdf5 import get_dataset, not_finite, open_file
from histotl.store.reader import Embeddings, open_embeddings
from histotl.store.schema import DTYPES, Key
from histotl.store.seal import has_seal, seal_problem

_log = logging.getLogger(__name__)


def check_file(path: Path, *, deep: bool = True) -> list[str]:
    """Everything that is wrong with an embeddings file.

    Args:
        path: The file.
        deep: Read every byte: compare seal and digest and look for values that are not finite. Otherwise only what
            the file says about itself, which finds files that are cut short but not flipped bits among the values.

    Returns:
        One sentence for each problem; empty when the file is good. A file of another tool has no seal and no digest,
        so of its values only NaN and infinity can be found.
    """
    try:
        # Before anything is parsed: the library can hang on damaged text.
        if deep and has_seal(path) and (broken := seal_problem(path)):
            return [broken]
        embeddings = open_embeddings(path)
        with open_file(path) as file:
            problems = _coordinate_problems(embeddings, file)
            if embeddings.identity is not None:
                problems += _attribute_problems(embeddings, file)
                problems += [] if has_seal(path) else [seal_problem(path)]
            if deep:
                problems += _value_problems(embeddings, file)
            return problems
    except StoreError as error:
        return [error.message]
    except OSError as error:
        return [f"{path} cannot be read: {error.strerror}"]


def is_foreign(path: Path) -> bool:
    """Whether a file can be read but is not of histotl: whatever is wrong with it, it is not ours to remove."""
    try:
        with open_file(path) as file:
            return Key.SCHEMA not in file.attrs
    except (StoreError, OSError):
        return False


def is_current(path: Path, identity: FeatureIdentity, source_fingerprint: str, extras: Sequence[Extra] = ()) -> bool:
    """Whether a file is there, whole, and made in this way from this source, so that it need not be made again.

    Args:
        path: The file.
        identity: What its features must be.
        source_fingerprint: Digest of the slide (`SlideInfo.fingerprint`) or of the patches.
        extras: What else it must have; others that it has besides do no harm.
    """
    if not path.exists():
        return False
    try:
        found = open_embeddings(path)
    except StoreError as error:
        _log.warning("will be made again: %s", error.message)
        return False
    return (
        has_seal(path)
        and found.identity is not None
        and not found.identity.differences(identity)
        and found.source_fingerprint == source_fingerprint
        and not differences({extra.name: extra for extra in extras}, found.extras)
    )


def _attribute_problems(embeddings: Embeddings, file: h5py.File) -> list[str]:
    """What the file says twice must agree."""
    identity, card = embeddings.identity, embeddings.card
    problems = []
    if identity is None or card is None:
        return ["the file has no identity or no card"]
    wanted = DTYPES.get(identity.dtype)  # type: ignore[call-overload] # text from a file
    if wanted != embeddings.dtype:
        problems.append(f"features are {embeddings.dtype}, the identity says {identity.dtype}")
    if card.dim != embeddings.dim:
        problems.append(f"features have {embeddings.dim} columns, the card of {card.name} says {card.dim}")
    if identity.backbone.get("name") != card.name:
        problems.append(f"the identity is of {identity.backbone.get('name')}, the card of {card.name}")
    missing = [name for name in schema.TRIDENT_FEATURES if name not in file[schema.FEATURES].attrs]
    if schema.COORDS in file:
        missing += [name for name in schema.TRIDENT_COORDS if name not in file[schema.COORDS].attrs]
        missing += [str(key) for key in (Key.FOOTPRINT, Key.TILE_UM, Key.MPP, Key.SLIDE) if key not in file.attrs]
        missing += [schema.TISSUE] if schema.TISSUE not in file else []
    elif schema.ITEMS not in file:
        missing.append(f"{schema.COORDS} or {schema.ITEMS}")
    if missing:
        problems.append(f"missing: {', '.join(missing)}")
    return problems


def _coordinate_problems(embeddings: Embeddings, file: h5py.File) -> list[str]:
    coords = embeddings.coords_l0
    if coords is None or not len(coords):
        return []
    size = [number_attribute(file[schema.COORDS].id, f"level0_{side}") for side in ("width", "height")]
    outside = (coords < 0).any(axis=1)
    for axis, side in enumerate(size):
        if side is not None:
            outside |= coords[:, axis] >= side
    if outside.any():
        row = int(np.flatnonzero(outside)[0])
        return [f"the tile of row {row} begins at {tuple(coords[row].tolist())}, outside the slide"]
    return []


def _value_problems(embeddings: Embeddings, file: h5py.File) -> list[str]:
    problems = []
    if embeddings.digest and data_digest(file, schema.DATASETS) != embeddings.digest:
        problems.append("the digest differs: values were changed after the file was made")
    for name in (schema.FEATURES, VIEWS, QUALITY):
        if name == schema.FEATURES or name in embeddings.extras:
            problems += _wrong_rows(embeddings, file, name)
    return problems


def _wrong_rows(embeddings: Embeddings, file: h5py.File, name: str) -> list[str]:
    """The first row of a dataset with a value that may not be in it."""
    dataset = get_dataset(file, name)
    if dataset is None:
        return []
    width = embeddings.dim if name == schema.FEATURES else dataset.shape[-1]
    # TRIDENT's features may have an axis of one before the others.
    found = planes(dataset) if name == VIEWS else [()]
    for plane in found:
        start = 0
        for block in blocks(dataset, plane):
            rows = block.reshape(-1, width)
            if name == QUALITY:
                bad = np.flatnonzero(np.isinf(rows).any(axis=1))
            else:
                bad = not_finite(rows.astype(embeddings.dtype, copy=False))
            if bad.size:
                where = f"view {plane[0]}" if plane else f"the {name}"
                return [f"row {start + int(bad[0])} of {where} is not finite"]
            start += len(rows)
    return []
