"""Training loops of other tools, run in their own process by ``benchmarks.speed.peer``.

Each gets features as this package keeps them, one file a slide, and makes files of its own kind of them once, untimed.
The networks are gated attention of one size: 1024 → 512 → 256 in CLAM's words, two classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import torch

WIDTH, INNER, DROPOUT, RATE = 512, 256, 0.25, 1e-4


class ClamTraining:
    """CLAM: a bag a step with the loops and loaders of its ``main.py`` on a CPU, without its instance loss."""

    def __init__(self) -> None:
        from dataset_modules.dataset_generic import Generic_Split
        from models.model_clam import CLAM_SB
        from utils import core_utils
        from utils.utils import get_split_loader

        self.split, self.model, self.loops, self.loader = Generic_Split, CLAM_SB, core_utils, get_split_loader

    def files(self, features: Path, out: Path) -> None:
        """``pt_files/NAME.pt``."""
        (out / "pt_files").mkdir(parents=True)
        for path, x in _slides(features):
            torch.save(torch.from_numpy(x), out / "pt_files" / f"{path.stem}.pt")

    def run(self, out: Path, names: list[str], n_val: int, epochs: int, batch: int) -> None:  # noqa: ARG002
        """Train on all but the last, validate on these."""
        table = pd.DataFrame({"slide_id": names, "label": [i % 2 for i in range(len(names))]})
        train, val = (
            self.split(part.reset_index(drop=True), data_dir=str(out), num_classes=2)
            for part in (table[:-n_val], table[-n_val:])
        )
        loaders = self.loader(train, training=True), self.loader(val)
        model = self.model(dropout=DROPOUT, n_classes=2)
        optimizer, loss = torch.optim.Adam(model.parameters(), lr=RATE, weight_decay=1e-5), torch.nn.CrossEntropyLoss()
        for epoch in range(epochs):
            self.loops.train_loop(epoch, model, loaders[0], optimizer, 2, None, loss)
            self.loops.validate(0, epoch, model, loaders[1], 2, None, None, loss)


class TorchmilTraining:
    """torchmil: its ``Trainer`` and ``ABMIL`` on its ``ProcessedMILDataset``, which keeps bags in memory."""

    def __init__(self) -> None:
        from torchmil.data import collate_fn
        from torchmil.datasets import ProcessedMILDataset
        from torchmil.models import ABMIL
        from torchmil.utils.trainer import Trainer

        self.dataset, self.collate, self.model, self.trainer = ProcessedMILDataset, collate_fn, ABMIL, Trainer

    def files(self, features: Path, out: Path) -> None:
        """``X/NAME.npy`` and ``Y/NAME.npy``."""
        for folder in ("X", "Y"):
            (out / folder).mkdir(parents=True)
        for number, (path, x) in enumerate(_slides(features)):
            np.save(out / "X" / path.stem, x)
            np.save(out / "Y" / path.stem, np.array(number % 2))

    def run(self, out: Path, names: list[str], n_val: int, epochs: int, batch: int) -> None:
        """Train on all but the last, validate on these."""

        def loader(part: list[str]) -> Any:
            data = self.dataset(str(out / "X"), str(out / "Y"), bag_names=part, bag_keys=["X", "Y"], verbose=False)
            return torch.utils.data.DataLoader(data, batch_size=batch, shuffle=True, collate_fn=self.collate)

        embed = torch.nn.Sequential(torch.nn.Linear(1024, WIDTH), torch.nn.ReLU(), torch.nn.Dropout(DROPOUT))
        model = self.model(in_shape=(1024,), att_dim=INNER, gated=True, feat_ext=embed)
        optimizer = torch.optim.Adam(model.parameters(), lr=RATE, weight_decay=1e-5)
        trainer = self.trainer(model, optimizer, device="cpu", disable_pbar=True, verbose=False)
        trainer.train(epochs, loader(names[:-n_val]), loader(names[-n_val:]))


def _slides(folder: Path) -> list[tuple[Path, np.ndarray]]:
    found = []
    for path in sorted(folder.glob("*.h5")):
        with h5py.File(path, "r") as file:
            found.append((path, np.asarray(file["features"], np.float32)))
    return found
