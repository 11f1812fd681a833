"""Many networks of one architecture as one: their weights stacked, their steps made together."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn
from torch.func import functional_call, stack_module_state

from histotl.learn.bags import Packed
from histotl.learn.network import Network

BETAS, EPS = (0.9, 0.999), 1e-8
"""Those of AdamW."""

Outputs = dict[str, torch.Tensor]


class Stack:
    """M networks.

    Args:
        networks: Alike but for their weights and input scales, on one device.
        dropout: On embedded tiles, where the networks pool by gated attention.
    """

    def __init__(self, networks: Sequence[Network], dropout: float = 0.0) -> None:
        self.weights, self._scales = stack_module_state(list(networks))
        self._answer = _Answer(copy.deepcopy(networks[0]).to("meta"))
        self._dropout = dropout
        if not networks[0].pools_first:
            self._embed, self._gates, self._score = (_named(self.weights, part) for part in ("embed", "gates", "score"))

    def __len__(self) -> int:
        return len(next(iter(self.weights.values())))

    def answer(
        self,
        bags: torch.Tensor,
        weights: Outputs,
        covariates: torch.Tensor | None = None,
        *,
        train: bool,
        where: slice | None = None,
    ) -> Outputs:
        """Task -> float (M, B, o), from bag vectors (M, B, d) and what is known of the bags (M, B, c).

        Of all networks, or of those at ``where``, whose weights are given.
        """
        self._answer.train(train)
        named = {f"network.{name}": value for name, value in (weights | self._scales_of(where)).items()}

        def one(state: Outputs, *inputs: torch.Tensor) -> Outputs:
            return functional_call(self._answer, state, inputs)  # type: ignore[no-any-return]

        given = (bags,) if covariates is None else (bags, covariates)
        return torch.vmap(one, randomness="different")(named, *given)

    def pool(self, packed: Packed, weights: Outputs, *, train: bool, where: slice | None = None) -> torch.Tensor:
        """Bag vectors (M, B, h) by gated attention; tiles are multiplied with the first layers of all networks at once.

        The scales of the networks' inputs go into these layers, around a scale that they have in common.
        """
        scales = self._scales_of(where)
        mean, std = scales["mean"], scales["std"]
        middle, spread = mean.mean(dim=0), std.mean(dim=0)
        first = weights[self._embed] * (spread / std)[:, None]
        shift = ((mean - middle) / spread)[:, None] @ first.transpose(1, 2)
        bias = weights[self._embed.replace("weight", "bias")] - shift[:, 0]
        x = packed.x.to(mean.device).sub(middle).div_(spread)
        width = first.shape[1]
        h = torch.addmm(bias.reshape(-1), x, first.reshape(-1, first.shape[2]).T).relu_()
        h = nn.functional.dropout(h, self._dropout, training=train).view(len(x), len(first), width).transpose(0, 1)
        gates = torch.baddbmm(
            weights[self._gates.replace("weight", "bias")][:, None], h, weights[self._gates].transpose(1, 2)
        )
        v, u = gates.chunk(2, dim=2)
        scores = (torch.tanh(v) * torch.sigmoid(u)) @ weights[self._score].transpose(1, 2)
        sizes = torch.diff(packed.offsets).tolist()
        pooled = [
            some.softmax(dim=1).transpose(1, 2) @ tiles
            for some, tiles in zip(torch.split(scores, sizes, dim=1), torch.split(h, sizes, dim=1), strict=True)
        ]
        return torch.cat(pooled, dim=1)

    def _scales_of(self, where: slice | None) -> Outputs:
        return self._scales if where is None else {name: value[where] for name, value in self._scales.items()}

    def load(self, networks: Sequence[Network], weights: Outputs) -> None:
        """Copy weights back into networks."""
        with torch.no_grad():
            for number, network in enumerate(networks):
                for name, parameter in network.named_parameters():
                    parameter.copy_(weights[name][number])


class _Answer(nn.Module):
    """The part of a network behind its bag vectors."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, bags: torch.Tensor, covariates: torch.Tensor | None = None) -> Outputs:
        return self.network.answer(bags, covariates)


class StackedAdamW:
    """AdamW on stacked weights, with a learning rate for each network; matrices decay, as in training one by one.

    Args:
        weights: Name -> (M, …).
        rates: float (M,): peak learning rates.
        decay: Of matrices.
    """

    def __init__(self, weights: Outputs, rates: torch.Tensor, decay: float) -> None:
        self._weights, self._rates, self._decay = list(weights.values()), rates, decay
        self._first = [torch.zeros_like(value) for value in self._weights]
        self._second = [torch.zeros_like(value) for value in self._weights]
        self._steps = 0

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """One step at a share of the peak rates; the gradients are used up."""
        self._steps += 1
        correct, spread = 1 - BETAS[0] ** self._steps, (1 - BETAS[1] ** self._steps) ** 0.5
        for weight, first, second in zip(self._weights, self._first, self._second, strict=True):
            grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
            rates = (self._rates * factor).view(-1, *[1] * (weight.ndim - 1))
            if weight.ndim > 2:
                weight.mul_(1 - rates * self._decay)
            first.lerp_(grad, 1 - BETAS[0])
            second.mul_(BETAS[1]).addcmul_(grad, grad, value=1 - BETAS[1])
            weight.sub_((first / (second.sqrt().div_(spread).add_(EPS))).mul_(rates / correct))
            weight.grad = None


def _named(weights: Outputs, part: str) -> str:
    """The matrix of one layer of gated attention."""
    found = [name for name in weights if name.startswith("aggregator.") and name.endswith(".weight") and part in name]
    if len(found) != 1:
        raise ValueError(f"{len(found)} matrices of the aggregator are called {part}")
    return found[0]
