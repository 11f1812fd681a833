"""The embedder that all neural backbones share: prepare, run, pool; and the dry run that finds its size."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch

from histotl.backbones._preprocess import Scratch, prepare
from histotl.backbones._weights import weights_digest
from histotl.core.errors import SpecError
from histotl.core.values import BackboneCard

Forward = Callable[[torch.Tensor], torch.Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class NetworkEmbedder:
    """A network on a device.

    Args:
        card: What it is.
        module: In evaluation mode, without gradients.
        forward: From normalised float (b, 3, s, s) to pooled float (b, dim); runs ``module``.
        scratch: Memory for prepared batches on a CPU.
        runtime: What runs the network.
    """

    card: BackboneCard
    module: torch.nn.Module
    forward: Forward
    scratch: Scratch = dataclasses.field(default_factory=Scratch, repr=False)
    runtime: str = "torch"

    def __call__(self, tiles: torch.Tensor) -> torch.Tensor:
        """Embed uint8 RGB (b, h, w, 3) into float32 (b, dim)."""
        dtype = self.input_dtype(tiles.device)
        return self.of_input(prepare(tiles, self.card, scratch=self.scratch, dtype=dtype))

    def of_input(self, images: torch.Tensor) -> torch.Tensor:
        """Embed normalised images (b, 3, s, s), channels last in memory, into float32 (b, dim)."""
        features = self.forward(images).to(torch.float32)
        # A network that hands its input through must not give away memory that the next batch overwrites.
        return features.clone() if self.scratch.owns(features) else features

    @staticmethod
    def input_dtype(device: torch.device) -> torch.dtype:
        """What images are written in: autocast would round them to its format anyway, in a pass of its own."""
        kind = device.type
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32


def finish(
    module: torch.nn.Module,
    forward: Forward,
    card: BackboneCard,
    device: torch.device,
    *,
    arguments: Mapping[str, object],
) -> NetworkEmbedder:
    """Complete the card by a dry run on one empty tile, and move the network to the device.

    Args:
        module: With its weights loaded, on the CPU.
        forward: As in :class:`NetworkEmbedder`.
        card: All but ``dim`` and ``weights_digest`` is right.
        device: Where it shall run.
        arguments: What shaped the network beside its weights; goes into the digest.

    Raises:
        SpecError: The network does not take this input or does not give one vector a tile.
    """
    module.eval().requires_grad_(requires_grad=False)
    trial = torch.zeros(1, 3, card.input_px, card.input_px)
    try:
        with torch.inference_mode():
            vector = forward(trial)
    except (RuntimeError, AssertionError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, SpecError):
            raise
        first = (str(error) or repr(error)).splitlines()[0]
        cure = "check input_px and, for a network of fixed size, its img_size argument"
        raise SpecError(f"{card.name} fails on a {card.input_px} px input: {first}", hint=cure) from error
    if vector.ndim != 2 or len(vector) != 1:
        raise SpecError(f"{card.name} gives shape {tuple(vector.shape)}, not one vector a tile", hint="change pooling")
    card = dataclasses.replace(card, dim=vector.shape[1], weights_digest=weights_digest(module.state_dict(), arguments))
    # Convolutions run 1.2 to 1.8 times faster in this order; for transformers it changes nothing.
    module.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return NetworkEmbedder(card=card, module=module, forward=forward)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random initialisation inside depends on the seed only, and leaves torch's generator outside untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
