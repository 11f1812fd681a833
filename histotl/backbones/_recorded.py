"""A network of many small layers as one call that does without Python's lock.

Run layer by layer, a network gives up the lock of the interpreter and takes it back at every one of its layers. While
another thread opens slides or writes files in Python, it has to wait for its turn each time: on 50 small slides a small
network lost 5 to 15 % of its speed so. Recorded as a graph (``torch.jit.trace``) the same kernels run in the same order
without the lock.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
import warnings
from collections.abc import Callable

import torch

from histotl.backbones._network import Forward, NetworkEmbedder

log = logging.getLogger(__name__)

_FIRST_S = 5.0
"""Seconds that a network runs layer by layer. Recording takes up to half a second and saves little of each one that
follows: short runs are better off without."""

_FAILURES = (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError, NotImplementedError)
"""What recording raises on a network whose code it cannot follow, or where this torch can record no longer."""


def recorded(embedder: NetworkEmbedder) -> NetworkEmbedder:
    """The same embedder, whose network is recorded once it has worked for some seconds.

    The graph must give the very bits that the network gives, on the batch at hand and on its first tile; otherwise the
    network goes on as it is. In fp32 on a CPU only. Several threads may call it at once: one of them records, while the
    others go on layer by layer; the graph has no state of its own.
    """
    return dataclasses.replace(embedder, forward=_RecordedLater(embedder.module, embedder.forward))


class _RecordedLater:
    """A forward pass that becomes a graph.

    Args:
        module: The network.
        forward: Runs it layer by layer.
    """

    def __init__(self, module: torch.nn.Module, forward: Forward) -> None:
        self._module, self._forward = module, forward
        self._graph: Callable[[torch.Tensor], torch.Tensor] | None = None
        self._left_s, self._is_tried = _FIRST_S, False
        self._lock = threading.Lock()

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """From normalised float (b, 3, s, s) to pooled float (b, dim)."""
        if self._graph is not None:
            return self._run(self._graph, images)
        began = time.perf_counter()
        features = self._forward(images)
        if self._is_due(time.perf_counter() - began, len(images)):
            self._record(images, features)
        return features

    def _is_due(self, seconds: float, count: int) -> bool:
        """Count the seconds of a batch; true for the one batch that is to be recorded."""
        with self._lock:
            self._left_s -= seconds
            if self._left_s > 0 or self._is_tried or count < 2:
                return False
            self._is_tried = True
            return True

    def _record(self, images: torch.Tensor, features: torch.Tensor) -> None:
        """Take the graph where it gives the same features."""
        try:
            with warnings.catch_warnings():
                # Of what it may get wrong the comparison tells; that it is old is no news to the user.
                warnings.simplefilter("ignore")
                graph = torch.jit.trace(_Whole(self._module, self._forward).eval(), images[:2], check_trace=False)  # type: ignore[no-untyped-call]
                same = torch.equal(self._run(graph, images), features)
                same = same and torch.equal(self._run(graph, images[:1]), self._forward(images[:1]))
        except _FAILURES as error:
            log.debug("the network runs layer by layer: %s", error)
            return
        if same:
            self._graph = graph
        else:
            log.debug("the network runs layer by layer: its graph gives other features")

    @staticmethod
    def _run(graph: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor) -> torch.Tensor:
        with torch.jit.optimized_execution(should_optimize=False):  # type: ignore[attr-defined]  # else other kernels, other bits
            return graph(images)


class _Whole(torch.nn.Module):
    """A network with its pooling, as the recorder wants it."""

    def __init__(self, module: torch.nn.Module, forward: Forward) -> None:
        super().__init__()
        self.network, self._forward = module, forward

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """From normalised float (b, 3, s, s) to pooled float (b, dim)."""
        return self._forward(images)
