"""Where slides come from: the table of sites and patients, joined by the slides' names."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import pandas as pd

from histotl.core.errors import TableError
from histotl.evaluate.cases import refuse_twice
from histotl.evaluate.stain.config import StainConfig
from histotl.learn.reading import column, read_table, with_ids


@dataclass(frozen=True, kw_only=True)
class Origins:
    """What the table says of the slides of a run.

    Args:
        sites: Slide -> site, for those that have one.
        patients: Slide -> patient, for those that have one.
        by_patient: Whether the table has a column of patients.
        asked: Whether there was a table at all.
    """

    sites: Mapping[str, str] = field(default_factory=dict)
    patients: Mapping[str, str] = field(default_factory=dict)
    by_patient: bool = False
    asked: bool = False

    def group(self, slide_id: str) -> str:
        """What is held out and drawn together: the patient, or a slide whose patient is unknown alone.

        The two kinds of names are kept apart: a patient may be called as a slide is.
        """
        patient = self.patients.get(slide_id)
        return f"slide {slide_id}" if patient is None else f"patient {patient}"


def read_origins(config: StainConfig, slide_ids: Collection[str]) -> Origins:
    """Read the table of sites; nothing is known of any slide when there is none.

    Args:
        config: Names the table and its columns.
        slide_ids: Slides of the run.

    Raises:
        TableError: It cannot be read, has no column of slides or sites, or names a slide twice or none of the run.
    """
    if not config.sites:
        return Origins()
    frame = with_ids(read_table(config.sites), config.id_column)
    names = column(frame, config.id_column, flag="--id-column")
    sites = column(frame, config.site, flag="--site")
    named = [name for name in names if name]
    refuse_twice(pd.Index(named, name=config.id_column), config.sites)
    wanted = set(slide_ids)
    if not wanted & set(named):
        fact = f"{config.sites} names none of the slides, such as {min(wanted)!r}"
        raise TableError(fact, hint=f"the column {config.id_column!r} must hold names of slides; set it by --id-column")
    by_patient = config.patient in frame.columns
    patients = column(frame, config.patient, flag="--patient") if by_patient else [None] * len(names)
    rows = [row for row in zip(names, sites, patients, strict=True) if row[0] in wanted]
    return Origins(
        sites={name: site for name, site, _ in rows if name and site},
        patients={name: patient for name, _, patient in rows if name and patient},
        by_patient=by_patient,
        asked=True,
    )
