"""Weight files: safe reading, strict loading, and the digest that names what was loaded."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from histotl.core.errors import WeightsError

State = Mapping[str, torch.Tensor]

_WRAPPERS = ("state_dict", "model")
_SHOWN = 6


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """Read a state dict from ``.safetensors`` or from a torch file, without running any code of the file.

    A dict that holds the state under ``state_dict`` or ``model`` is unwrapped, and the ``module.`` that data-parallel
    training puts before every name is taken off.

    Raises:
        WeightsError: The file is missing, damaged, or holds something else than tensors.
    """
    if not path.is_file():
        raise WeightsError(f"weights file {str(path)!r} does not exist", hint="check the path in weights='…'")
    loaded = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    if isinstance(loaded, dict):
        for key in _WRAPPERS:
            if isinstance(loaded.get(key), dict):
                loaded = loaded[key]
                break
    if not isinstance(loaded, dict) or not loaded or not all(isinstance(v, torch.Tensor) for v in loaded.values()):
        fact = f"weights file {str(path)!r} holds no state dict but {_described(loaded)}"
        raise WeightsError(fact, hint="save it with torch.save(model.state_dict(), path)")
    if all(name.startswith("module.") for name in loaded):
        return {name.removeprefix("module."): tensor for name, tensor in loaded.items()}
    return dict(loaded)


def load_strict(module: torch.nn.Module, state: State, *, source: str, spare: Iterable[str] = ()) -> None:
    """Copy a state dict into a module; every entry must be used and every parameter be given.

    Args:
        module: Is changed.
        state: The weights.
        source: Where they are from, for the message.
        spare: Names of submodules (the classifier) that the state may have although the module has not.

    Raises:
        WeightsError: Missing or unexpected names, or other shapes; the message lists them.
    """
    own = module.state_dict()
    spare_keys = {f"{name}.{part}" for name in spare for part in ("weight", "bias")} - own.keys()
    state = {name: tensor for name, tensor in state.items() if name not in spare_keys}
    # Batch counters came late to torch, are missing in older and converted files, and play no part in evaluation.
    state |= {n: t for n, t in own.items() if n.endswith("num_batches_tracked") and n not in state}
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shapes = [
        f"{name} {tuple(state[name].shape)}, not {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in state and state[name].shape != tensor.shape
    ]
    problems = [
        f"{len(names)} {what}: {', '.join(names[:_SHOWN])}{' …' if len(names) > _SHOWN else ''}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if names
    ]
    if problems:
        cure = "use the weights of exactly this architecture, or adapt the architecture (model_args, drop, kwargs)"
        raise WeightsError(f"weights {source} do not fit {type(module).__name__}: {'; '.join(problems)}", hint=cure)
    module.load_state_dict(state, strict=True)


def weights_digest(state: State, arguments: Mapping[str, object] | None = None) -> str:
    """SHA-256 that tells one network from another.

    Args:
        state: Its sorted names, number formats, shapes and bytes are digested.
        arguments: What shaped the network beside its weights (paddings, epsilons); entries that are empty do not count.

    Returns:
        64 hex digits; empty when there are neither weights nor arguments.
    """
    given = {key: value for key, value in (arguments or {}).items() if value}
    if not state and not given:
        return ""
    digest = hashlib.sha256()
    if given:
        digest.update(json.dumps(given, sort_keys=True, default=str).encode() + b"\n")
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read_safetensors(path: Path) -> object:
    import safetensors
    import safetensors.torch

    try:
        return safetensors.torch.load_file(str(path), device="cpu")
    except (safetensors.SafetensorError, OSError) as error:
        cure = "copy or download the file again"
        raise WeightsError(f"weights file {str(path)!r} cannot be read: {error}", hint=cure) from error


def _read_torch(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        fact = f"weights file {str(path)!r} is damaged, or holds more than tensors and could run code"
        raise WeightsError(fact, hint="save it with torch.save(model.state_dict(), path)") from error
    except (LookupError, AttributeError, TypeError) as error:
        # In a file that is no pickle at all, torch's reader takes every byte for an instruction.
        cure = "give a .pth, .pt or .safetensors file of weights"
        raise WeightsError(f"weights file {str(path)!r} cannot be read: it is no file of torch", hint=cure) from error
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        fact = f"weights file {str(path)!r} cannot be read: {str(error).splitlines()[0] if str(error) else error!r}"
        raise WeightsError(fact, hint="copy or download the file again") from error


def _described(loaded: object) -> str:
    if isinstance(loaded, dict):
        return f"a dict with {', '.join(repr(key) for key in list(loaded)[:3]) or 'nothing'}"
    return f"a {type(loaded).__name__}"
