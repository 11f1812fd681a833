"""Options of the stages ``tile`` and ``embed``: Python keyword arguments, TOML keys and command-line flags in one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from histotl.core.errors import UsageError
from histotl.core.values import Edge, TileSpec

FileDtype = Literal["fp16", "fp32"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Runtime = Literal["torch", "onnxruntime", "openvino"]
JpegDecoder = Literal["auto", "cpu", "nvjpeg"]


@dataclass(frozen=True, kw_only=True)
class TileConfig:
    """Which tiles are cut, and where."""

    tile_px: int = 224
    """Side of a tile in pixels, as the backbone sees it."""

    mpp: float = 0.5
    """Micrometres per tile pixel; 0.5 is what "20x" usually means."""

    overlap_px: int = 0
    """Pixels that neighbouring tiles share."""

    min_tissue: float = 0.1
    """Least fraction of tissue in a tile, 0 to 1."""

    edge: Edge = "drop"
    """Tiles over the right and lower border: drop them, or pad them with background."""

    allow_upsampling: bool = False
    """Accept slides coarser than mpp; their tiles are interpolated."""

    tissue: str = "hysteresis"
    """What finds the tissue, as a spec such as 'hysteresis(mpp=4.0)'; see `histotl list tissue`."""

    min_area_um2: float = 1000.0
    """Smallest piece of tissue that is kept, in square micrometres."""

    max_hole_um2: float = 50_000.0
    """Largest hole in the tissue that is filled (gland lumens), in square micrometres."""

    mpp_override: float | None = None
    """Micrometres per level-0 pixel, for all slides of the run, whatever their metadata say."""

    reader: str | None = None
    """Slide reader to use instead of trying those that claim the file; see `histotl list reader`."""

    def __post_init__(self) -> None:
        _ = self.spec  # the spec checks its own values: a wrong one is refused before any slide is opened
        for name in ("min_area_um2", "max_hole_um2"):
            value = getattr(self, name)
            if not value >= 0:
                raise UsageError(f"{name} is {value}", hint="give square micrometres, 0 or more")
        if self.mpp_override is not None and not self.mpp_override > 0:
            raise UsageError(f"mpp_override is {self.mpp_override}", hint="give micrometres per pixel, such as 0.25")

    @property
    def spec(self) -> TileSpec:
        """The part of the options that belongs to the identity of features."""
        return TileSpec(
            tile_px=self.tile_px,
            mpp=self.mpp,
            overlap_px=self.overlap_px,
            min_tissue=self.min_tissue,
            edge=self.edge,
            allow_upsampling=self.allow_upsampling,
        )


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """What turns tiles into features, and how fast."""

    backbone: tuple[str, ...] = ("scattering",)
    """Backbone specs; several are fed from one read. See `histotl list backbone`."""

    stain: str = "none"
    """Stain normaliser, as a spec such as 'macenko'; see `histotl list stain`."""

    views: int = 0
    """Augmented views of every tile to embed and store beside its features; 0 for none. Each costs a forward pass."""

    augment: str = ""
    """What makes a view: specs joined by '+', such as 'd4 + hed_jitter(sigma=0.1)'; see `histotl list augment`."""

    seed: int = 0
    """Seed of the views; with slide, tile and number of the view it decides every pixel of one."""

    quality: str = "all"
    """Quality figures of every tile, kept beside its features: all, none, or specs joined by '+' such as
    'focus_laplacian + pen'; see `histotl list quality`."""

    drop: str = ""
    """Condition on the quality figures of tiles that are left out for good, such as 'pen > 0.2 or blank > 0.9'; every
    slide is read twice for it. Empty for none: `train --keep` leaves tiles out without embedding again."""

    dtype: FileDtype = "fp16"
    """Number format of the features on disk."""

    precision: Precision = "auto"
    """Number format of the forward pass; auto is bf16 on a GPU that has it, else fp16, and fp32 on a CPU."""

    batch_size: int = 0
    """Tiles per forward pass; on a CPU several passes run side by side, each with as many. 0 finds the fastest by
    trying: on a CPU while running, on a GPU before."""

    workers: int = 0
    """Reader threads; 0 chooses by the cores that this process may use."""

    device: str = "auto"
    """Where the backbone runs: auto, cpu, cuda, cuda:1 …"""

    compile: bool = False
    """Compile the network with torch.compile: a minute at the start, then faster. A CPU needs a C++ compiler."""

    runtime: Runtime = "torch"
    """What runs the network on a CPU; the others are extras, and faster for convolutional networks."""

    decode: JpegDecoder = "auto"
    """Where JPEG tiles are decoded when the network is on a GPU: auto measures at the start, and takes the faster."""

    overwrite: bool = False
    """Make every file again, also those that are there and current."""

    def __post_init__(self) -> None:
        if isinstance(self.backbone, str) or not self.backbone:
            raise UsageError(f"backbone is {self.backbone!r}", hint="give a tuple of specs, such as ('scattering',)")
        kinds = {"dtype": FileDtype, "precision": Precision, "runtime": Runtime, "decode": JpegDecoder}
        for name, kind in kinds.items():
            value = getattr(self, name)
            if value not in get_args(kind):
                raise UsageError(f"{name} is {value!r}", hint=f"give one of: {', '.join(get_args(kind))}")
        if self.compile and self.runtime != "torch":
            fact = f"--compile is of torch and does not go with --runtime {self.runtime}"
            raise UsageError(fact, hint="leave one of them out")
        if self.runtime != "torch" and self.precision not in ("auto", "fp32"):
            fact = f"--runtime {self.runtime} computes in fp32, not in {self.precision}"
            raise UsageError(fact, hint="leave out --precision, or give --runtime torch")
        if bool(self.views) != bool(self.augment):
            fact = f"--views {self.views} with --augment {self.augment!r}"
            raise UsageError(fact, hint="give both, such as --views 4 --augment 'd4 + hed_jitter', or none")
        for name, most in (("views", 1000), ("seed", 2**53 - 1)):
            value = getattr(self, name)
            if not 0 <= value <= most:
                raise UsageError(f"{name} is {value}", hint=f"give 0 to {most}")
        for name in ("batch_size", "workers"):
            value = getattr(self, name)
            if value < 0:
                raise UsageError(f"{name} is {value}", hint="give 0 (chosen by the machine) or more")
