"""What networks are told beside the tiles: age, site, sex and other facts of a table as columns of numbers.

A number is measured from the mean of the training rows that have one, in units of their deviation; a category is a
column for each category of the training rows and one for ``other``, measured from their shares. So 0 says nothing: it
stands where a value is missing, beside a column that is 1 there and 0 elsewhere. A column that was the same in all
training rows is 0 for ever, because its weights are still those that the network began with: what training has never
seen (a missing value, a new site) then counts as the mean instead of as noise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict, cast

import numpy as np
import numpy.typing as npt

from histotl.core.errors import TableError, UsageError
from histotl.learn.covariate_specs import Covariate, covariate_from_dict
from histotl.learn.covariate_values import CovariateValues, Floats
from histotl.learn.labels import shown

Blocks = tuple[tuple[str, str, int], ...]
"""(covariate, how it is fused, number of columns), the last column of each being that of missing values."""

OTHER = "other"
"""What a category is called that training did not have, or too rarely."""


class Account(TypedDict):
    """How many cases are not as the training rows were in one covariate."""

    missing: int
    """Cases without it."""
    other: dict[str, int]
    """Category that training did not have, or too rarely -> cases with it."""


@dataclass(frozen=True, kw_only=True)
class FittedCovariate:
    """A covariate with what the training rows said of it.

    Args:
        covariate: What it is.
        classes: Its categories; those of numbers none.
        mean: Of the number; or the share of each category and of ``other``.
        std: Of the number; 1 of categories.
        live: Whether each column, and at the end that of missing values, differed between training rows.
    """

    covariate: Covariate
    classes: tuple[str, ...] = ()
    mean: tuple[float, ...]
    std: float = 1.0
    live: tuple[bool, ...]

    @property
    def knows_other(self) -> bool:
        """Whether training has seen a category that counts as ``other``."""
        return self.covariate.kind == "category" and self.live[-2]

    @property
    def knows_missing(self) -> bool:
        """Whether training has seen missing values."""
        return self.live[-1]

    def encode(self, values: Floats, words: Sequence[str]) -> npt.NDArray[np.float32]:
        """Values (n,) as columns float32 (n, w)."""
        raw = _columns(self.covariate, self.classes, values, words)
        missing = np.isnan(values)
        silent = missing.copy()
        if self.covariate.kind == "category" and not self.knows_other:
            silent |= raw[:, -1] > 0
        scaled = np.where(silent[:, None], 0.0, (raw - np.array(self.mean)) / self.std)
        columns: Floats = np.column_stack([scaled, missing]) * np.array(self.live)
        return columns.astype(np.float32)

    def account(self, values: Floats, words: Sequence[str]) -> Account:
        """What of values (n,) is not as in training."""
        counts = _counts(values, words)
        other = {word: counts[word] for word in sorted(counts) if word not in self.classes}
        return Account(missing=int(np.isnan(values).sum()), other=other)

    def sayings(self, values: Floats, words: Sequence[str]) -> list[str]:
        """The same in sentences, with what becomes of it; none where all is as in training."""
        found, name, said = self.account(values, words), self.covariate.name, []
        if found["missing"]:
            means = "" if self.knows_missing else "; no training case was without it, so this counts as the mean"
            said.append(f"covariate {name}: missing in {found['missing']} of {len(values)} cases{means}")
        if found["other"]:
            means = f"counts as {OTHER!r}" if self.knows_other else "counts as the mean"
            fact = f"{shown(list(found['other']))} in {sum(found['other'].values())} of {len(values)} cases"
            said.append(f"covariate {name}: {fact} is none of {shown(self.classes)} of training, and {means}")
        return said


@dataclass(frozen=True, kw_only=True)
class CovariateEncoder:
    """Makes columns for networks of what tables say.

    Args:
        parts: What is put beside the vector of a bag, then what modulates it; empty where networks are told nothing.
    """

    parts: tuple[FittedCovariate, ...] = ()

    @property
    def covariates(self) -> tuple[Covariate, ...]:
        """What tables have to say, in the order of the columns."""
        return tuple(part.covariate for part in self.parts)

    @property
    def blocks(self) -> Blocks:
        """How the columns are grouped."""
        return tuple((part.covariate.name, part.covariate.fusion, len(part.live)) for part in self.parts)

    def encode(self, values: CovariateValues | None) -> npt.NDArray[np.float32] | None:
        """Columns float32 (n, c) of n cases; None where networks are told nothing.

        Raises:
            UsageError: Nothing is known of the cases, not even that it is missing, or it is of other covariates.
        """
        if not self.parts:
            return None
        if values is None:
            names = ", ".join(covariate.column for covariate in self.covariates)
            cure = "predict with a table that has them, or with --covariates-missing"
            raise UsageError(f"the model is told {names}, and these cases come without", hint=cure)
        return np.concatenate([part.encode(*values.of(part.covariate)) for part in self.parts], axis=1)

    def account(self, values: CovariateValues) -> dict[str, Account]:
        """Covariate -> what of the cases is not as in training."""
        return {part.covariate.name: part.account(*values.of(part.covariate)) for part in self.parts}

    def sayings(self, values: CovariateValues) -> list[str]:
        """The same in sentences; none where all is as in training."""
        return [text for part in self.parts for text in part.sayings(*values.of(part.covariate))]

    def to_list(self) -> list[dict[str, object]]:
        """Plain values for JSON."""
        return [
            {
                "covariate": part.covariate.to_dict(),
                "classes": list(part.classes),
                "mean": list(part.mean),
                "std": part.std,
                "live": list(part.live),
            }
            for part in self.parts
        ]


NO_COVARIATES = CovariateEncoder()


def encoder_from_list(entries: Sequence[Mapping[str, object]]) -> CovariateEncoder:
    """Inverse of :meth:`CovariateEncoder.to_list`."""
    return CovariateEncoder(
        parts=tuple(
            FittedCovariate(
                covariate=covariate_from_dict(cast("Mapping[str, object]", entry["covariate"])),
                classes=tuple(cast("list[str]", entry["classes"])),
                mean=tuple(cast("list[float]", entry["mean"])),
                std=cast("float", entry["std"]),
                live=tuple(cast("list[bool]", entry["live"])),
            )
            for entry in entries
        )
    )


def fit_covariates(values: CovariateValues | None, *, hides: bool = False) -> CovariateEncoder:
    """What training rows say of each covariate; it does not depend on their order.

    Args:
        values: Of the training rows, and of no others; None where networks are told nothing.
        hides: Training hides values, so that networks learn from that what a missing one means.

    Raises:
        TableError: No training row has a value, or no category is common enough.
    """
    if values is None:
        return NO_COVARIATES
    parts = [_fit(covariate, *values.of(covariate), hides=hides) for covariate in values.covariates]
    return CovariateEncoder(parts=tuple(sorted(parts, key=lambda part: part.covariate.fusion == "film")))


def _fit(covariate: Covariate, values: Floats, words: Sequence[str], *, hides: bool) -> FittedCovariate:
    where, in_column = f"covariate {covariate.name!r}", f"column {covariate.column!r}"
    # Sorted, so that sums round alike whatever the order of the rows.
    known = np.sort(values[~np.isnan(values)])
    if not len(known):
        raise TableError(f"{where}: no training row has a value in {in_column}", hint="fill it, or drop the covariate")
    classes = tuple(sorted(word for word, count in _counts(known, words).items() if count >= covariate.least))
    if words and not classes:
        fact = f"{where}: no category of {in_column} has {covariate.least} training rows"
        raise TableError(fact, hint="lower least=, or drop the covariate")
    raw = _columns(covariate, classes, known, words)
    differs = (raw.max(axis=0) > raw.min(axis=0)).tolist()
    return FittedCovariate(
        covariate=covariate,
        classes=classes,
        mean=tuple(raw.mean(axis=0).tolist()),
        std=float(raw.std()) if covariate.kind == "number" and differs[0] else 1.0,
        live=(*differs, hides or len(known) < len(values)),
    )


def _counts(values: Floats, words: Sequence[str]) -> Counter[str]:
    """Category -> rows with it; nothing for numbers."""
    return Counter(words[int(value)] for value in values[~np.isnan(values)].tolist()) if words else Counter[str]()


def _columns(covariate: Covariate, classes: Sequence[str], values: Floats, words: Sequence[str]) -> Floats:
    """Columns (n, k) before they are scaled; 0 where the value is missing."""
    if covariate.kind == "number":
        return np.nan_to_num(values)[:, None]
    order = {name: place for place, name in enumerate(classes)}
    places = np.array([order.get(word, len(classes)) for word in words], dtype=np.int64)
    raw, rows = np.zeros((len(values), len(classes) + 1)), np.flatnonzero(~np.isnan(values))
    raw[rows, places[values[rows].astype(np.int64)]] = 1.0
    return raw
