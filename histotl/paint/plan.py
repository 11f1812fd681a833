"""Decide a cohort before painting it: who has what, stained where, with which artefacts, in which split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from histotl.paint.config import PaintConfig
from histotl.paint.stains import SITES, Site, brown_stain, rescaled, site_stain
from histotl.paint.values import ARTEFACTS, DYSPLASIA, TYPES, Artefact, SlideRecipe, Tissue

COLUMNS: Final = ("slide_id", "path", "patient", "site", "type", "dysplasia", "split", "artefacts", "tissue")
_UPTAKE: Final = {"adipose": (0.10, 0.38), "muscle": (0.35, 1.6)}
"""Uptake of the two dyes against that of mucosa: fat is nearly empty, muscle is pink with few nuclei."""

_TEST_SHARE, _VAL_SHARE = 0.3, 0.2
_PLAN_STREAM, _BUBBLE_STREAM = 1_000_003, 1_000_033
"""Random streams of the plan and of who gets bubbles, apart from the streams 0, 1, 2 … of the slides."""


@dataclass(frozen=True, kw_only=True)
class PlannedSlide:
    """One row of the cohort and the recipe behind it.

    Args:
        recipe: What to paint.
        patient: Patient identifier.
        site: ``A`` or ``B``.
        type: Worst type on the slide, empty when the slide is foreign.
        dysplasia: ``none``, ``low``, ``high``, or empty when missing.
        split: ``train``, ``val``, ``test`` or ``ood``.
        stream: Number of the slide's own random stream.
    """

    recipe: SlideRecipe
    patient: str
    site: Site
    type: str = ""
    dysplasia: str = ""
    split: str = "ood"
    stream: int = 0

    def row(self) -> dict[str, str]:
        """The slide's row of ``cohort.csv``."""
        return {
            "slide_id": self.recipe.slide_id,
            "path": f"slides/{self.recipe.slide_id}.tiff",
            "patient": self.patient,
            "site": self.site,
            "type": self.type,
            "dysplasia": self.dysplasia,
            "split": self.split,
            "artefacts": ";".join(self.recipe.artefacts),
            "tissue": "colon" if self.split != "ood" else self.recipe.slide_id.removeprefix("OOD-"),
        }


@dataclass(frozen=True, kw_only=True)
class _Patient:
    name: str
    site: Site
    type: str
    dysplasia: str
    split: str
    hidden: bool = False


def plan_cohort(config: PaintConfig) -> list[PlannedSlide]:
    """Decide every slide of the cohort without painting: who has what, stained where, in which split.

    Args:
        config: What cohort to paint.
    """
    rng = np.random.default_rng([config.seed, _PLAN_STREAM])
    patients = _patients(config, rng)
    owners = [*patients, *patients[: config.second_slides]]
    artefacts = _deal_artefacts(len(owners), config, rng)
    seen: Counter[str] = Counter()
    slides = []
    for stream, (patient, marks) in enumerate(zip(owners, artefacts, strict=True)):
        seen[patient.name] += 1
        slides.append(
            PlannedSlide(
                recipe=_recipe(f"{patient.name}-{seen[patient.name]}", patient, marks, config, rng),
                patient=patient.name,
                site=patient.site,
                type=patient.type if "type" in config.labels else "",
                dysplasia="" if patient.hidden or "dysplasia" not in config.labels else patient.dysplasia,
                split=patient.split,
                stream=stream,
            )
        )
    return slides + list(_foreign(config, len(slides), rng))


