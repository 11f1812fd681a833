"""What the quality figures of the evaluated slides come to: what a person should look at before the numbers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from histotl.embed._quality import slide_quality
from histotl.embed.summary import SlideQuality
from histotl.evaluate.source import Features
from histotl.image.measures import DOUBTFUL

WORST = 3
"""Slides that are named for each figure."""


@dataclass(frozen=True, kw_only=True)
class QualityRow:
    """One figure over all slides.

    Args:
        column: Its name.
        condition: What a tile worth a look has.
        share: Share of such tiles among all.
        slides: Slides of which more than a tenth of the tiles have it.
        worst: Name and share of the slides with most of it, where they have any.
    """

    column: str
    condition: str
    share: float
    slides: int
    worst: tuple[tuple[str, float], ...]


def quality_of(features: Features, names: Collection[str]) -> tuple[SlideQuality, ...]:
    """Quality figures of the evaluated rows' files: of slides those that are named, of a patch set the whole set.

    Files that were made without figures have none.
    """
    identity = None if features.example is None else features.example.identity
    is_patch_set = identity is not None and "patches" in identity.tiles
    return slide_quality(path for name, path in features.files.items() if is_patch_set or name in names)


def quality_rows(slides: Sequence[SlideQuality]) -> tuple[QualityRow, ...]:
    """Each figure over all slides that have it."""
    rows = []
    for column, condition in DOUBTFUL.items():
        found = [slide for slide in slides if column in slide.doubtful]
        tiles = sum(slide.n_tiles for slide in found)
        if not tiles:
            continue
        worst = sorted(found, key=lambda slide: (-slide.doubtful[column], slide.slide_id))[:WORST]
        rows.append(
            QualityRow(
                column=column,
                condition=condition,
                share=sum(slide.doubtful[column] * slide.n_tiles for slide in found) / tiles,
                slides=sum(slide.doubtful[column] > 0.1 for slide in found),
                worst=tuple((slide.slide_id, slide.doubtful[column]) for slide in worst if slide.doubtful[column] > 0),
            )
        )
    return tuple(rows)
