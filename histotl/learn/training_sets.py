"""What networks are trained on, and what tells whether two trainings are the same."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from histotl.core.provenance import Provenance, file_digest
from histotl.learn.bags import BagStore
from histotl.learn.cohort import Cohort
from histotl.learn.config import TrainConfig
from histotl.learn.covariates import fit_covariates
from histotl.learn.fit import Labelled
from histotl.learn.resume import digest

Level = Literal["tile", "slide"]


def labelled_part(cohort: Cohort, split: str, level: Level, store: BagStore, config: TrainConfig) -> Labelled:
    """Bags and labels of one split, see :func:`labelled_rows`."""
    return labelled_rows(cohort, cohort.cases.in_split(split), level, store, config)


def labelled_rows(
    cohort: Cohort, rows: npt.NDArray[np.int64], level: Level, store: BagStore, config: TrainConfig
) -> Labelled:
    """Bags and labels of some cases; at tile level every tile of a slide has the slide's labels."""
    bags = cohort.bags.subset(rows)
    targets = {name: target[rows] for name, target in cohort.cases.targets.items()}
    groups = cohort.cases.groups()
    groups = None if groups is None else groups[rows]
    if level == "slide" or store.kind == "patches":
        return Labelled(bags=bags, targets=targets, groups=groups)
    tiles, owner = bags.tiles(config.max_tiles, config.seed)
    return Labelled(
        bags=tiles,
        targets={name: target[owner] for name, target in targets.items()},
        owner=owner,
        groups=None if groups is None else groups[owner],
    )


def training_key(cohort: Cohort, store: BagStore, level: Level, config: TrainConfig) -> str:
    """Digest of everything that the networks depend on."""
    # Where and in how much memory it is computed may change between two starts.
    settings = {name: value for name, value in asdict(config).items() if name not in ("device", "memory_gb")}
    versions = Provenance.now()
    # Files of other tools carry no digest of their features.
    files = [
        store.digests.get(path.stem)
        or store.digests.get(str(path))
        or [str(path), path.stat().st_size, path.stat().st_mtime_ns]
        for path in store.source.paths
    ]
    parts = [labelled_part(cohort, split, level, store, config) for split in ("train", "val")]
    # Their columns and not their words: what the table says of test cases changes nothing.
    encoder = fit_covariates(parts[0].bags.covariates)
    columns = [encoder.encode(part.bags.covariates) for part in parts]
    facts = {
        "config": settings,
        "level": level,
        "tasks": [task.to_dict() for task in cohort.cases.tasks],
        "features": [files, sorted(store.digests.items())],
        "pretrained": file_digest(Path(config.pretrained), whole=True) if config.pretrained else None,
        "covariates": encoder.to_list(),
        "versions": [versions.made_by, versions.libraries.get("torch")],
    }
    arrays = [
        array
        for part in parts
        for array in (
            part.bags.rows,
            part.bags.offsets,
            *(part.targets[name] for name in sorted(part.targets)),
            *(() if part.groups is None else (part.groups,)),
        )
    ]
    return digest(facts, [*arrays, *(each for each in columns if each is not None)])
