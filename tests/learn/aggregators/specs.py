"""Small versions of every registered aggregator, and of variants whose defaults differ, for tests."""

from __future__ import annotations

import torch

from histotl.core.registry import available, create, plugin
from histotl.learn.aggregators.base import AggregatorModule, Outputs

SMALL = {"hidden": 8, "attention": 4, "heads": 2, "query": 4, "inner": 4, "concepts": 4, "kernel": 3, "region": 3}
TASKS: Outputs = (("type", 3), ("dysplasia", 1))
NEED_COORDS = {"graph", "hierarchical", "transformer", "transmil"}

VARIANTS = (
    ("abmil", {"rows": "task"}),
    ("abmil", {"rows": 3}),
    ("abmil", {"gated": False, "entropy": 0.1}),
    ("acmil", {"mask_drop": 0.0, "rows": 1}),
    ("clam", {"branches": "multi", "others": True, "k": 2}),
    ("dtfd", {"distil": "maxmin", "groups": 3}),
    ("instance", {"pool": "mean"}),
    ("instance", {"pool": "lse"}),
    ("instance", {"pool": "topk", "k": 3}),
    ("instance", {"monotone": True}),
    ("instance", {"monotone": True, "pool": "lse"}),
    ("task_tokens", {"position": "coords"}),
    ("transformer", {"position": "none"}),
    ("transmil", {"position": "ppeg"}),
    ("transmil", {"position": "none"}),
)


def small(name: str, **more: object) -> str:
    """Spec of an aggregator with narrow layers."""
    known = plugin("aggregator", name).parameters
    given = {key: value for key, value in SMALL.items() if key in known} | more
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in given.items())})"


NAMES = available("aggregator")
SPECS = [small(name) for name in NAMES] + [small(name, **more) for name, more in VARIANTS]


def build(spec: str, dim: int = 6, outputs: Outputs = TASKS) -> AggregatorModule:
    """The module in double precision and evaluation mode, the same at every call."""
    torch.manual_seed(0)
    return create("aggregator", spec).build(dim, outputs).double().eval()  # type: ignore[attr-defined,no-any-return]


def pack(sizes: list[int], dim: int = 6, step: float = 443.25) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random tiles on a lattice with holes: float64 (N, dim), offsets, int64 (N, 2)."""
    generator = torch.Generator().manual_seed(sum(sizes))
    x = torch.randn(sum(sizes), dim, generator=generator).double()
    coords = []
    for size in sizes:
        side = int((2 * size) ** 0.5) + 1
        cells = torch.randperm(side * side, generator=generator)[:size]
        coords.append(torch.stack([cells % side, cells // side], dim=1))
    places = (torch.cat(coords).double() * step).round().long() + torch.tensor([1200, 77])
    return x, torch.tensor([0, *sizes]).cumsum(0), places
