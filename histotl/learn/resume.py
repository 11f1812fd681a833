"""Networks that an interrupted training has finished, so that the next start goes on from there."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from histotl.core.atomic import write_bytes
from histotl.core.errors import CorruptFileError

FOLDER = ".training"


@dataclass(frozen=True, kw_only=True, eq=False)
class Done:
    """What one run came to.

    Args:
        state: Of the network.
        loss: Its least validation loss.
        history: One entry a look at the validation set.
    """

    state: dict[str, torch.Tensor]
    loss: float
    history: list[dict[str, object]]


class Progress:
    """Finished runs of one training, one file each, in a folder beside the model that is being made.

    Args:
        out: The model folder.
        key: Digest of everything that the runs depend on (:func:`digest`). Runs of another one are removed.
    """

    def __init__(self, out: Path, key: str) -> None:
        self._root, self._folder = out / FOLDER, out / FOLDER / key
        for other in self._root.glob("*"):
            if other != self._folder:
                shutil.rmtree(other)

    def load(self, member: int, rate: float) -> Done | None:
        """A finished run; None when it is not there.

        Raises:
            CorruptFileError: It cannot be read.
        """
        path = self._path(member, rate)
        if not path.is_file():
            return None
        try:
            with safe_open(path, "pt") as file:
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
                facts = json.loads(file.metadata()["facts"])
            return Done(state=state, loss=float(facts["loss"]), history=list(facts["history"]))
        except (SafetensorError, ValueError, LookupError, TypeError) as error:
            raise CorruptFileError(f"{path} cannot be read: {error}", hint=f"delete {self._root}") from error

    def save(self, member: int, rate: float, done: Done) -> None:
        """Keep a run; a file that is there is whole."""
        state = {name: value.detach().cpu().contiguous() for name, value in done.state.items()}
        facts = json.dumps({"loss": done.loss, "history": done.history})
        write_bytes(self._path(member, rate), save(state, {"facts": facts}))

    def clear(self) -> None:
        """Remove everything: the model is written."""
        shutil.rmtree(self._root, ignore_errors=True)

    def _path(self, member: int, rate: float) -> Path:
        return self._folder / f"member-{member}-rate-{rate!r}.safetensors"


def digest(settings: Mapping[str, object], arrays: Iterable[npt.NDArray[np.generic]]) -> str:
    """SHA-256 (16 hex digits) of settings, which JSON can hold, and of arrays."""
    found = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for array in arrays:
        found.update(f"{array.dtype}{array.shape}".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()[:16]
