"""Network files: told from pickles without opening them, and read. ``.pt`` is TorchScript, ``.pt2`` of torch.export.

Both hold code that is run, so a file must come from somebody whose programs one would run. A ``.pt2`` may hold pickles
as well, and formulas that torch evaluates; such files are refused, since neither is needed for a network of one size.
"""

from __future__ import annotations

import io
import json
import pickle
import warnings
import zipfile
from collections.abc import Callable
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
_SAMPLE = "data/sample_inputs/model.pt"


def check_network(path: Path) -> None:
    """Refuse a file that is no network by looking into the archive; nothing of it is run or unpickled.

    Raises:
        UsageError: There is no such file, or it holds weights alone, pickles, or a network of no fixed size.
    """
    if not path.is_file():
        raise UsageError(f"torch_mask: {path}: no such file", hint="check the path")
    what = ""
    if not zipfile.is_zipfile(path):
        what = "no network"
    else:
        with zipfile.ZipFile(path) as archive:
            names = {name.split("/", 1)[-1]: name for name in archive.namelist()}
            if "models/model.json" in names:
                what = _objection(archive, names)
            elif "serialized_exported_program.json" in names or "serialized_state_dict.pt" in names:
                what = _OLDER
            elif "constants.pkl" not in names or not any(name.startswith("code/") for name in names):
                what = "weights without the network, or a pickle" if "data.pkl" in names else "no network"
    if what:
        raise UsageError(f"torch_mask: {path} is {what}", hint=_CURE)


def _objection(archive: zipfile.ZipFile, names: dict[str, str]) -> str:
    """Why an exported network must not be loaded; empty when it may."""
    if b'"expr_str"' in archive.read(names["models/model.json"]):
        return "a network of no fixed size"
    for kind, prefix in (("weights", "weight_"), ("constants", "tensor_")):
        config = names.get(f"data/{kind}/model_{kind}_config.json")
        if config is None:
            return _OLDER
        for entry in json.loads(archive.read(config))["config"].values():
            if entry["use_pickle"] is not False or not entry["path_name"].startswith(prefix):
                return "a network with pickles inside"
    return "" if _SAMPLE in names else "a network of which parts are missing"


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
        return any(name.endswith("/models/model.json") for name in archive.namelist())


def _exported(path: Path, device: str) -> Network:
    import torch

    with zipfile.ZipFile(path) as archive:
        sample = next(name for name in archive.namelist() if name.endswith(_SAMPLE))
        # torch falls back to unpickling whatever is there when this fails, so it must not fail there.
        torch.load(io.BytesIO(archive.read(sample)), weights_only=True)
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
