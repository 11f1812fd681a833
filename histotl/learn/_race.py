"""The training loop of many networks at once."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from histotl.core.progress import Report, Step
from histotl.learn._stacked import Outputs, Stack, StackedAdamW
from histotl.learn._trainer import Data, look_steps
from histotl.learn.bags import Bags, Packed
from histotl.learn.config import TrainConfig
from histotl.learn.objective import Objective
from histotl.learn.sampling import tiles_of
from histotl.learn.schedule import rate_factor
from histotl.learn.seeds import seeded
from histotl.learn.stopping import has_stalled
from histotl.learn.strata import Strata

CHECK_CELLS = 1 << 16
"""Tiles times networks in one pass over the validation bags."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Fold:
    """Networks with the same bags.

    Args:
        where: Where they stand in the stack.
        objective: Made of their training labels.
        train: float32 (B, t) labels of all bags, NaN where a bag is not learnt from.
        val: Likewise, of the bags that choose the checkpoint.
        looked: int64, rising: these bags.
        together: The losses can be computed for all of them at once.
    """

    where: slice
    objective: Objective
    train: torch.Tensor
    val: torch.Tensor
    looked: npt.NDArray[np.int64]
    together: bool

    @cached_property
    def _learning(self) -> Objective:
        return self.objective.as_drawn()

    def losses(self, outputs: Outputs, bags: torch.Tensor) -> torch.Tensor:
        """Joint training loss of each network on some bags: task -> (m, b, o) into (m,); 0 where none is labelled."""
        targets = self.train[bags]

        def one(own: Outputs) -> torch.Tensor:
            found = self._learning.losses(own, targets)
            if not found:
                return next(iter(own.values())).sum() * 0
            return torch.stack([loss / self.objective.priors[name] for name, loss in found.items()]).sum()

        count = self.where.stop - self.where.start
        if self.together and count > 1:
            return torch.vmap(one)(outputs)
        return torch.stack([one({name: value[i] for name, value in outputs.items()}) for i in range(count)])


@dataclass(frozen=True, kw_only=True, eq=False)
class Finish:
    """What the networks became, in the order of the stack.

    Args:
        weights: Name -> (M, …), of each network's checkpoint of least validation loss.
        losses: That loss.
        histories: One entry a look.
    """

    weights: Outputs
    losses: list[float]
    histories: list[list[dict[str, object]]]


