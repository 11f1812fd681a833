"""``histotl doctor``: is everything here that the work needs?"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import tempfile
import time
from pathlib import Path

from histotl.cli._console import EXIT_OK, print_json, print_table
from histotl.core.errors import HistotlError, SetupError

_LIBRARIES = ("torch", "timm", "openslide-python", "openslide-bin", "h5py", "zarr", "tifffile", "imagecodecs", "numpy")


def doctor(folder: Path = Path(), /, *, json: bool = False) -> int:
    """Look at libraries, GPU, hub access and disk, and take one tiny slide all the way. Needs no network.

    Args:
        folder: Where results would be written; its free space is looked at.
        json: Print JSON.
    """
    rows = [*_libraries(), *_device(), *_hub(), *_disk(folder), _end_to_end()]
    if json:
        print_json([dict(zip(("what", "state", "detail"), row, strict=True)) for row in rows])
    else:
        print_table(["what", "state", "detail"], rows)
    return EXIT_OK if all(state != "bad" for _, state, _ in rows) else SetupError.exit_code


def _libraries() -> list[tuple[str, str, str]]:
    rows = [("python", "ok", platform.python_version())]
    for name in _LIBRARIES:
        try:
            rows.append((name, "ok", importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            rows.append((name, "bad", f"not installed: pip install {name}"))
    try:
        import openslide

        rows.append(("libopenslide", "ok", openslide.__library_version__))
    except (ImportError, OSError) as error:
        rows.append(("libopenslide", "bad", f"{error}: pip install openslide-bin"))
    return rows


def _device() -> list[tuple[str, str, str]]:
    import torch

    from histotl.image._device import why_no_kernels

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    rows = [("cpu", "ok", f"{cores} usable cores, {torch.get_num_threads()} torch threads")]
    if not torch.cuda.is_available():
        return [*rows, ("gpu", "none", "no CUDA device: everything works, large backbones are slow")]
    for i in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(i)
        bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16, fp16 is used"
        detail = f"{torch.cuda.get_device_name(i)}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free, {bf16}"
        rows.append((f"gpu {i}", "ok", detail))
        why = why_no_kernels(torch.device("cuda", i))
        rows.append((f"stain on gpu {i}", "slower" if why else "ok", why or "one kernel, with the network's input"))
    return rows


def _hub() -> list[tuple[str, str, str]]:
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    token = "HF_TOKEN" in os.environ or (home / "token").is_file()
    offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
    detail = (
        f"cache {home}{'' if home.exists() else ' (empty)'}, {'offline by HF_HUB_OFFLINE' if offline else 'online'}"
    )
    cure = "" if token else "; gated weights need a token: hf auth login, or HF_TOKEN"
    return [("weights hub", "ok" if token else "no token", detail + cure)]


def _disk(folder: Path) -> list[tuple[str, str, str]]:
    place = next(p for p in (folder.resolve(), *folder.resolve().parents) if p.exists())
    free = shutil.disk_usage(place).free / 2**30
    return [("disk", "ok" if free > 1 else "bad", f"{free:.1f} GiB free at {place}")]


def _end_to_end() -> tuple[str, str, str]:
    from histotl.embed.engine import embed_slides
    from histotl.paint.cohort import paint_cohort
    from histotl.paint.config import PaintConfig
    from histotl.store.embeddings import check_file
    from histotl.store.layout import find_features

    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="histotl-doctor-") as name:
        folder = Path(name)
        try:
            recipe = PaintConfig(patients=1, second_slides=0, foreign=())
            summary = embed_slides(paint_cohort(folder / "slides", recipe), folder / "out")
            if not summary.ok:
                return ("one slide", "bad", f"{summary.failed[0].message} ({summary.failed[0].hint})")
            problems = [p for file in find_features(folder / "out") for p in check_file(file)]
        except HistotlError as error:
            return ("one slide", "bad", str(error))
    if problems:
        return ("one slide", "bad", "; ".join(problems))
    return (
        "one slide",
        "ok",
        f"painted, tiled, embedded ({summary.n_tiles} tiles), checked in {time.monotonic() - began:.1f} s",
    )
