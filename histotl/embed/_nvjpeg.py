"""JPEG tiles decoded on the GPU: nvJPEG through torchvision, in batches, by the reader threads.

nvJPEG does not give the pixels of libjpeg-turbo bit by bit: it rounds otherwise and, as far as is known, repeats
subsampled chroma where libjpeg-turbo interpolates. Features differ accordingly; by how much on a GPU has not been
measured. Repeating chroma on the CPU, which stands in for the larger part of it, moves the pixels of 4:2:0 tissue by
0.2 levels on average and 21 at most, and the features of painted slides by 0.02 % (color_stats), 0.3 % (resnet18 with
random weights) and 1.5 % (scattering), as the median distance relative to their length. Who needs features that agree
to the last digits between machines asks for ``decode="cpu"``; the provenance of every file says which decoder it was.

Left to the CPU in any case: tiles that are RGB inside their JPEG (nvJPEG may not heed the marker that says so), levels
shrunk while they are decoded, tiles whose bytes look damaged, the sample of a stain normaliser, and the tissue search.
What nvJPEG may let pass is damage inside the coded pixels that leaves header, markers and length as they should be,
such as a flipped bit; libjpeg-turbo finds most of it, and the slide fails.
"""

from __future__ import annotations

import io
import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from PIL import Image

from histotl.core.errors import MissingDependencyError, SetupError
from histotl.wsi.readers.base import Pixels

log = logging.getLogger(__name__)

_STAGED_BYTES = 32 * 2**20
"""Decoded pixels of one call that a thread holds on the GPU and in page-locked memory."""

_CURE = "install torch and torchvision for CUDA, or leave out --decode"


class TorchvisionDecoder:
    """A :class:`histotl.wsi.readers.base.BatchDecoder` through torchvision: nvJPEG on a GPU, libjpeg-turbo on a CPU.

    torchvision lets one thread at a time into nvJPEG; copying to the host and everything else overlaps, on a stream of
    each thread's own.

    Args:
        device: Where to decode.

    Raises:
        MissingDependencyError: torchvision is not there, or does not fit to torch.
        SetupError: It cannot decode on this device.
    """

    def __init__(self, device: torch.device) -> None:
        try:
            from torchvision.io import ImageReadMode, decode_jpeg  # type: ignore[import-untyped]
        except (ImportError, OSError, RuntimeError) as error:
            raise MissingDependencyError(f"torchvision cannot decode JPEG: {error}", hint=_CURE) from error
        self._device, self._mine = device, threading.local()
        self._decode: Callable[[list[torch.Tensor]], list[torch.Tensor]] = partial(
            decode_jpeg, mode=ImageReadMode.RGB, device=device
        )
        self._told = False
        try:
            self._decode([torch.frombuffer(_small_jpeg(), dtype=torch.uint8)])
        except (RuntimeError, AttributeError) as error:
            raise SetupError(f"torchvision cannot decode JPEG on {device}: {error}", hint=_CURE) from error

    @property
    def name(self) -> str:
        """``nvjpeg``; on a CPU ``torchvision``."""
        return "nvjpeg" if self._device.type == "cuda" else "torchvision"

    def decode(self, streams: Sequence[bytearray], outs: Sequence[Pixels]) -> list[bool]:
        """Decode files of one size; see :class:`histotl.wsi.readers.base.BatchDecoder`.

        When torchvision gives up on a batch it does not say for which file: all of them are left to the level.
        """
        together = max(1, _STAGED_BYTES // outs[0].nbytes) if outs else 1
        taken: list[bool] = []
        for start in range(0, len(streams), together):
            taken += self._decode_some(streams[start : start + together], outs[start : start + together])
        return taken

    def _decode_some(self, streams: Sequence[bytearray], outs: Sequence[Pixels]) -> list[bool]:
        coded = [torch.frombuffer(stream, dtype=torch.uint8) for stream in streams]
        with self._own_stream():
            try:
                images = self._decode(coded)
            except RuntimeError as error:
                level = logging.DEBUG if self._told else logging.WARNING
                log.log(level, "%s refuses %d tiles, which the CPU decodes: %s", self.name, len(streams), error)
                self._told = True
                return [False] * len(streams)
            return self._to_host(images, outs)

    def _to_host(self, images: Sequence[torch.Tensor], outs: Sequence[Pixels]) -> list[bool]:
        """Copy images, uint8 (3, height, width) on the device, into arrays of the host; those of another size not."""
        height, width, _ = outs[0].shape
        fits = [tuple(image.shape) == (3, height, width) for image in images]
        kept = [image for image, fit in zip(images, fits, strict=True) if fit]
        if kept:
            staging = self._staging(len(kept) * outs[0].nbytes).view(len(kept), height, width, 3)
            staging.copy_(torch.stack(kept).permute(0, 2, 3, 1).contiguous(), non_blocking=True)
            if self._device.type == "cuda":
                torch.cuda.current_stream(self._device).synchronize()
            places = (out for out, fit in zip(outs, fits, strict=True) if fit)
            for out, tile in zip(places, staging.numpy(), strict=True):
                out[:] = tile
        return fits

    def _staging(self, n_bytes: int) -> torch.Tensor:
        """Memory of this thread that the GPU copies to by itself."""
        held: torch.Tensor | None = getattr(self._mine, "staging", None)
        if held is None or len(held) < n_bytes:
            held = torch.empty(n_bytes, dtype=torch.uint8, pin_memory=self._device.type == "cuda")
            self._mine.staging = held
        return held[:n_bytes]

    def _own_stream(self) -> AbstractContextManager[object]:
        """This thread's stream, so that it waits for nobody's work but its own."""
        if self._device.type != "cuda":
            return nullcontext()
        stream: torch.cuda.Stream | None = getattr(self._mine, "stream", None)
        if stream is None:
            stream = self._mine.stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        return torch.cuda.stream(stream)


def _small_jpeg() -> bytearray:
    """A JPEG file of 16 x 16 pixels."""
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "JPEG")
    return bytearray(file.getvalue())