class Race:
    """Trains a stack.

    Args:
        stack: The networks.
        folds: Which of them learn from what.
        rates: float (M,): peak learning rates.
        learnt: int64: bags that any network learns from; steps are made of them.
        looked: int64: bags that choose any network's checkpoint.
        bags: All bags.
        pooled: float (F, B, d): vectors of all bags for each fold; None where they are pooled by what is trained.
        covariates: float (F, B, c): what is known of all bags for each fold; None for nothing.
        strata: What every step is to hold some of; None for nothing special.
    """

    def __init__(
        self,
        *,
        stack: Stack,
        folds: list[Fold],
        rates: torch.Tensor,
        learnt: npt.NDArray[np.int64],
        looked: npt.NDArray[np.int64],
        bags: Bags,
        pooled: torch.Tensor | None,
        covariates: torch.Tensor | None = None,
        strata: Strata | None = None,
    ) -> None:
        self.stack, self._folds, self._rates = stack, folds, rates
        self._learnt, self._looked, self._pooled, self._covariates = learnt, looked, pooled, covariates
        device = rates.device
        self._fold_of = torch.tensor(
            [i for i, fold in enumerate(folds) for _ in range(fold.where.stop - fold.where.start)], device=device
        )
        at = torch.from_numpy(learnt).to(device)
        self.data = Data(
            targets=folds[0].train[at],
            pooled=None if pooled is None else pooled[0, at],
            bags=bags.subset(learnt) if pooled is None else None,
            strata=strata,
        )
        self._bags = bags

    def run(self, config: TrainConfig, report: Report) -> Finish:
        """Train; see :func:`histotl.learn._trainer.train_one`, whose steps these are."""
        weights, count = self.stack.weights, len(self.stack)
        checks = self._checks(config)
        steps, rng = self.data.steps(config), np.random.default_rng(config.seed)
        optimizer, looks = StackedAdamW(weights, self._rates, config.weight_decay), look_steps(steps)
        average = {name: value.detach().clone() for name, value in weights.items()}
        kept, seen = {name: value.clone() for name, value in average.items()}, list[torch.Tensor]()
        best, histories = [math.inf] * count, [list[dict[str, object]]() for _ in range(count)]
        losses: list[list[float]] = [[] for _ in range(count)]
        with seeded(config.seed):
            for step, (rows, drawn) in zip(range(1, steps + 1), self.data.stream(config, rng), strict=False):
                chosen = torch.from_numpy(self._learnt[rows]).to(self._rates.device)
                totals = self._losses(chosen, drawn)
                if totals.requires_grad:  # a step may hold bags without any label
                    totals.sum().backward()  # type: ignore[no-untyped-call]
                optimizer.step(rate_factor(step - 1, steps))
                self._follow(average, min(config.ema, (1 + step) / (10 + step)))
                seen.append(totals.detach())
                if step not in looks:
                    continue
                means, seen = torch.stack(seen).mean(dim=0).tolist(), []
                for number, (total, by_task) in enumerate(self._look(average, checks)):
                    if has_stalled(losses[number], config.patience):
                        continue
                    losses[number].append(total)
                    entry = {"step": step, "train": means[number], "val": total, "val_tasks": by_task}
                    histories[number].append(entry)
                    if total < best[number]:
                        best[number] = total
                        for name, value in average.items():
                            kept[name][number] = value[number]
                report(Step(stage="train", done=step, total=steps, message=f"{count} networks, step {step} of {steps}"))
                if all(has_stalled(own, config.patience) for own in losses):
                    break
        return Finish(weights=kept, losses=best, histories=histories)

    def _losses(self, bags: torch.Tensor, drawn: torch.Tensor | Packed) -> torch.Tensor:
        """Joint training loss (M,) of each network on some bags; tiles of others' bags are not multiplied."""
        if not isinstance(drawn, Packed):
            outputs = self._outputs(bags, drawn, self.stack.weights, train=True)
            parts = [fold.losses({n: v[fold.where] for n, v in outputs.items()}, bags) for fold in self._folds]
            return torch.cat(parts)
        # Split, and not cut by slices: the gradients of all folds are joined once.
        counts = [fold.where.stop - fold.where.start for fold in self._folds]
        weights = {name: torch.split(value, counts) for name, value in self.stack.weights.items()}
        parts = []
        for number, fold in enumerate(self._folds):
            places = torch.nonzero(~torch.isnan(fold.train[bags]).all(dim=1))[:, 0]
            if not len(places):
                parts.append(fold.train.new_zeros(counts[number]))
                continue
            own = {name: value[number] for name, value in weights.items()}
            mine = bags[places]
            outputs = self._outputs(mine, _part(drawn, places.cpu().numpy()), own, train=True, where=fold.where)
            parts.append(fold.losses(outputs, mine))
        return torch.cat(parts)

    def _outputs(
        self,
        bags: torch.Tensor,
        drawn: torch.Tensor | Packed | None,
        weights: Outputs,
        *,
        train: bool,
        where: slice | None = None,
    ) -> Outputs:
        """Task -> (M, b, o), of all networks or of those at ``where``, whose weights are given."""
        fold = (self._fold_of if where is None else self._fold_of[where])[:, None]
        if self._pooled is not None:
            vectors = self._pooled[fold, bags]
        elif isinstance(drawn, Packed):
            vectors = self.stack.pool(drawn, weights, train=train, where=where)
        else:
            raise ValueError("neither vectors nor bags")
        known = None if self._covariates is None else self._covariates[fold, bags]
        return self.stack.answer(vectors, weights, train=train, covariates=known, where=where)

    @torch.no_grad()
    def _follow(self, average: Outputs, decay: float) -> None:
        torch._foreach_lerp_(list(average.values()), [w.detach() for w in self.stack.weights.values()], 1 - decay)

    def _checks(self, config: TrainConfig) -> list[Bags | None]:
        """The validation bags of each fold, with the tiles that the looks see; None where bags are pooled once."""
        if self._pooled is not None:
            return [None] * len(self._folds)
        # A bag has the same tiles for whoever looks at it.
        val = self._bags.subset(self._looked).thinned(config.max_tiles, config.seed)
        return [val.subset(np.searchsorted(self._looked, fold.looked)) for fold in self._folds]

    @torch.no_grad()
    def _look(self, average: Outputs, checks: list[Bags | None]) -> list[tuple[float, dict[str, float]]]:
        """Validation loss of each network on its own bags, and those of its tasks."""
        found = []
        for fold, val in zip(self._folds, checks, strict=True):
            weights = {name: value[fold.where] for name, value in average.items()}
            looked = torch.from_numpy(fold.looked).to(self._rates.device)
            most = max(1, CHECK_CELLS // (fold.where.stop - fold.where.start))
            parts = [
                self._outputs(some, drawn, weights, train=False, where=fold.where)
                for some, drawn in _looks(looked, val, most)
            ]
            joined = {name: torch.cat([part[name] for part in parts], dim=1) for name in parts[0]}
            for number in range(fold.where.stop - fold.where.start):
                own = {name: value[number] for name, value in joined.items()}
                losses = fold.objective.losses(own, fold.val[looked])
                by_task = {name: round(float(value), 6) for name, value in losses.items()}
                found.append((float(fold.objective.total(losses)), by_task))
        return found


def _part(packed: Packed, bags: npt.NDArray[np.int64]) -> Packed:
    """Some of the bags."""
    places, offsets = tiles_of(packed.offsets.numpy(), bags)
    at = torch.from_numpy(places).to(packed.x.device)
    return Packed(x=packed.x[at], offsets=torch.from_numpy(offsets))


def _looks(looked: torch.Tensor, val: Bags | None, most: int) -> Iterator[tuple[torch.Tensor, Packed | None]]:
    """Bags in parts of so many rows, and their tiles where these are not pooled."""
    if val is None:
        yield from ((some, None) for some in torch.split(looked, most))
        return
    for some in val.chunks(most):
        yield looked[torch.from_numpy(some).to(looked.device)], val.gather(some)
