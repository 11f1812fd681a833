"""Feature rows gathered into packed bags. Nothing is padded, nothing is loaded twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from histotl.core.condition import Condition
from histotl.core.errors import IdentityError, StoreError, UsageError
from histotl.core.values import BackboneCard, FeatureIdentity
from histotl.learn.covariate_values import CovariateValues
from histotl.learn.device_rows import DeviceRows
from histotl.learn.rows import FileRows, Indices, Rows
from histotl.learn.sampling import CPU, thin, tiles_of
from histotl.store.embeddings import Embeddings, ViewSpec, open_embeddings
from histotl.store.layout import find_features

Kind = Literal["slides", "patches"]

THIN_ROWS = 1 << 22
"""Rows among which tiles are drawn at a time."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Packed:
    """Bags in one matrix.

    Args:
        x: float32 (N, D), bag after bag; on the CPU, or where the rows lie (:mod:`histotl.learn.device_rows`).
        offsets: int64 (B + 1,) on the CPU; bag b holds rows ``offsets[b]:offsets[b + 1]``.
        coords: int64 (N, 2) level-0 corners beside ``x``, with the slide of each tile as a third column where bags
            join several; None for patches.
        covariates: What is known of the B bags beside their rows; None for nothing.
    """

    x: torch.Tensor
    offsets: torch.Tensor
    coords: torch.Tensor | None = None
    covariates: CovariateValues | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Bags:
    """Bags of rows. At tile level every bag has one row.

    Args:
        source: Where the rows are.
        rows: int64 (M,): row numbers, bag after bag.
        offsets: int64 (B + 1,).
        covariates: What is known of each bag beside its rows; None for nothing.
        slides: Ascending int64 (S,): first row of each slide, where bags join several; None where each bag is of one.
    """

    source: Rows
    rows: Indices
    offsets: Indices
    covariates: CovariateValues | None = None
    slides: Indices | None = None

    def __post_init__(self) -> None:
        empty = np.flatnonzero(np.diff(self.offsets) < 1)
        if len(empty):
            raise StoreError(f"bag {int(empty[0])} holds no tile", hint="drop the slide, or tile it again")

    @classmethod
    def of(cls, source: Rows, groups: Sequence[Indices]) -> Bags:
        """Bags that hold the given rows of ``source``."""
        rows = np.concatenate(groups) if len(groups) else np.zeros(0, dtype=np.int64)
        return cls(source=source, rows=rows, offsets=np.cumsum([0, *map(len, groups)]).astype(np.int64))

    @classmethod
    def singles(cls, source: Rows, rows: Indices) -> Bags:
        """One bag a row."""
        return cls(source=source, rows=rows, offsets=np.arange(len(rows) + 1, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def sizes(self) -> Indices:
        """Rows of each bag, int64 (B,)."""
        return np.diff(self.offsets)

    @property
    def _device(self) -> torch.device:
        return self.source.device if isinstance(self.source, DeviceRows) else CPU

    def _known(self, bags: Indices) -> CovariateValues | None:
        """What is known of some bags."""
        return None if self.covariates is None else self.covariates.take(bags)

    def rows_of(self, bag: int) -> Indices:
        """Row numbers of one bag."""
        return self.rows[self.offsets[bag] : self.offsets[bag + 1]]

    def at(self, source: Rows) -> Bags:
        """The same bags, read from elsewhere under the same row numbers."""
        return replace(self, source=source)

    def subset(self, bags: Indices) -> Bags:
        """Some of the bags, in the order given."""
        places, offsets = tiles_of(self.offsets, bags)
        return replace(self, rows=self.rows[places], offsets=offsets, covariates=self._known(bags))

    def thinned(self, max_tiles: int, seed: int) -> Bags:
        """The same bags with at most ``max_tiles`` rows each, chosen once."""
        rng, groups = np.random.default_rng(seed), []
        for chunk in self.chunks(THIN_ROWS):
            places, offsets = thin(*tiles_of(self.offsets, chunk), max_tiles, rng)
            groups += np.split(self.rows[places], offsets[1:-1])
        return replace(Bags.of(self.source, groups), covariates=self.covariates, slides=self.slides)

    def tiles(self, max_tiles: int, seed: int) -> tuple[Bags, Indices]:
        """Every tile as a bag of its own, at most ``max_tiles`` a bag; and the bag that each came from."""
        kept = self.thinned(max_tiles, seed)
        owner = np.repeat(np.arange(len(self)), kept.sizes).astype(np.int64)
        return replace(Bags.singles(self.source, kept.rows), covariates=self._known(owner)), owner

    def gather(
        self,
        bags: Indices,
        *,
        max_tiles: int = 0,
        rng: np.random.Generator | None = None,
        mixed: bool = False,
        view: int | None = None,
    ) -> Packed:
        """Read bags.

        Args:
            bags: int64 (b,): which, in this order.
            max_tiles: Most tiles of one bag, the rest left out at random; 0 for all.
            rng: For ``max_tiles`` and ``mixed``.
            mixed: Every tile is plain, or one of its augmented views, all equally likely.
            view: The augmented view that all tiles are of.
        """
        places, offsets = tiles_of(self.offsets, bags)
        if max_tiles and rng is not None:
            places, offsets = thin(places, offsets, max_tiles, rng, self._device)
        rows, ends, known = self.rows[places], torch.from_numpy(offsets), self._known(bags)
        views = None if view is None else np.full(len(rows), view, dtype=np.int64)
        if mixed and rng is not None:
            views = rng.integers(-1, self.source.n_views, size=len(rows))
        if isinstance(self.source, DeviceRows):
            at = torch.from_numpy(rows).to(self._device)
            of = None if views is None else torch.from_numpy(views).to(self._device)
            x, coords = self.source.take(at, of), self.source.take_coords(at)
        else:
            corners = self.source.coords(rows)
            x = torch.from_numpy(self.source.read(rows, views))
            coords = None if corners is None else torch.from_numpy(corners)
        return Packed(x=x, offsets=ends, coords=with_slides(coords, rows, self.slides), covariates=known)

    def chunks(self, max_rows: int) -> Iterator[Indices]:
        """Runs of neighbouring bags with at most ``max_rows`` rows in all (or one larger bag)."""
        start = 0
        while start < len(self):
            stop = int(np.searchsorted(self.offsets, self.offsets[start] + max_rows, side="right")) - 1
            stop = max(stop, start + 1)
            yield np.arange(start, stop, dtype=np.int64)
            start = stop


@dataclass(frozen=True, kw_only=True, eq=False)
class BagStore:
    """All features that a folder holds for one backbone.

    Args:
        source: The rows.
        kind: ``slides``: one file a slide; ``patches``: rows are patch images.
        ids: Slides, or the paths of patches.
        starts: int64 (len(ids),): first row of each id.
        stops: int64 (len(ids),): the row after its last one.
        identity: What they were made by; None in files of other tools.
        card: The backbone; None in files of other tools.
        digests: Id of slide or patch set -> digest of its file; the path, where two patch sets have one id.
        views: The augmented views that were asked for.
        kept: bool (rows of ``source``,): those that may be used; None for all.
        emptied: Names that have features, but no row that may be used; they are not among :attr:`ids`.
    """

    source: FileRows
    kind: Kind
    ids: tuple[str, ...]
    starts: Indices
    stops: Indices
    identity: FeatureIdentity | None
    card: BackboneCard | None
    digests: dict[str, str]
    views: ViewSpec | None = None
    kept: npt.NDArray[np.bool_] | None = None
    emptied: tuple[str, ...] = ()

    @property
    def dim(self) -> int:
        """Length of a feature vector."""
        return self.source.dim

    @property
    def id_column(self) -> str:
        """Name of the column that names the ids in tables made here."""
        return "slide_id" if self.kind == "slides" else "path"

    @classmethod
    def open(
        cls,
        features: Path | str,
        *,
        more: Sequence[str] = (),
        backbone: str = "",
        views: bool = False,
        keep: str = "",
        memory_gb: float = 0.0,
    ) -> BagStore:
        """Open every embeddings file of a folder, or one file.

        Args:
            features: The folder or file.
            more: More of them, of the same kind.
            backbone: Which, when there are several.
            views: Augmented views are wanted too.
            keep: Condition on the quality figures that rows must satisfy to be used; empty for all rows.
            memory_gb: Memory that features may take, in units of 2**30 bytes; 0 for half of what is free.

        Raises:
            StoreError: There are none, one has no row, or an id comes twice: two slides of that name, or two patches.
            CorruptFileError: A file is damaged.
            IdentityError: Files differ in backbone, tiling, stain or number format, or in the views wanted.
            UsageError: There are no views, though they are wanted; slides and patch sets are mixed, or several
                backbones are there and none is chosen; or a condition names what was not measured.
        """
        condition = Condition.parse(keep) if keep else None
        places = [Path(features), *map(Path, more)]
        features = " and ".join(map(str, places))
        files = [open_embeddings(path) for place in places for path in find_features(place, backbone=backbone or None)]
        _check_same(files)
        spec = _common_views(files) if views else None
        items = [file.items for file in files]
        if any(items) and not all(items):
            slide = next(file for file, names in zip(files, items, strict=True) if not names)
            raise UsageError(f"{features} mixes patch sets with slides ({slide.path.name})", hint="name one file")
        kind: Kind = "patches" if any(items) else "slides"
        ids = [name for names in items for name in names] if kind == "patches" else [file.slide_id for file in files]
        if len(set(ids)) < len(ids):
            twice = next(name for name, count in Counter(ids).items() if count > 1)
            cure = "name one file, or remove one; slides of two cohorts need names of their own"
            raise StoreError(f"{features}: two rows of features are called {twice!r}", hint=cure)
        source = FileRows(files, 0 if spec is None else spec.count, memory_gb)
        starts = np.arange(source.n + 1, dtype=np.int64) if kind == "patches" else source.starts
        kept = None if condition is None else np.concatenate([_kept(file, condition) for file in files])
        left = np.ones(len(ids), bool) if kept is None else np.add.reduceat(kept, starts[:-1]) > 0
        if not left.any():
            fact = f"{features}: no row of {source.n} satisfies {keep!r}"
            raise StoreError(fact, hint="loosen the condition, or look at the figures of the files")
        return cls(
            source=source,
            kind=kind,
            ids=tuple(name for name, some in zip(ids, left, strict=True) if some),
            emptied=tuple(name for name, some in zip(ids, left, strict=True) if not some),
            kept=kept,
            starts=starts[:-1][left],
            stops=starts[1:][left],
            identity=files[0].identity,
            card=files[0].card,
            digests=_digests(files),
            views=spec,
        )

    def bags(self, groups: Sequence[Sequence[int]]) -> Bags:
        """Bags that join the rows of the given ids (by place in :attr:`ids`)."""
        spans = [[self._rows(i) for i in group] for group in groups]
        bags = Bags.of(self.source, [np.concatenate(span).astype(np.int64) for span in spans])
        joins = self.kind == "slides" and any(len(group) > 1 for group in groups)
        return replace(bags, slides=self.starts) if joins else bags

    def names(self, rows: Indices) -> list[str]:
        """The slide or patch that each row is of."""
        return [self.ids[place] for place in np.searchsorted(self.starts, rows, side="right") - 1]

    def spans(self, rows: Indices) -> list[tuple[str, slice]]:
        """The ids that rows, slide after slide, are of, each with its part of them."""
        of = np.searchsorted(self.starts, rows, side="right") - 1
        begins = np.flatnonzero(np.diff(of, prepend=-1))
        ends = [*begins[1:].tolist(), len(rows)]
        return [(self.ids[of[a]], slice(a, b)) for a, b in zip(begins.tolist(), ends, strict=True)]

    def what_is_left_out(self, keep: str) -> str:
        """One sentence about the names that a condition leaves no row of."""
        n, shown = len(self.emptied), ", ".join(self.emptied[:5]) + (" …" if len(self.emptied) > 5 else "")
        return f"{n} of the {self.kind} have no row that satisfies {keep!r}: {shown}"

    def _rows(self, place: int) -> Indices:
        rows = np.arange(self.starts[place], self.stops[place], dtype=np.int64)
        return rows if self.kept is None else rows[self.kept[rows]]


def with_slides(coords: torch.Tensor | None, rows: Indices, slides: Indices | None) -> torch.Tensor | None:
    """Corners (N, 2) of rows with the slide of each as a third column, where ``slides`` says their first rows."""
    if coords is None or slides is None:
        return coords
    of = torch.from_numpy(np.searchsorted(slides, rows, side="right")).to(coords)
    return torch.cat([coords, of[:, None]], dim=1)


def _digests(files: Sequence[Embeddings]) -> dict[str, str]:
    """Name of each file -> its digest."""
    count = Counter(file.slide_id for file in files)
    return {file.slide_id if count[file.slide_id] == 1 else str(file.path): file.digest for file in files}


def _kept(file: Embeddings, condition: Condition) -> npt.NDArray[np.bool_]:
    """Which rows of a file satisfy a condition on their figures."""
    quality = file.quality
    if quality is None:
        cure = "run histotl embed again, with --quality all or the measures that the condition names"
        raise StoreError(f"{file.path} has no quality figures, {condition.text!r} asks for some", hint=cure)
    condition.check(quality.spec.columns)
    return condition.holds({name: quality.column(name) for name in condition.columns})


def _check_same(files: Sequence[Embeddings]) -> None:
    first = files[0]
    for file in files:
        if file.n < 1:
            raise StoreError(f"{file.path} holds no tile", hint="remove the file, or tile the slide again")
        if (file.identity is None) != (first.identity is None):
            bare = file if file.identity is None else first
            raise IdentityError(f"{bare.path} does not say what it was made by, others do", hint="embed it again")
        if file.identity is not None and first.identity is not None and file.identity != first.identity:
            lines = "; ".join(first.identity.differences(file.identity))
            raise IdentityError(f"{_both(first, file)} differ: {lines}", hint="embed them alike")
        # Files of other tools carry no identity; their width is all that can be compared.
        if file.dim != first.dim:
            raise IdentityError(
                f"{file.path.name} is {file.dim} wide, {first.path.name} {first.dim}", hint="embed again"
            )


def _both(first: Embeddings, file: Embeddings) -> str:
    """Two files by name, or by path where they are called alike."""
    same = first.path.name == file.path.name
    return f"{first.path} and {file.path}" if same else f"{first.path.name} and {file.path.name}"


def _common_views(files: Sequence[Embeddings]) -> ViewSpec:
    """The augmented views that all files have.

    Raises:
        UsageError: None has any.
        IdentityError: Not all have the same.
    """
    first = files[0]
    for file in files:
        if file.view_spec != first.view_spec:
            fact = f"{_both(first, file)} differ in views: {first.view_spec} != {file.view_spec}"
            raise IdentityError(fact, hint="embed all of them with the same --views, --augment and --seed")
    if first.view_spec is None:
        fact = f"the features in {first.path.parent} have no augmented views"
        raise UsageError(fact, hint="run histotl embed with --views 4 --augment 'd4 + hed_jitter', or do without")
    return first.view_spec
