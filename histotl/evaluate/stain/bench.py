"""Everything that is measured on one slide: colours, stain vectors, features, and what jitter does to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from histotl.core.errors import SlideError
from histotl.core.values import SlideEntry
from histotl.embed._models import Model
from histotl.embed.summary import Failure
from histotl.evaluate.metrics import Ints
from histotl.evaluate.stain.colour import Colour, mean_colours
from histotl.evaluate.stain.config import StainConfig
from histotl.evaluate.stain.judge import Judge
from histotl.evaluate.stain.robustness import restain
from histotl.evaluate.stain.sample import Sample
from histotl.evaluate.stain.vectors import Vectors, find_vectors
from histotl.image.stain.base import StainNormalizer, StainTransform

BATCH = 32
"""Tiles in one forward pass."""

SHOWN_TILES = 2
"""Tiles of a slide that are shown on the page."""

PLAIN = ""
"""Name of the tiles as they are."""

MODEL = "model"
"""Name of the trained model among what can fail on a slide."""

Answers = Mapping[tuple[str, str], Ints]
"""(Task, what is answered for) -> class of every answer."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """One slide.

    Args:
        slide_id: Its name.
        tiles: Tiles that were looked at.
        planned: Tiles of the slide in all.
        states: Method -> what it fitted.
        refused: Method -> why it could not be fitted; the trained model is called ``model``.
        colours: Method, or empty for none -> mean colour of the stained pixels.
        vectors: The same -> stain vectors, or why there are none.
        features: (Index of the backbone, method or empty) -> (n, d).
        jittered: (Index of the backbone, strength, draw) -> (n, d).
        answers: Of the model, without jitter; None without a model.
        jittered_answers: (Strength, draw) -> the same.
        pictures: Method or empty -> uint8 RGB (m, h, w, 3).
    """

    slide_id: str
    tiles: int
    planned: int
    states: Mapping[str, Mapping[str, object]]
    refused: Mapping[str, Failure]
    colours: Mapping[str, Colour]
    vectors: Mapping[str, Vectors | str]
    features: Mapping[tuple[int, str], npt.NDArray[np.float32]]
    jittered: Mapping[tuple[int, float, int], npt.NDArray[np.float32]]
    answers: Answers | None
    jittered_answers: Mapping[tuple[float, int], Answers]
    pictures: Mapping[str, np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What is the same for all slides of a run.

    Args:
        config: Options.
        methods: Name as given -> stain normaliser.
        estimator: Finds stain vectors.
        models: The backbones.
        judge: The trained model, or None.
        device: Where the backbones are.
    """

    config: StainConfig
    methods: Mapping[str, StainNormalizer]
    estimator: StainNormalizer
    models: tuple[Model, ...]
    judge: Judge | None
    device: torch.device

    def measure(self, entry: SlideEntry, sample: Sample) -> Measured:
        """Measure one slide; a normaliser that fails on it is recorded, and the others go on.

        Raises:
            NoTissueError: Not one pixel of the sample is stained.
        """
        fitted: dict[str, StainTransform] = {}
        refused: dict[str, Failure] = {}
        for name, method in self.methods.items():
            try:
                fitted[name] = method.fit(sample.fit)
            except SlideError as error:
                refused[name] = Failure.of(entry.slide_id, entry.path, error)
        seen = {PLAIN: sample.seen, **{name: self._apply(one, sample.seen) for name, one in fitted.items()}}
        shown = np.sort(np.argsort(-sample.tissue, kind="stable")[:SHOWN_TILES])
        features = {(i, name): self._embed(i, tiles) for name, tiles in seen.items() for i in range(len(self.models))}
        jittered = self._jittered(entry.slide_id, sample.seen)
        answers: Answers | None = None
        changed: dict[tuple[float, int], Answers] = {}
        try:
            answers, changed = self._judged(entry.slide_id, sample, features, jittered)
        except SlideError as error:
            refused[MODEL] = Failure.of(entry.slide_id, entry.path, error)
        return Measured(
            slide_id=entry.slide_id,
            tiles=len(sample.seen),
            planned=sample.planned,
            states={name: transform.state for name, transform in fitted.items()},
            refused=refused,
            colours=mean_colours(seen),
            vectors={
                PLAIN: find_vectors(self.estimator, sample.fit),
                **{name: find_vectors(self.estimator, self._apply(one, sample.fit)) for name, one in fitted.items()},
            },
            features={key: _array(found) for key, found in features.items()},
            jittered={key: _array(found) for key, found in jittered.items()},
            answers=answers,
            jittered_answers=changed,
            pictures={name: tiles[shown].numpy() for name, tiles in seen.items()},
        )

    def _jittered(self, slide_id: str, tiles: torch.Tensor) -> dict[tuple[int, float, int], torch.Tensor]:
        """Features of the tiles under every draw of jitter, without normalisation."""
        found = {}
        for strength, draw in self._draws():
            restained = self._restain(slide_id, tiles, strength, draw)
            for i in range(len(self.models)):
                found[i, strength, draw] = self._embed(i, restained)
        return found

    def _judged(
        self,
        slide_id: str,
        sample: Sample,
        features: Mapping[tuple[int, str], torch.Tensor],
        jittered: Mapping[tuple[int, float, int], torch.Tensor],
    ) -> tuple[Answers | None, dict[tuple[float, int], Answers]]:
        """Answers of the model without and with jitter; its normaliser is fitted anew on what was restained."""
        judge = self.judge
        if judge is None:
            return None, {}
        if judge.stain_spec == "none":
            made = {draw: jittered[judge.backbone, *draw] for draw in self._draws()}
            before = features[judge.backbone, PLAIN]
        else:
            made = {
                draw: self._normalised(
                    judge, self._restain(slide_id, sample.fit, *draw), self._restain(slide_id, sample.seen, *draw)
                )
                for draw in self._draws()
            }
            before = self._normalised(judge, sample.fit, sample.seen)
        after: dict[tuple[float, int], Answers] = {
            draw: judge.answers(found, sample.coords_l0) for draw, found in made.items()
        }
        return judge.answers(before, sample.coords_l0), after

    def _draws(self) -> list[tuple[float, int]]:
        return [(strength, draw) for strength in self.config.jitter for draw in range(self.config.draws)]

    def _restain(self, slide_id: str, tiles: torch.Tensor, strength: float, draw: int) -> torch.Tensor:
        return restain(tiles, strength=strength, slide_id=slide_id, draw=draw, seed=self.config.seed)

    def _normalised(self, judge: Judge, fit: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        return self._embed(judge.backbone, self._apply(judge.stain.fit(fit), seen))

    def _apply(self, transform: StainTransform, tiles: torch.Tensor) -> torch.Tensor:
        return torch.cat([transform(part.to(self.device)).cpu() for part in torch.split(tiles, BATCH)])

    def _embed(self, index: int, tiles: torch.Tensor) -> torch.Tensor:
        """Features on the CPU, float32 (n, d)."""
        return torch.cat([self.models[index](part.to(self.device)).cpu() for part in torch.split(tiles, BATCH)])


def _array(features: torch.Tensor) -> npt.NDArray[np.float32]:
    found: npt.NDArray[np.float32] = features.numpy()
    return found
