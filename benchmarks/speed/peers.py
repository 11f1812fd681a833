"""Other tools, called where they were cloned: nothing of theirs is in this repository.

``--peers DIR`` (or ``HISTOTL_PEERS``) names a folder with git checkouts called ``TRIDENT``, ``CLAM`` and ``torchmil``.
Each runs in a process of its own, with its own loops and defaults, and tells the time that the loop took; importing is
not counted. What they import beside torch may be in a virtual environment ``DIR/venv``, whose Python is then used; the
packages of this one are visible to it.
"""

from __future__ import annotations

import os
import site
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
    own = inputs.peers / "venv" / "bin" / "python"
    paths = [str(ROOT), *site.getsitepackages()]
    environment = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONWARNINGS": "ignore"}
    command = [
        str(own) if own.is_file() else python(),
        "-m",
        "benchmarks.speed.peer",
        f"{name} {part}".strip(),
        str(checkout),
    ]
    return Peer(name=name, worker=Worker(command, environment))


def features(file: Path) -> npt.NDArray[np.float32]:
    """Features of a file that a peer wrote."""
    with h5py.File(file, "r") as opened:
        return np.asarray(opened["features"], np.float32)


def agreeing(ours: Callable[[], npt.NDArray[np.floating]], file: Path) -> bool:
    """Whether a peer's features are ours to 1e-4."""
    wanted, found = ours(), features(file)
    return wanted.shape == found.shape and bool(np.allclose(found, wanted, rtol=1e-4, atol=1e-4))
