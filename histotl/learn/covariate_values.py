"""What a table says of cases beside their labels: numbers and words, as they stand there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd

from histotl.core.errors import TableError, UsageError
from histotl.learn.covariate_specs import Covariate
from histotl.learn.labels import clean_map, label_text, number_targets, shown
from histotl.learn.reading import column
from histotl.learn.task import MISSING_WORDS, REST, Task

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class CovariateValues:
    """What a table says of n cases.

    Args:
        covariates: m of them.
        table: float64 (n, m): the number, or the place of the category among ``words``; NaN where missing.
        words: Of each covariate the categories that were found, sorted; none of numbers.
    """

    covariates: tuple[Covariate, ...]
    table: Floats
    words: tuple[tuple[str, ...], ...]

    def __len__(self) -> int:
        return len(self.table)

    def take(self, cases: npt.NDArray[np.int64]) -> CovariateValues:
        """Those of some cases, in the order given."""
        return replace(self, table=self.table[cases])

    def of(self, covariate: Covariate) -> tuple[Floats, tuple[str, ...]]:
        """The column (n,) of one covariate, and its words.

        Raises:
            UsageError: It is none of these.
        """
        if covariate not in self.covariates:
            given = ", ".join(each.name for each in self.covariates) or "nothing"
            fact = f"the network is told {covariate}, and of these cases is known: {given}"
            raise UsageError(fact, hint="read the table with the covariates of the model")
        place = self.covariates.index(covariate)
        return self.table[:, place], self.words[place]


def read_values(
    frame: pd.DataFrame, covariates: Sequence[Covariate], cases: Sequence[Sequence[int]], *, absent: bool = False
) -> CovariateValues:
    """What a table says of cases of one row or more.

    Of several rows a number is the mean, and a category must be the same in all.

    Args:
        frame: The table.
        covariates: What is read of it.
        cases: Rows of each case.
        absent: A column that the table does not have is missing in all cases.

    Raises:
        TableError: No such column; no number in a column of numbers; a word that looks like a missing value; or the
            rows of a case have several categories.
    """
    table, words = np.full((len(cases), len(covariates)), np.nan), list[tuple[str, ...]]()
    for place, covariate in enumerate(covariates):
        if absent and covariate.column not in frame.columns:
            words.append(())
            continue
        flag = f"column= of covariate {covariate.name}"
        values, names = _read(covariate, column(frame, covariate.column, flag=flag))
        table[:, place] = [_of_case(covariate, values[list(rows)], names) for rows in cases]
        words.append(names)
    return CovariateValues(covariates=tuple(covariates), table=table, words=tuple(words))


def unknown_values(covariates: Sequence[Covariate], n: int) -> CovariateValues:
    """Of n cases of which nothing is known."""
    table = np.full((n, len(covariates)), np.nan)
    return CovariateValues(covariates=tuple(covariates), table=table, words=((),) * len(covariates))


def refuse_answers(covariates: Sequence[Covariate], tasks: Sequence[Task], others: Mapping[str, str]) -> None:
    """Raise if a network would be told what it is to find out, or which case it is.

    Args:
        covariates: What networks are told.
        tasks: What they are to find out.
        others: Column that is no fact about a case -> what it holds.

    Raises:
        UsageError: A covariate is the column of a task, or one of the others.
    """
    labels = {name: task.name for task in tasks for name in task.reads}
    for covariate in covariates:
        where = f"covariate {covariate.name!r} is the column {covariate.column!r}"
        if covariate.column in labels:
            fact = f"{where}, which task {labels[covariate.column]!r} is to predict"
            raise UsageError(fact, hint="drop the covariate, or the task")
        if covariate.column in others:
            fact = f"{where}, which holds the {others[covariate.column]}"
            raise UsageError(fact, hint="drop the covariate: it is no fact that new cases could share")


def _read(covariate: Covariate, texts: Sequence[str | None]) -> tuple[Floats, tuple[str, ...]]:
    """Values (rows,), and the words whose places they are."""
    mapping = clean_map(covariate.map)
    where = f"covariate {covariate.name!r}: column {covariate.column!r}"
    cleaned = [label_text(text) for text in texts]
    found = [t if t is None or not mapping else mapping.get(t, mapping.get(REST, t)) for t in cleaned]
    if covariate.kind == "number":
        try:
            return number_targets(where, found), ()
        except TableError as error:
            cure = f"write {covariate.name}: category for words; a word that means missing needs map={{'word': None}}"
            raise TableError(error.message, hint=cure) from error
    words = tuple(sorted({text for text in found if text is not None}))
    doubtful = [word for word in words if word.lower() in MISSING_WORDS]
    if doubtful:
        cure = f"leave these cells empty, or train with map={{{doubtful[0]!r}: None}}"
        raise TableError(f"{where} holds {shown(doubtful)}, which looks like a missing value", hint=cure)
    place = {word: float(i) for i, word in enumerate(words)}
    return np.array([np.nan if text is None else place[text] for text in found], dtype=np.float64), words


def _of_case(covariate: Covariate, values: Floats, words: Sequence[str]) -> float:
    """One value of several rows."""
    known = values[~np.isnan(values)]
    if not len(known):
        return float("nan")
    if len(known) == 1 or (known == known[0]).all():
        return float(known[0])
    if covariate.kind == "number":
        return float(known.mean())
    several = [words[int(value)] for value in sorted(set(known.tolist()))]
    cure = "give all rows of a bag the same value, or use finer bags"
    raise TableError(f"covariate {covariate.name!r}: the rows of one case hold {shown(several)}", hint=cure)
