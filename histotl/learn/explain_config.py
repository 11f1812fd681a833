"""Settings of explanations. The fields are the keyword arguments, the TOML keys and the flags."""

from __future__ import annotations

from dataclasses import dataclass

from histotl.core.errors import UsageError
from histotl.learn.choice import as_tuple, settle


@dataclass(frozen=True, kw_only=True)
class ExplainConfig:
    """What is explained, how, and on how many slides the explanations are put to the test."""

    method: tuple[str, ...] = ()
    """Explanations as specs, such as 'leave_one_out'; empty: all that have a meaning for the model."""
    task: tuple[str, ...] = ()
    """Names of the tasks to explain; empty: all."""
    backbone: str = ""
    """Which features to use when the folder holds those of several backbones."""
    table: str = ""
    """CSV that names the slides to explain, their bags where the model was trained with --bag, and says the
    covariates that the model is told; empty: all slides that have features."""
    splits: tuple[str, ...] = ()
    """Explain only slides whose split in the table is one of these, such as 'test'."""
    keep: str = ""
    """Condition on the quality figures that tiles must satisfy; empty: the one that the model was trained with."""
    covariates_missing: bool = False
    """Explain although the table lacks columns of covariates that the model is told, or there is no table: they then
    count as missing in all slides."""
    faithfulness: int = 20
    """Slides on which the methods are compared by taking tiles away: validation slides where their features are there,
    else those explained. 0 for no comparison."""
    seed: int = 0
    """Seed of the orders by chance and of the bootstrap."""
    device: str = "auto"
    """'auto', 'cpu', 'cuda' or 'cuda:1'."""

    def __post_init__(self) -> None:
        for name in ("method", "task"):
            object.__setattr__(self, name, as_tuple(getattr(self, name)))
        settle(self)
        if self.faithfulness < 0 or self.seed < 0:
            fact = f"faithfulness is {self.faithfulness}, seed is {self.seed}"
            raise UsageError(fact, hint="give 0 or more, such as 20 slides")
