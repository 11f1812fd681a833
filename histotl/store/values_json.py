"""Values as one line of JSON in an attribute, and back; a stranger's text is never trusted to be what it should."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np

from histotl.core.errors import CorruptFileError, StoreError
from histotl.core.provenance import Provenance
from histotl.core.values import BackboneCard, FeatureIdentity


def to_json(value: object) -> str:
    """Canonical JSON; arrays and numbers of numpy become lists and numbers, dataclasses dicts.

    Raises:
        StoreError: A value has no form in JSON.
    """
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), default=_plain)
    except (TypeError, ValueError) as error:
        raise StoreError(
            f"a value cannot be stored as JSON: {error}", hint="use numbers, text, lists, dicts"
        ) from error


def from_json(text: str, *, what: str) -> dict[str, object]:
    """Read a JSON object.

    Raises:
        CorruptFileError: The text is not one.
    """
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(f"{what} is not JSON: {error}", hint="make the file again") from error
    if not isinstance(tree, dict):
        raise CorruptFileError(f"{what} is not a JSON object but {type(tree).__name__}", hint="make the file again")
    return tree


def card_from_json(text: str) -> BackboneCard:
    """Inverse of what an embeddings file holds; entries that this version does not know are left out.

    Raises:
        CorruptFileError: An entry is missing.
    """
    tree = _known(BackboneCard, from_json(text, what="the card"))
    try:
        card = BackboneCard(**tree)  # type: ignore[arg-type] # checked by the next line
        return dataclasses.replace(card, mean=_triple(card.mean), std=_triple(card.std), dim=int(card.dim))
    except (TypeError, ValueError) as error:
        raise CorruptFileError(f"the card is not a backbone card: {error}", hint="make the file again") from error


def identity_from_json(text: str) -> FeatureIdentity:
    """Read an identity.

    Raises:
        CorruptFileError: The text is none.
    """
    tree = from_json(text, what="the identity")
    parts = {"backbone": dict, "tiles": dict, "stain": str, "compute": str, "dtype": str}
    if set(tree) != set(parts) or not all(isinstance(tree[name], kind) for name, kind in parts.items()):
        raise CorruptFileError(f"the identity is not an identity: {text[:80]}", hint="make the file again")
    return FeatureIdentity(**tree)  # type: ignore[arg-type] # checked by the lines above


def provenance_from_json(text: str) -> Provenance:
    """Read a provenance; entries that this version does not know are left out.

    Raises:
        CorruptFileError: An entry is missing.
    """
    try:
        return Provenance(**_known(Provenance, from_json(text, what="the provenance")))  # type: ignore[arg-type]
    except TypeError as error:
        raise CorruptFileError(f"the provenance is not a provenance: {error}", hint="make the file again") from error


def _known(kind: type, tree: dict[str, object]) -> dict[str, object]:
    names = {item.name for item in dataclasses.fields(kind)}
    return {name: value for name, value in tree.items() if name in names}


def _triple(values: object) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)  # type: ignore[attr-defined]
    return red, green, blue


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return vars(value)  # not asdict, which copies every entry
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, Path):
        return value.as_posix()
    raise TypeError(f"{type(value).__name__} has no form in JSON")
