"""What `stain` can be told; one field is one keyword, one TOML key and one flag."""

from __future__ import annotations

from dataclasses import dataclass

from histotl.core.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class StainConfig:
    """Options of :func:`histotl.evaluate.stain.stage.compare_stains`."""

    stain: tuple[str, ...] = ("macenko", "reinhard")
    """Stain normalisers to compare, as specs; see `histotl list stain`. Each is compared with none."""

    backbone: tuple[str, ...] = ("scattering",)
    """Backbones whose features are looked at, as specs; see `histotl list backbone`."""

    tiles: int = 32
    """Tissue tiles of each slide that are looked at, spread evenly over it; stains are fitted as `embed` fits them."""

    sites: str = ""
    """CSV with one row a slide that names its site (hospital, scanner); empty: how well the site can be told is not
    measured."""

    site: str = "site"
    """Column of that table with the site."""

    patient: str = "patient"
    """Column of that table with the patient, all of whose slides are held out together; may be absent."""

    id_column: str = "slide_id"
    """Column of that table with the slide; the names that `embed` understands are found by themselves."""

    jitter: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2)
    """Strengths of the stain jitter, each used as sigma and as bias of `hed_jitter`."""

    draws: int = 2
    """Times that each slide is restained at every strength; 0 leaves the jitter out."""

    model: str = ""
    """Model folder made by `train`: how often its predictions change under the jitter; empty for none."""

    vectors: str = "macenko"
    """What the stain vectors on the page are estimated with, before and after every normaliser."""

    bootstrap: int = 2000
    """Resamples of the bootstrap; 0 gives no intervals."""

    seed: int = 0
    """Seed of folds, jitter and bootstrap."""

    device: str = "auto"
    """Where the backbones run: auto, cpu, cuda, cuda:1 …"""

    max_slides: int = 24
    """Slides shown with pictures of tiles, spread evenly over all."""

    title: str = "Stain"
    """Heading of the page."""

    remark: str = ""
    """A sentence shown under the heading, such as where the slides are from."""

    def __post_init__(self) -> None:
        for name in ("stain", "backbone"):
            value = getattr(self, name)
            if isinstance(value, str) or not value:
                raise UsageError(f"{name} is {value!r}", hint=f"give one spec or more, as --{name} SPEC, repeated")
            if len(set(value)) < len(value):
                raise UsageError(f"{name} names one twice: {', '.join(value)}", hint="name each once")
        if "none" in self.stain:
            raise UsageError("stain names none", hint="leave it out: every method is compared with none anyway")
        for name, least in (("tiles", 1), ("draws", 0), ("bootstrap", 0), ("seed", 0), ("max_slides", 0)):
            if getattr(self, name) < least:
                raise UsageError(f"{name} is {getattr(self, name)}", hint=f"give {least} or more")
        for strength in self.jitter:
            if not 0 <= strength < 1:
                raise UsageError(f"jitter is {strength}", hint="give strengths from 0 to below 1, such as 0.05")
        object.__setattr__(self, "jitter", tuple(sorted(set(self.jitter))))
        if self.model and not (self.draws and self.jitter):
            raise UsageError("a model without jitter", hint="give --draws 1 or more, or leave out --model")
