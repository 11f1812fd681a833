"""Paint a whole cohort: slides, truth, and the table that ties them together.

OUT/cohort.csv                  one row a slide; `path` is relative to OUT
OUT/slides/P001-1.tiff          tiled JPEG pyramids, vendor generic-tiff
OUT/truth/P001-1.geojson        outlines of tissues and artefacts, level-0 pixels (opens in QuPath)
OUT/truth/P001-1.tissue.png     exact tissue mask, level 0, 1 bit
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from histotl.core.atomic import atomic_path, write_text
from histotl.core.progress import Report, Step, silent
from histotl.paint.config import PaintConfig
from histotl.paint.plan import COLUMNS, PlannedSlide, plan_cohort
from histotl.paint.slide import paint_slide
from histotl.paint.values import PaintedSlide, Region
from histotl.wsi.pyramid import write_pyramid

__all__ = ["PaintConfig", "geojson", "paint_cohort"]


def paint_cohort(out: Path, config: PaintConfig, *, report: Report = silent) -> Path:
    """Paint the cohort into a folder.

    Args:
        out: Folder, made if missing; files of the same names are replaced.
        config: What to paint.
        report: Called after each slide.

    Returns:
        Path of ``cohort.csv``, which is written last.
    """
    plan = plan_cohort(config)
    (out / "slides").mkdir(parents=True, exist_ok=True)
    (out / "truth").mkdir(exist_ok=True)
    for done, slide_id in enumerate(_paint_all(plan, out, config), start=1):
        report(Step(stage="paint", done=done, total=len(plan), item=slide_id))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(slide.row() for slide in plan)
    write_text(out / "cohort.csv", text.getvalue())
    return out / "cohort.csv"


def _paint_all(plan: list[PlannedSlide], out: Path, config: PaintConfig) -> Iterator[str]:
    """Names of the slides as they get done."""
    if config.workers == 1:
        for slide in plan:
            yield _paint_one(slide, out, config.seed)
        return
    # "spawn": forking a process that has threads (torch, OpenSlide) running can hang it.
    with ProcessPoolExecutor(config.workers, mp_context=get_context("spawn")) as pool:
        for job in as_completed([pool.submit(_paint_one, slide, out, config.seed) for slide in plan]):
            yield job.result()


def _paint_one(slide: PlannedSlide, out: Path, seed: int) -> str:
    painted = paint_slide(slide.recipe, np.random.default_rng([seed, slide.stream]))
    name = slide.recipe.slide_id
    with atomic_path(out / "truth" / f"{name}.tissue.png") as part:
        Image.fromarray(painted.tissue).save(part, format="PNG")
    write_text(out / "truth" / f"{name}.geojson", geojson(painted))
    write_pyramid(out / "slides" / f"{name}.tiff", painted.image, mpp=painted.mpp)
    return name


def geojson(painted: PaintedSlide) -> str:
    """Regions of a painted slide as a GeoJSON FeatureCollection in level-0 pixels, in QuPath's dialect."""
    return json.dumps({"type": "FeatureCollection", "features": [_feature(region) for region in painted.regions]})


def _feature(region: Region) -> dict[str, object]:
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": region.rings},
        "properties": {"objectType": "annotation", "classification": {"name": region.name}, "kind": region.kind},
    }
