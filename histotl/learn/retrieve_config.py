"""Settings of retrieval. The fields are the keyword arguments, the TOML keys and the flags."""

from __future__ import annotations

from dataclasses import dataclass

from histotl.core.errors import UsageError
from histotl.learn.choice import as_tuple, settle


@dataclass(frozen=True, kw_only=True)
class RetrieveConfig:
    """Whose neighbours are looked for, and among which training rows."""

    ids: tuple[str, ...] = ()
    """Names of the slides, patches or bags to look for, as in the features (repeat the flag for more);
    empty: all that have features."""
    task: str = ""
    """Name of the task whose neighbours are meant; empty: the only one that keeps training rows."""
    other_patients: bool = True
    """Leave out training rows of the query's own patient, as the table or the training table names it; the query itself
    is always left out."""
    table: str = ""
    """CSV with the patients and labels of the queries, and their bags where the model was trained with --bag; with
    labels, the lists are measured."""
    splits: tuple[str, ...] = ()
    """Look only for rows whose split in the table is one of these, such as 'test'."""
    backbone: str = ""
    """Which features to use when the folder holds those of several backbones."""
    keep: str = ""
    """Condition on the quality figures that tiles must satisfy; empty: the one that the model was trained with."""
    seed: int = 0
    """Seed of the bootstrap."""
    device: str = "auto"
    """'auto', 'cpu', 'cuda' or 'cuda:1'."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids", as_tuple(self.ids))
        settle(self)
        if self.seed < 0:
            raise UsageError(f"seed is {self.seed}", hint="give 0 or more")
