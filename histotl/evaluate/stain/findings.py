"""All findings of a comparison of stains as one frozen value, and as plain JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from histotl.core.intervals import CONFIDENCE, Estimate
from histotl.core.provenance import Provenance
from histotl.embed.config import TileConfig
from histotl.embed.summary import Failure
from histotl.evaluate.results import FEW
from histotl.evaluate.stain.bench import PLAIN, Measured
from histotl.evaluate.stain.colour import Change
from histotl.evaluate.stain.config import StainConfig
from histotl.evaluate.stain.origins import Origins
from histotl.evaluate.stain.robustness import FlipRate, Sturdiness
from histotl.evaluate.stain.vectors import Vectors

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class MethodSpread:
    """Spread of colour before and after one method, over the slides that it could be fitted on.

    Args:
        method: Name as given.
        slides: Their number.
        spreads: Measure -> change; empty with too few slides.
    """

    method: str
    slides: int
    spreads: Mapping[str, Change]


@dataclass(frozen=True, kw_only=True)
class SiteProbe:
    """How well the site can be told from the features of one backbone.

    Args:
        backbone: Its name.
        method: Name as given; empty for the features without normalisation, of all slides.
        slides: Slides in the probe.
        tiles: Their tiles.
        change: AUC without and with the method on these slides; None when it could not be measured.
        reason: Why not; empty when it could.
        notes: What was left out.
    """

    backbone: str
    method: str
    slides: int
    tiles: int
    change: Change | None
    reason: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class StainEvidence:
    """Everything that the page shows.

    Args:
        config: What was asked for.
        tiling: Which tiles.
        methods: Name as given -> canonical spec.
        backbones: Name on the card -> canonical spec.
        slides: What was measured on each slide.
        failures: Slides that could not be used, and methods that failed on one.
        origins: Sites and patients.
        spread: Spread without normalisation of all slides; empty with too few.
        spreads: One a method.
        probes: Site probes; empty without a table.
        sturdiness: One a backbone and strength.
        flips: One a task, unit and strength; empty without a model.
        provenance: Who made this.
    """

    config: StainConfig
    tiling: TileConfig
    methods: Mapping[str, str]
    backbones: Mapping[str, str]
    slides: tuple[Measured, ...]
    failures: tuple[Failure, ...]
    origins: Origins
    spread: Mapping[str, Estimate]
    spreads: tuple[MethodSpread, ...]
    probes: tuple[SiteProbe, ...]
    sturdiness: tuple[Sturdiness, ...]
    flips: tuple[FlipRate, ...]
    provenance: Provenance

    @property
    def unit_name(self) -> str:
        """What is drawn by the bootstrap and held out together."""
        return "patient" if self.origins.by_patient else "slide"

    @property
    def units(self) -> int:
        """Their number."""
        return len({self.origins.group(slide.slide_id) for slide in self.slides})

    @property
    def n_tiles(self) -> int:
        """Tiles that were looked at."""
        return sum(slide.tiles for slide in self.slides)

    @property
    def ok(self) -> bool:
        """Whether nothing failed on any slide; the command line exits with 1 otherwise."""
        return not self.failures

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know before the numbers."""
        notes = []
        if self.failures:
            notes.append(f"{len(self.failures)} failures, listed below: what failed on a slide is in no figure of it")
        if 0 < self.units < FEW:
            notes.append(f"only {self.units} {self.unit_name}{'s'[: self.units != 1]}: all intervals are rough")
        if not self.origins.asked:
            notes.append("no table of sites was given (--sites), so how well the site can be told was not measured")
        elif not self.origins.by_patient:
            notes.append(
                f"the table of sites has no column {self.config.patient!r}: slides were held out one by one, and a "
                "patient with several slides may stand on both sides"
            )
        notes += dict.fromkeys(note for probe in self.probes for note in probe.notes)
        return tuple(notes)

    @property
    def headline(self) -> tuple[tuple[object, ...], ...]:
        """Rows of (figure, method, slides, before, after, change)."""
        entries = [("colour spread, ΔE", s.method, s.slides, s.spreads.get("delta_e")) for s in self.spreads]
        entries += [(f"site AUC, {p.backbone}", p.method, p.slides, p.change) for p in self.probes if p.method]
        return tuple(
            (figure, method, slides, change.before.value, change.after.value, change.difference.value)
            for figure, method, slides, change in entries
            if change is not None
        )

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON; undefined numbers are None."""
        return {
            "schema": SCHEMA,
            "n_slides": len(self.slides),
            "n_tiles": self.n_tiles,
            "interval": {
                "method": "percentile bootstrap",
                "draws": self.unit_name,
                "units": self.units,
                "resamples": self.config.bootstrap,
                "confidence": CONFIDENCE,
                "seed": self.config.seed,
            },
            "methods": dict(self.methods),
            "backbones": dict(self.backbones),
            "colour_spread": {
                "none": _estimates(self.spread),
                **{
                    one.method: {"n_slides": one.slides} | {name: c.to_dict() for name, c in one.spreads.items()}
                    for one in self.spreads
                },
            },
            "site_auc": [_probe(probe) for probe in self.probes],
            "robustness": [_sturdiness(one) for one in self.sturdiness],
            "flips": [
                {"task": f.task, "unit": f.unit, "strength": f.strength, "n": f.answers, **f.rate.to_dict()}
                for f in self.flips
            ],
            "slides": [self._slide(slide) for slide in self.slides],
            "failures": [asdict(failure) for failure in self.failures],
            "notes": list(self.notes),
            "config": asdict(self.config),
            "tiling": asdict(self.tiling),
            "provenance": asdict(self.provenance),
        }

    def _slide(self, slide: Measured) -> dict[str, object]:
        return {
            "slide_id": slide.slide_id,
            "site": self.origins.sites.get(slide.slide_id),
            "patient": self.origins.patients.get(slide.slide_id),
            "tiles": slide.tiles,
            "tiles_of_slide": slide.planned,
            "mean_colour": {name or "none": asdict(colour) for name, colour in slide.colours.items()},
            "stain_vectors": {name or "none": _vectors(found) for name, found in slide.vectors.items()},
            "fitted": {name: dict(state) for name, state in slide.states.items()},
        }


def _probe(probe: SiteProbe) -> dict[str, object]:
    entry: dict[str, object] = {
        "backbone": probe.backbone,
        "method": probe.method or "none",
        "n_slides": probe.slides,
        "n_tiles": probe.tiles,
        "not_measured": probe.reason or None,
    }
    if probe.change is None:
        return entry
    if probe.method == PLAIN:
        return entry | {"auc": probe.change.before.to_dict()}
    return entry | probe.change.to_dict()


def _sturdiness(one: Sturdiness) -> dict[str, object]:
    names = ("cosine", "low", "centred", "centred_low")
    estimates = _estimates({name: getattr(one, name) for name in names})
    return {"backbone": one.backbone, "strength": one.strength, **estimates}


def _vectors(found: Vectors | str) -> dict[str, object]:
    return {"not_found": found} if isinstance(found, str) else {**asdict(found), "angle_deg": found.angle_deg}


def _estimates(estimates: Mapping[str, Estimate]) -> dict[str, object]:
    return {name: value.to_dict() for name, value in estimates.items()}
