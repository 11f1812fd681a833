"""From features to answers with intervals. Random features: only the time matters here."""

from __future__ import annotations

import statistics
import time

import numpy as np
import numpy.typing as npt
import torch
from sklearn.metrics import balanced_accuracy_score

from benchmarks.speed.harness import Case, Figure, case
from benchmarks.speed.inputs import Inputs
from histotl.core.intervals import Estimate, Resamples, estimate
from histotl.core.registry import available, create
from histotl.evaluate.metrics import balanced_accuracy
from histotl.learn.bags import Bags
from histotl.learn.balancing.base import GramianRule, Setting
from histotl.learn.config import TrainConfig
from histotl.learn.fit import Labelled, fit
from histotl.learn.network import Architecture, Network
from histotl.learn.objective import Objective
from histotl.learn.rows import ArrayRows
from histotl.learn.task import Task

CLASSES = 6
BAG_BATCH = 16
HEAD_BATCH = 125


@case("learn/abmil-packed")
def abmil_packed(inputs: Inputs) -> Case:
    """An epoch of gated attention with sixteen packed bags a step, against one bag a step as most tools do it."""
    scale, rng = inputs.scale, np.random.default_rng(4)
    sizes = rng.integers(scale.bag_rows[0], scale.bag_rows[1], size=scale.bags, endpoint=True)
    x = rng.standard_normal((int(sizes.sum()), scale.dim), dtype=np.float32)
    bags = Bags.of(ArrayRows(x), np.split(np.arange(len(x)), np.cumsum(sizes)[:-1]))
    labels = {"type": np.arange(scale.bags) % 3.0}
    objective = Objective([Task(name="type", kind="multiclass", classes=("a", "b", "c"))], labels)
    architecture = Architecture(
        in_dim=scale.dim, aggregator="abmil", hidden=256, dropout=0.5, outputs=objective.n_outputs()
    )
    targets = objective.tensor(labels)

    def epoch(bags_a_step: int) -> None:
        network = Network(architecture)
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
        for chosen in np.split(np.arange(scale.bags), range(bags_a_step, scale.bags, bags_a_step)):
            packed = bags.gather(chosen)
            outputs = network(packed.x, packed.offsets).tasks
            loss = objective.total(objective.losses(outputs, targets[torch.from_numpy(chosen)]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return Case(
        name=f"abmil epoch, {scale.bags} bags of {scale.bag_rows[0]}–{scale.bag_rows[1]} × {scale.dim}, packed by 16",
        against="the same, one bag a step",
        ours=lambda: epoch(BAG_BATCH),
        reference=lambda: epoch(1),
        units=scale.bags,
        unit="bags",
    )


@case("learn/heads")
def heads(inputs: Inputs) -> Case:
    """Four tasks over one trunk through ``fit``, against the same steps of the same network written out in torch."""
    scale, rng = inputs.scale, np.random.default_rng(5)
    n = scale.head_rows
    names = ("a", "b", "c", "d", "e", "f")
    tasks = [
        Task(name="type", kind="multiclass", classes=names),
        Task(name="dysplasia", kind="binary", classes=("no", "yes")),
        Task(name="grade", kind="ordinal", classes=names[:4]),
        Task(name="fraction", kind="regression"),
    ]
    x = rng.standard_normal((n + n // 5, scale.dim), dtype=np.float32)
    place = np.arange(len(x))
    values = {"type": place % 6.0, "dysplasia": place % 2.0, "grade": place % 4.0, "fraction": rng.random(len(x))}
    # A fifth of the grades is missing, as in real tables.
    values["grade"] = np.where(place % 5 == 0, np.nan, values["grade"])

    def part(rows: npt.NDArray[np.int64]) -> Labelled:
        bags = Bags.singles(ArrayRows(x), rows)
        return Labelled(bags=bags, targets={name: value[rows] for name, value in values.items()})

    train, val = part(place[:n]), part(place[n:])
    steps = scale.head_steps
    config = TrainConfig(
        members=1,
        learning_rates=(1e-3,),
        min_steps=steps,
        max_steps=steps,
        batch_size=min(n, HEAD_BATCH),
        device="cpu",
    )
    return Case(
        name=f"multi-task head, {n} × {scale.dim}, 4 tasks, {steps} steps",
        against="forward, losses, backward, AdamW of the same steps (floor)",
        ours=lambda: fit(train, val, tasks=tasks, config=config),
        reference=lambda: _bare_training(tasks, train.targets, torch.from_numpy(x[:n]), config),
        units=steps,
        unit="steps",
    )


def _bare_training(
    tasks: list[Task], labels: dict[str, npt.NDArray[np.float64]], x: torch.Tensor, config: TrainConfig
) -> None:
    """No validation, no averaging, no schedule: what the arithmetic alone costs."""
    outputs = {task.name: {"binary": 1, "regression": 1}.get(task.kind, task.n_classes) for task in tasks}
    trunk = torch.nn.Sequential(
        torch.nn.Dropout(0.5), torch.nn.Linear(x.shape[1], config.hidden), torch.nn.GELU(), torch.nn.Dropout(0.5)
    )
    last = torch.nn.Linear(config.hidden, sum(outputs.values()))
    optimizer = torch.optim.AdamW([*trunk.parameters(), *last.parameters()], lr=1e-3)
    targets = {name: torch.from_numpy(np.nan_to_num(values)) for name, values in labels.items()}
    for _ in range(config.max_steps):
        rows = torch.randint(len(x), (config.batch_size,))
        answers = last(trunk(x[rows])).split(list(outputs.values()), dim=1)
        loss = torch.zeros(())
        for task, answer in zip(tasks, answers, strict=True):
            wanted = targets[task.name][rows]
            if task.kind in ("multiclass", "ordinal"):
                loss = loss + torch.nn.functional.cross_entropy(answer, wanted.long())
            else:
                loss = loss + torch.nn.functional.mse_loss(answer[:, 0], wanted.float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@case("learn/balancing")
def balancing(inputs: Inputs) -> Case:  # noqa: ARG001 - the same at every scale
    """Weights from the Gramian of four tasks' gradients: every rule that solves something, against one eigenproblem."""
    rng = np.random.default_rng(8)
    # Gradients of many lengths, half of them with conflicts that leave no direction good for all.
    rows = [rng.standard_normal((4, rank)) * 10 ** rng.uniform(-2, 2, (4, 1)) for rank in (2, 12) for _ in range(10)]
    gramians = [each @ each.T for each in rows]
    losses = dict.fromkeys("abcd", 1.0)
    started = {name: create("balancing", name).start(Setting(priors=losses)) for name in available("balancing")}
    rules = {name: rule for name, rule in started.items() if isinstance(rule, GramianRule)}
    times: dict[str, list[float]] = {name: [] for name in rules}

    def ours() -> None:
        for name, rule in rules.items():
            began = time.perf_counter()
            for gramian in gramians:
                rule.weights(gramian, losses)
            times[name].append((time.perf_counter() - began) / len(gramians))

    def floor() -> None:
        for gramian in gramians:
            np.linalg.eigh(gramian)

    def of(name: str) -> Figure:
        return Figure(text=f"{{}} ms {name}", of=lambda _: statistics.median(times[name]) * 1e3, goal=1.0)

    return Case(
        name=f"weights of 4 tasks from {len(gramians)} Gramians, {len(rules)} rules",
        against=f"eigenvalues of the same Gramians, {len(rules)} times",
        ours=ours,
        reference=floor,
        scale=float(len(rules)),
        units=len(gramians) * len(rules),
        unit="calls",
        figures=tuple(of(name) for name in rules),
    )


@case("evaluate/bootstrap")
def bootstrap(inputs: Inputs) -> Case:
    """Interval of balanced accuracy by resampling patients, against scikit-learn in a loop over resamples."""
    patients, resamples = inputs.scale.patients, inputs.scale.resamples
    rng = np.random.default_rng(6)
    unit = np.repeat(np.arange(patients), 10)
    truth = rng.integers(0, CLASSES, len(unit))
    predicted = np.where(rng.random(len(unit)) < 0.7, truth, rng.integers(0, CLASSES, len(unit)))
    rows = unit.reshape(patients, 10) * 10 + np.arange(10)
    few = resamples // 50

    def ours() -> Estimate:
        draws = Resamples.draw(unit, resamples, seed=0)
        return estimate(balanced_accuracy(draws.confusion(truth, predicted, CLASSES)))

    def loop() -> npt.NDArray[np.float64]:
        own = np.random.default_rng(0)
        scores = []
        for _ in range(few):
            drawn = rows[own.integers(0, patients, patients)].ravel()
            scores.append(balanced_accuracy_score(truth[drawn], predicted[drawn]))
        return np.array(scores)

    def same(interval: Estimate, scores: npt.NDArray[np.float64]) -> bool:
        # Few draws: their mean lies within the interval, widened a little for the smallest test sets.
        return interval.low - 0.05 <= scores.mean() <= interval.high + 0.05

    return Case(
        name=f"bootstrap of balanced accuracy, B = {resamples}, {len(unit):,} rows of {patients:,} patients",
        against=f"scikit-learn in a loop (timed on B = {few})",
        ours=ours,
        reference=loop,
        same=same,
        scale=50.0,
        figures=(Figure(text="{} ms for 1000", of=lambda s: s.ours / resamples * 1e6, goal=10),),
    )
