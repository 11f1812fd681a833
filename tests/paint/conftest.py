"""One small painted cohort for the room, and a maker of small recipes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from histotl.paint.cohort import PaintConfig, paint_cohort
from histotl.paint.slide import paint_slide
from histotl.paint.stains import site_stain
from histotl.paint.values import PaintedSlide, SlideRecipe

SMALL = PaintConfig(
    patients=3, second_slides=1, size_um=(420.0, 340.0), artefact_share=0.3, foreign=("adipose",), seed=5
)


@pytest.fixture(scope="session")
def small_config() -> PaintConfig:
    return SMALL


@pytest.fixture(scope="session")
def small_cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of the cohort.csv of five small slides."""
    return paint_cohort(tmp_path_factory.mktemp("cohort"), SMALL)


@pytest.fixture(scope="session")
def paint_small() -> Callable[..., PaintedSlide]:
    """Paint a small slide; keyword arguments go to the recipe."""

    def paint(seed: int = 0, **recipe: object) -> PaintedSlide:
        stain = site_stain("A", np.random.default_rng(99))
        values = {"slide_id": "S", "background": "normal", "stain": stain, "size_um": (420.0, 340.0)} | recipe
        return paint_slide(SlideRecipe(**values), np.random.default_rng(seed))

    return paint
