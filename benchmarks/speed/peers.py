"""Other tools, called where they were cloned: nothing of theirs is in this repository.

``--peers DIR`` (or ``HISTOTL_PEERS``) names a folder with git checkouts called ``TRIDENT``, ``CLAM`` and ``torchmil``.
Each runs in a process of its own, with its own loops and defaults, and tells the time that the loop took; importing is
not counted. What they import beside torch may be in a virtual environment ``DIR/venv``, whose Python is then used; the
packages of this one are visible to it. Libraries that only read slides are packages, there or in this environment.
"""

from __future__ import annotations

import os
import site
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt

from benchmarks.speed.harness import Measured, NotMeasured
from benchmarks.speed.inputs import Inputs
from benchmarks.speed.workers import ROOT, Worker, python


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One tool, running.

    Args:
        name: Of its checkout.
        worker: Its process.
    """

    name: str
    worker: Worker

    def segment(self, slide: Path, out: Path, tile_px: int) -> Measured:
        """Open, find tissue, lay the grid; the result is the number of tiles."""
        answer = self.worker.call(do="segment", slide=str(slide), out=str(out), tile_px=tile_px)
        return Measured(value=answer["seconds"], cpu=answer["cpu"], result=answer["tiles"])

    def embed(self, slide: Path, coords: Path, out: Path, network: str) -> Measured:
        """Read, prepare, embed, file; the result is the file of features.

        Args:
            slide: The slide.
            coords: The tiles, in TRIDENT's format, of which CLAM's is made.
            out: Folder for the features.
            network: ``sample`` for none, or a name of timm (random weights, ours).
        """
        question = {"slide": str(slide), "coords": str(coords), "out": str(out), "network": network}
        answer = self.worker.call(do="embed", **question)
        return Measured(value=answer["seconds"], cpu=answer["cpu"], result=Path(answer["file"]))

    def train(self, features: Path, out: Path, *, n_val: int, epochs: int, batch: int) -> Measured:
        """Train gated attention; the result is the number of bags seen.

        Args:
            features: Folder with a file for each slide.
            out: Folder for the same in the tool's form; made once.
            n_val: Slides that validate, the last ones.
            epochs: Passes over the others.
            batch: Bags a step, where the tool has such a choice.
        """
        question = {"features": str(features), "out": str(out), "n_val": n_val, "epochs": epochs, "batch": batch}
        answer = self.worker.call(do="train", **question)
        return Measured(value=answer["seconds"], cpu=answer["cpu"], result=answer["bags"])


def start(inputs: Inputs, name: str, part: str = "") -> Peer:
    """Start a peer.

    Args:
        inputs: Where checkouts are.
        name: Of one.
        part: ``training`` for its training loops.

    Raises:
        NotMeasured: It is not there.
    """
    if inputs.peers is None:
        raise NotMeasured(f"give --peers, a folder with a checkout of {name}")
    checkout = inputs.peers / name
    if not checkout.is_dir():
        raise NotMeasured(f"--peers has no checkout called {name}")
    interpreter, environment = _interpreter(inputs)
    command = [interpreter, "-m", "benchmarks.speed.peer", f"{name} {part}".strip(), str(checkout)]
    return Peer(name=name, worker=Worker(command, environment))


PACKAGES = {"cucim": "cucim-cu12", "fastslide": "fastslide", "tiffslide": "tiffslide"}
"""Libraries that read slides: module -> package."""


@dataclass(frozen=True, kw_only=True)
class Library:
    """A library that reads tiles of a slide, in a process of its own.

    Args:
        worker: The process.
    """

    worker: Worker

    def read(
        self, corners: npt.NDArray[np.integer], side: int, *, threads: int = 1, save: Path | None = None
    ) -> Measured:
        """Seconds for tiles at level-0 corners (n, 2); ``save`` gets their pixels, uint8 (n, side, side, 3)."""
        answer = self.worker.call(
            corners=corners.tolist(), side=side, threads=threads, save="" if save is None else str(save)
        )
        return Measured(value=answer["seconds"], cpu=answer["cpu"])


def start_library(inputs: Inputs, name: str, slide: Path) -> Library:
    """Open a slide with a library.

    Args:
        inputs: Where other tools are.
        name: A key of :data:`PACKAGES`.
        slide: The file.

    Raises:
        NotMeasured: It cannot be imported.
    """
    interpreter, environment = _interpreter(inputs)
    everything = {**os.environ, **environment}
    tried = [interpreter, "-c", f"import {name}"]
    found = subprocess.run(tried, env=everything, capture_output=True, text=True, check=False)
    if found.returncode:
        why = (found.stderr.strip().splitlines() or ["it ended without a word"])[-1]
        raise NotMeasured(f"{why}; pip install {PACKAGES[name]}, into the peers' venv or beside histotl")
    return Library(worker=Worker([interpreter, "-m", "benchmarks.speed.peer_reading", name, str(slide)], environment))


def _interpreter(inputs: Inputs) -> tuple[str, dict[str, str]]:
    """What runs other tools, and its environment: packages of this one are visible to it."""
    own = None if inputs.peers is None else inputs.peers / "venv" / "bin" / "python"
    paths = [str(ROOT), *site.getsitepackages()]
    environment = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONWARNINGS": "ignore"}
    return (str(own) if own is not None and own.is_file() else python()), environment


def features(file: Path) -> npt.NDArray[np.float32]:
    """Features of a file that a peer wrote."""
    with h5py.File(file, "r") as opened:
        return np.asarray(opened["features"], np.float32)


def agreeing(ours: Callable[[], npt.NDArray[np.floating]], file: Path) -> bool:
    """Whether a peer's features are ours to 1e-4."""
    wanted, found = ours(), features(file)
    return wanted.shape == found.shape and bool(np.allclose(found, wanted, rtol=1e-4, atol=1e-4))
