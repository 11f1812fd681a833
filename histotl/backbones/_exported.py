"""The runtimes beside plain torch: each takes a whole network and an example batch and gives a function."""

from __future__ import annotations

import importlib
import logging
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from histotl.core.errors import MissingDependencyError, SetupError

_BACK = "use --runtime torch"


def compiled(whole: torch.nn.Module, example: torch.Tensor, name: str, threads: int) -> Any:
    """Compile with torch's own compiler, for the shape of the example and the autocast that is on.

    Raises:
        SetupError: There is no compiler on this machine, or it cannot take the network.
    """
    import torch._dynamo
    import torch._inductor.config

    options: dict[str, Any] = {}
    if example.device.type == "cpu":
        # Frozen weights are folded (batch norm into convolutions) and packed once.
        options = {"freezing": True, "cpp.threads": threads}
    step = torch.compile(whole, dynamic=False, options=options)
    # Compiled code is tied to more than a shape: whether a tensor was made in inference mode, for one. So it always
    # sees this one tensor, in one mode, and never compiles again in the middle of a run.
    with torch.inference_mode(mode=False):
        fixed = torch.empty_like(example)

    def run(tiles: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            features: torch.Tensor = step(fixed.copy_(tiles))
            return features

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        run(example)  # this compiles
    except (torch._dynamo.exc.TorchDynamoException, RuntimeError, OSError) as error:
        text = str(error)
        if "compiler" in text and ("No working" in text or "InvalidCxx" in text or "not found" in text):
            cure = f"install a C++ compiler (g++ or clang++) or name it in the variable CXX, or {_BACK}"
            raise SetupError(f"{name} cannot be compiled: no working C++ compiler", hint=cure) from error
        raise SetupError(f"{name} cannot be compiled: {_first_line(error)}", hint=_BACK) from error
    finally:
        torch.set_num_threads(before)
    return run


def in_openvino(whole: torch.nn.Module, example: torch.Tensor, name: str, threads: int) -> Any:
    """Convert to OpenVINO for CPUs, in float32.

    Raises:
        MissingDependencyError: It is not installed.
        SetupError: It cannot take the network.
    """
    openvino = _openvino()
    shape = list(example.shape)
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",  # its own choice would be bf16 where the CPU has it
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,  # cores are shared with the threads that decode
    }
    with _quiet_tracing(), _own_logging(), torch.inference_mode(mode=False), torch.no_grad():
        try:
            model = openvino.convert_model(whole, example_input=example, input=[(shape, openvino.Type.u8)])
            request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
        # Its own exceptions are runtime errors; tracing raises the others.
        except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
            raise SetupError(f"{name} cannot be converted for openvino: {_first_line(error)}", hint=_BACK) from error

    def run(tiles: torch.Tensor) -> torch.Tensor:
        results = request.infer({0: tiles.numpy()}, share_inputs=True, share_outputs=True)
        return torch.from_numpy(results[0].copy())

    return run


def in_onnxruntime(whole: torch.nn.Module, example: torch.Tensor, name: str, threads: int) -> Any:
    """Export to ONNX and open it in ONNX Runtime for CPUs.

    Raises:
        MissingDependencyError: It is not installed.
        SetupError: It cannot take the network.
    """
    runtime = _import("onnxruntime", extra="onnxruntime")
    states = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    refusals = tuple(
        getattr(states, kind)
        for kind in ("Fail", "InvalidGraph", "InvalidArgument", "NotImplemented", "RuntimeException")
    )
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Waiting threads would take the cores of those that decode.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    with tempfile.TemporaryDirectory() as folder, _quiet_tracing(), torch.inference_mode(mode=False), torch.no_grad():
        path = Path(folder) / "network.onnx"
        try:
            names = {"input_names": ["tiles"], "output_names": ["features"]}
            torch.onnx.export(whole, (example,), str(path), dynamo=False, opset_version=17, **names)  # type: ignore[arg-type]
            session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except (RuntimeError, TypeError, ValueError, NotImplementedError, *refusals) as error:
            raise SetupError(f"{name} cannot be exported to onnx: {_first_line(error)}", hint=_BACK) from error

    def run(tiles: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(session.run(["features"], {"tiles": tiles.numpy()})[0])

    return run


def _openvino() -> Any:
    """Import OpenVINO without its usage reports, which it sends from import on unless told otherwise.

    Its own answer to a missing reporting package is a stand-in that does nothing.
    """
    if sys.modules.get("openvino") is not None:
        return sys.modules["openvino"]
    reporter = "openvino_telemetry"
    known = sys.modules.get(reporter)
    sys.modules[reporter] = None  # type: ignore[assignment] # so an import of it fails
    try:
        return _import("openvino", extra="openvino")
    finally:
        if known is None:
            del sys.modules[reporter]
        else:
            sys.modules[reporter] = known


def _import(package: str, *, extra: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        cure = f"pip install 'histotl[{extra}]', or {_BACK}"
        raise MissingDependencyError(f"--runtime {extra}: {package} cannot be imported: {error}", hint=cure) from error


@contextmanager
def _own_logging() -> Iterator[None]:
    """Give the program's logging back: OpenVINO leaves it at errors only when a conversion fails."""
    root = logging.getLogger()
    level, handlers, filters = root.level, root.handlers[:], root.filters[:]
    try:
        yield
    finally:
        root.setLevel(level)
        root.handlers[:], root.filters[:] = handlers, filters


@contextmanager
def _quiet_tracing() -> Iterator[None]:
    """Silence what tracers say about shapes that they take as constant: here they are."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _first_line(error: Exception) -> str:
    return (str(error) or repr(error)).strip().splitlines()[0]