def _patients(config: PaintConfig, rng: np.random.Generator) -> list[_Patient]:
    """Patients in the order of their names, every type spread over grades, sites and splits."""
    names = [f"{config.prefix}{i + 1:03d}" for i in rng.permutation(config.patients)]
    patients: list[_Patient] = []
    for k, kind in enumerate(TYPES):
        count = len(range(k, config.patients, len(TYPES)))
        test, val = round(_TEST_SHARE * count), round(_VAL_SHARE * count)
        for i in range(count):
            grade = DYSPLASIA[1 + i % 2] if kind == "adenoma" else DYSPLASIA[0]
            # Sites alternate, and within each grade too.
            site = SITES[(i + i // 2) % 2] if kind == "adenoma" else SITES[i % 2]
            split = "test" if i < test else "val" if i < test + val else "train"
            name = names[len(patients)]
            patients.append(_Patient(name=name, site=site, type=kind, dysplasia=grade, split=split))
    hidden = _hide_labels(patients, round(config.missing_dysplasia * config.patients), rng)
    patients = [replace(patient, hidden=patient.name in hidden) for patient in patients]
    return sorted(patients, key=lambda patient: patient.name)


def _hide_labels(patients: list[_Patient], count: int, rng: np.random.Generator) -> set[str]:
    """Names of some `count` patients whose dysplasia is not told; never the last of its grade in a split."""
    hidden: set[str] = set()
    left = Counter((patient.dysplasia, patient.split) for patient in patients)
    for i in rng.permutation(len(patients)):
        patient = patients[i]
        group = (patient.dysplasia, patient.split)
        if len(hidden) < count and left[group] > 1:
            hidden.add(patient.name)
            left[group] -= 1
    return hidden


def _deal_artefacts(slides: int, config: PaintConfig, rng: np.random.Generator) -> list[tuple[Artefact, ...]]:
    """Artefacts of every slide; dealt without looking at the type."""
    dealt: list[list[Artefact]] = [[] for _ in range(slides)]
    kinds: tuple[Artefact, ...] = ARTEFACTS
    for kind in kinds:
        # Bubbles have a generator of their own, so that whoever asks for them gets the same cohort otherwise.
        bubble = kind == "bubble"
        source = np.random.default_rng([config.seed, _BUBBLE_STREAM]) if bubble else rng
        share = config.bubble_share if bubble else config.artefact_share
        each = max(1, round(share * slides)) if share > 0 else 0
        for i in source.permutation(slides)[:each]:
            dealt[i].append(kind)
    return [tuple(marks) for marks in dealt]


def _recipe(
    slide_id: str, patient: _Patient, marks: tuple[Artefact, ...], config: PaintConfig, rng: np.random.Generator
) -> SlideRecipe:
    lesions: dict[tuple[str, str], Tissue] = {
        ("serrated", "none"): "serrated",
        ("adenoma", "low"): "adenoma_low",
        ("adenoma", "high"): "adenoma_high",
    }
    lesion = lesions.get((patient.type, patient.dysplasia))
    return SlideRecipe(
        slide_id=slide_id,
        background="normal",
        lesion=lesion,
        lesion_fraction=float(rng.uniform(0.3, 0.95)) if lesion else 0.0,
        fragments=int(rng.integers(1, 4)),
        size_um=_size(config, rng),
        mpp=config.mpp,
        stain=site_stain(patient.site, rng),
        artefacts=marks,
    )


def _foreign(config: PaintConfig, first: int, rng: np.random.Generator) -> Iterator[PlannedSlide]:
    for i, name in enumerate(config.foreign):
        site = SITES[i % 2]
        background: Tissue = "adipose" if name == "adipose" else "muscle" if name == "muscle" else "normal"
        stain = brown_stain(rng) if name == "brown" else rescaled(site_stain(site, rng), *_UPTAKE.get(name, (1.0, 1.0)))
        recipe = SlideRecipe(
            slide_id=f"OOD-{name}",
            background=background,
            stain=stain,
            fragments=1 + i % 2,
            size_um=_size(config, rng),
            mpp=config.mpp,
        )
        yield PlannedSlide(recipe=recipe, patient=f"X{i + 1:03d}", site=site, stream=first + i)


def _size(config: PaintConfig, rng: np.random.Generator) -> tuple[float, float]:
    w, h = (float(side * rng.uniform(0.9, 1.1)) for side in config.size_um)
    return (w, h)
