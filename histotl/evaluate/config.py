"""What `evaluate` can be told; one field is one keyword, one TOML key and one flag."""

from __future__ import annotations

from dataclasses import dataclass

from histotl.core.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Options of :func:`histotl.evaluate.stage.evaluate_predictions`."""

    split: str = "test"
    """Rows of the table to evaluate: those with this value in the split column."""

    split_column: str = "split"
    """Column of the table that names the split of each row."""

    id_column: str = ""
    """Column of the table that names the rows as the predictions do; empty: the one of training."""

    patient: str = "patient"
    """Column of the table that names the patient; the bootstrap draws patients, not rows."""

    site: str = "site"
    """Column of the table that names the hospital or scanner, for the out-of-distribution table; may be absent."""

    ood: str = "ood"
    """Column of the table that marks out-of-distribution rows (1, true, yes); rows of a split `ood` count as well."""

    bootstrap: int = 2000
    """Resamples of the bootstrap; 0 gives no intervals."""

    seed: int = 0
    """Seed of the bootstrap."""

    features: str | None = None
    """Folder that `embed` wrote, for the pictures; default: the one that the predictions were made from."""

    max_slides: int = 12
    """Slides shown with pictures, the most wrong first."""

    title: str = "Evaluation"
    """Heading of the report."""

    remark: str = ""
    """A sentence shown under the heading, such as where the slides are from."""

    allow_missing: bool = False
    """Evaluate although some rows of the split have no prediction; they are listed in the report."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "split", self.split.strip().lower())
        if self.bootstrap < 0:
            raise UsageError(f"bootstrap is {self.bootstrap}", hint="give 0 (no intervals) or more, such as 2000")
        if self.seed < 0:
            raise UsageError(f"seed is {self.seed}", hint="give 0 or more")
        if self.max_slides < 0:
            raise UsageError(f"max_slides is {self.max_slides}", hint="give 0 (no pictures) or more")
