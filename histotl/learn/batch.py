"""One optimiser step's rows, as the step sees them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from histotl.learn.aggregators.base import Aggregated
from histotl.learn.network import Network, Output
from histotl.learn.objective import Objective


@dataclass(frozen=True, kw_only=True)
class Front:
    """The first half of a pass.

    Args:
        pooled: What the aggregator made.
        common: What all tasks read, float (B, c) or (B, t, c); None where the aggregator answers all tasks by itself.
    """

    pooled: Aggregated
    common: torch.Tensor | None


class Batch:
    """Rows with labels that can be passed through a network as often as a step needs.

    Every pass sees the same tiles and the same dropout: a second look at the same function at other weights, and not at
    another function.

    Args:
        network: Being trained.
        objective: Its losses.
        targets: Labels of the rows, for ``objective``.
        pool: Passes the rows through the network's aggregator.
        covariates: What is known of the rows, float (b, c); None where the network is told nothing.
    """

    def __init__(
        self,
        *,
        network: Network,
        objective: Objective,
        targets: torch.Tensor,
        pool: Callable[[], Aggregated],
        covariates: torch.Tensor | None = None,
    ) -> None:
        self.network, self._objective, self._targets, self._pool = network, objective, targets, pool
        self._covariates = covariates
        self._device = targets.device
        self._noise: tuple[torch.Tensor, torch.Tensor | None] | None = None

    def front(self) -> Front:
        """The first half of a pass, up to what all tasks read."""
        self._rewind()
        pooled = self._pool()
        answered = pooled.direct.keys() >= set(self.network.names)
        common = None if answered else self.network.common(pooled.bags, self._covariates)
        return Front(pooled=pooled, common=common)

    def finish(self, front: Front, common: torch.Tensor | None = None) -> Output:
        """The second half, from the front's own ``common`` or from another in its place."""
        return self.network.respond(front.pooled, front.common if common is None else common)

    def run(self) -> Output:
        """A whole pass."""
        return self.finish(self.front())

    def run_with(self, answer: Callable[[torch.Tensor], dict[str, torch.Tensor]]) -> Output:
        """A pass whose second half is ``answer``: what all tasks read -> output of each task.

        Raises:
            ValueError: The aggregator answers all tasks by itself.
        """
        front = self.front()
        if front.common is None:
            raise ValueError("nothing is read by all tasks")
        return Output(tasks=answer(front.common), pooled=front.pooled)

    def losses(self, output: Output) -> dict[str, torch.Tensor]:
        """Loss of each task with labels here, in units of its constant predictor."""
        losses = self._objective.losses(output.tasks, self._targets)
        return {name: loss / self._objective.priors[name] for name, loss in losses.items()}

    def again(self) -> dict[str, torch.Tensor]:
        """Losses as they are now, without gradients."""
        with torch.no_grad():
            return self.losses(self.run())

    def added(self, output: Output) -> torch.Tensor | None:
        """Losses of the network's own parts, a scalar."""
        return self.network.auxiliary(output, self._objective.judge(self._targets))

    def _rewind(self) -> None:
        """The first pass finds the random streams as they are; later ones find them as the first did."""
        on_gpu = self._device.type == "cuda"
        if self._noise is None:
            self._noise = torch.get_rng_state(), torch.cuda.get_rng_state(self._device) if on_gpu else None
            return
        torch.set_rng_state(self._noise[0])
        if self._noise[1] is not None:
            torch.cuda.set_rng_state(self._noise[1], self._device)
