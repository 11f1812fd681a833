"""A process that runs another tool's own loops: ``python -m benchmarks.speed.peer NAME CHECKOUT``."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import h5py
import torch

from benchmarks.speed.peer_training import ClamTraining, TorchmilTraining
from benchmarks.speed.sampling import MEAN, STD, network
from benchmarks.speed.workers import Answer, serve


def _timed(work: Callable[[], dict[str, object]]) -> Answer:
    cpu, began = _cpu(), time.perf_counter()
    found = work()
    return {**found, "seconds": time.perf_counter() - began, "cpu": _cpu() - cpu}


def _cpu() -> float:
    """CPU seconds of this process and of those that it started and that have ended."""
    uses = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(use.ru_utime + use.ru_stime for use in uses)


class Trident:
    """TRIDENT: ``OpenSlideWSI`` with its Otsu segmenter and the defaults of its batch command."""

    BATCH = 64

    def __init__(self) -> None:
        from trident.patch_encoder_models.utils.transform_utils import get_eval_transforms
        from trident.segmentation_models.load import segmentation_model_factory
        from trident.wsi_objects.OpenSlideWSI import OpenSlideWSI

        self.open, self.transforms = OpenSlideWSI, get_eval_transforms(MEAN, STD, target_img_size=224)
        self.segmenter = segmentation_model_factory("otsu")

    def segment(self, slide: str, out: str, tile_px: int) -> dict[str, object]:
        """Thumbnail, mask, contours, coordinates."""
        wsi = self.open(slide_path=slide, lazy_init=False)
        mag = self.segmenter.target_mag
        wsi.segment_tissue(self.segmenter, target_mag=mag, job_dir=out, batch_size=self.BATCH, device="cpu")
        file = wsi.extract_tissue_coords(target_mag=20, patch_size=tile_px, save_coords=out)
        with h5py.File(file, "r") as coords:
            return {"tiles": len(coords["coords"])}

    @lru_cache(maxsize=4)  # noqa: B019 - one object for the life of the process
    def encoder(self, name: str) -> torch.nn.Module:
        """A network with the attributes that the loop looks for."""
        found = network(name)
        for attribute, value in (
            ("eval_transforms", self.transforms),
            ("precision", torch.float32),
            ("enc_name", name),
        ):
            setattr(found, attribute, value)
        return found

    def embed(self, slide: str, coords: str, out: str, name: str) -> dict[str, object]:
        """The loop over one slide."""
        wsi = self.open(slide_path=slide, lazy_init=False)
        with torch.inference_mode():
            file = wsi.extract_patch_features(
                self.encoder(name), coords, out, device="cpu", saveas="h5", batch_limit=self.BATCH
            )
        return {"file": file}


class Clam:
    """CLAM: ``WholeSlideImage`` and the loop of ``extract_features_fp.py`` with the defaults of its commands."""

    BATCH = 256
    SEGMENT = {"sthresh": 8, "mthresh": 7, "close": 4, "use_otsu": False}  # noqa: RUF012 - read only
    FILTER = {"a_t": 100, "a_h": 16, "max_n_holes": 8}  # noqa: RUF012 - read only

    def __init__(self) -> None:
        import openslide
        from torch.utils.data import DataLoader

        sys.argv = sys.argv[:1]  # the script reads its options when it is imported
        import extract_features_fp
        from utils.transform_utils import get_eval_transforms
        from wsi_core.WholeSlideImage import WholeSlideImage

        extract_features_fp.device = torch.device("cpu")
        self.script: Any = extract_features_fp
        self.transforms = get_eval_transforms(MEAN, STD, target_img_size=224)
        self.image, self.openslide, self.loader = WholeSlideImage, openslide, DataLoader
        self.network = lru_cache(network)

    def segment(self, slide: str, out: str, tile_px: int) -> dict[str, object]:
        """Mask, contours, coordinates."""
        Path(out).mkdir(parents=True, exist_ok=True)
        wsi = self.image(slide)
        level = wsi.getOpenSlide().get_best_level_for_downsample(64)
        wsi.segmentTissue(seg_level=level, filter_params=self.FILTER, **self.SEGMENT)
        wsi.process_contours(out, patch_level=0, patch_size=tile_px, step_size=tile_px, contour_fn="four_pt")
        with h5py.File(Path(out) / f"{Path(slide).stem}.h5", "r") as coords:
            return {"tiles": len(coords["coords"])}

    def embed(self, slide: str, coords: str, out: str, name: str) -> dict[str, object]:
        """The loop over one slide; coordinates are rewritten into CLAM's form by :func:`_clam_coords`."""
        Path(out).mkdir(parents=True, exist_ok=True)
        wsi = self.openslide.open_slide(slide)
        dataset = self.script.Whole_Slide_Bag_FP(file_path=coords, wsi=wsi, img_transforms=self.transforms)
        loader = self.loader(dataset=dataset, batch_size=self.BATCH)
        file = Path(out) / f"{Path(slide).stem}.h5"
        self.script.compute_w_loader(str(file), loader=loader, model=self.network(name), verbose=0)
        return {"file": str(file)}


def _clam_coords(coords: str) -> str:
    """The same tiles in CLAM's form, beside the file."""
    path = Path(coords).with_suffix(".clam.h5")
    with h5py.File(coords, "r") as ours, h5py.File(path, "w") as theirs:
        found = theirs.create_dataset("coords", data=ours["coords"][:])
        found.attrs["patch_level"] = 0
        found.attrs["patch_size"] = int(ours["coords"].attrs["patch_size"])
    return str(path)


def _training(tool: Any, features: str, out: str, n_val: int, epochs: int, batch: int) -> Answer:
    """Make the tool's files where they are not there yet; then train. The answer has the bags seen."""
    names = sorted(path.stem for path in Path(features).glob("*.h5"))
    if not Path(out).is_dir():
        tool.files(Path(features), Path(out))

    def work() -> dict[str, object]:
        tool.run(Path(out), names, n_val, epochs, batch)
        return {"bags": epochs * (len(names) - n_val)}

    return _timed(work)


def main() -> None:
    """Import the tool, then do what is asked."""
    name, checkout = sys.argv[1:]
    sys.path.insert(0, checkout)
    tools = {"TRIDENT": Trident, "CLAM": Clam, "CLAM training": ClamTraining, "torchmil training": TorchmilTraining}
    tool: Any = tools[name]()

    def answer(question: Answer) -> Answer:
        if question["do"] == "train":
            return _training(tool, **{key: value for key, value in question.items() if key != "do"})
        if question["do"] == "segment":
            return _timed(lambda: tool.segment(question["slide"], question["out"], question["tile_px"]))
        slide, out, net = question["slide"], question["out"], question["network"]
        coords = _clam_coords(question["coords"]) if name == "CLAM" else question["coords"]
        return _timed(lambda: tool.embed(slide, coords, out, net))

    serve(answer)


if __name__ == "__main__":
    main()
