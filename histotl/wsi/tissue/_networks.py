"""Network files: told from pickles without opening them, and read. ``.pt`` is TorchScript, ``.pt2`` of torch.export.

Both hold code that is run, so a file must come from somebody whose programs one would run. A ``.pt2`` may hold pickles
as well, and formulas that torch evaluates; such files are refused, since neither is needed for a network of one size.
"""

from __future__ import annotations

import io
import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from histotl.core.errors import UsageError

if TYPE_CHECKING:
    import torch

Network = Callable[["torch.Tensor"], object]

_CURE = (
    "save the network itself: torch.export.save(torch.export.export(net, (torch.rand(1, 3, 512, 512),)), 'net.pt2'), "
    "or torch.jit.script(net).save('net.pt')"
)
_OLDER = "of an older torch, which stored pickles"
_PROGRAM, _SAMPLE = "models/model.json", "data/sample_inputs/model.pt"
_CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")

_PLAIN = re.compile(r"(weight|tensor)_\d+")
"""Members that are numbers alone."""

_MEMBER = re.compile(
    "|".join([re.escape(name) for name in (_PROGRAM, _SAMPLE, *_CONFIGS)] + [rf"data/\w+/{_PLAIN.pattern}"])
)
"""All that an exported network may consist of."""


def check_network(path: Path) -> None:
    """Refuse a file that is no network by looking into the archive; nothing of it is run or unpickled.

    Raises:
        UsageError: There is no such file, or it holds weights alone, pickles, or a network of no fixed size.
    """
    if not path.is_file():
        raise UsageError(f"torch_mask: {path}: no such file", hint="check the path")
    what = "no network"
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            try:
                what = _objection(archive)
            except (zipfile.BadZipFile, ValueError, KeyError, TypeError, AttributeError):
                what = "damaged"
    if what:
        raise UsageError(f"torch_mask: {path} is {what}", hint=_CURE)


def _objection(archive: zipfile.ZipFile) -> str:
    """Why a file must not be loaded; empty when it may."""
    members = archive.namelist()
    names = _names(archive)
    if len(names) < len(members):
        return "an archive that holds a file twice"  # torch might read the other one
    if _PROGRAM not in names:
        if "constants.pkl" in names and any(name.startswith("code/") for name in names):
            return ""
        if "serialized_exported_program.json" in names:
            return _OLDER
        return "weights without the network, or a pickle" if "data.pkl" in names else "no network"
    if any(name.startswith(("data/", "models/")) and not _MEMBER.fullmatch(name) for name in names):
        return "a network with pickles inside"
    for config in _CONFIGS:
        entries = json.loads(archive.read(names[config]))["config"].values()
        if any(entry["use_pickle"] is not False or not _PLAIN.fullmatch(entry["path_name"]) for entry in entries):
            return "a network with pickles inside"
    sizes = json.loads(archive.read(names[_PROGRAM]))
    return "a network of no fixed size" if "expr_str" in set(_keys(sizes)) else ""


def _names(archive: zipfile.ZipFile) -> dict[str, str]:
    """Members without the folder that all lie in -> their full names."""
    return {name.split("/", 1)[-1]: name for name in archive.namelist()}


def _keys(tree: object) -> Iterator[str]:
    """All keys of a JSON document."""
    if isinstance(tree, dict):
        yield from tree
    if isinstance(tree, dict | list):
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from _keys(value)


@lru_cache(maxsize=1)
def load_network(file: str, digest: str, device: str) -> Network:
    """The network, read once for a run; ``digest`` tells a file that was replaced.

    Raises:
        UsageError: It cannot be loaded.
    """
    import torch

    del digest
    path = Path(file)
    check_network(path)  # it may be another file than when the run began
    try:
        return _exported(path, device) if _is_exported(path) else _scripted(path, device)
    except (RuntimeError, ValueError, AssertionError, KeyError, pickle.UnpicklingError) as error:
        fact = f"{file} cannot be loaded on {device}: {last_line(error)}"
        raise UsageError(fact, hint=f"save it again with torch {torch.__version__}, or give another device") from error


def _is_exported(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return _PROGRAM in _names(archive)


def _exported(path: Path, device: str) -> Network:
    import torch

    with zipfile.ZipFile(path) as archive:
        # torch falls back to unpickling whatever is there when this fails, so it must not fail there.
        torch.load(io.BytesIO(archive.read(_names(archive)[_SAMPLE])), weights_only=True)
    return torch.export.load(path).module().to(device)


def _scripted(path: Path, device: str) -> Network:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # that such files go out of fashion is no news of this file
        net: torch.jit.ScriptModule = torch.jit.load(str(path), map_location=device)  # type: ignore[no-untyped-call]
    net.eval()
    return net


def last_line(error: BaseException) -> str:
    """What an error of torch comes to, below its traceback."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
