"""What becomes of a model between the last step of training and its file."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import numpy as np
import torch

from histotl.learn.bags import Bags
from histotl.learn.calibrators import averaged
from histotl.learn.fit import Labelled
from histotl.learn.heads.base import Finishing, Floats, Indices, Recalling
from histotl.learn.labels import known_rows
from histotl.learn.model import Model
from histotl.learn.network import Architecture, Network
from histotl.learn.objective import with_options
from histotl.learn.recall import Recall
from histotl.learn.task import Task
from histotl.learn.trained import EVAL_ROWS


def finished(model: Model, train_set: Labelled) -> Model:
    """With what heads take from the trained networks' answers for the training rows, and the rows that they keep."""
    finishing = [task for task in model.tasks if isinstance(task.head, Finishing)]
    recalling = [task for task in model.tasks if isinstance(task.head, Recalling) and not task.is_helper]
    if not finishing and not recalling:
        return model
    outputs, done = outputs_of(model, train_set.bags), {}
    for task in finishing:
        known = known_rows(train_set.targets[task.name])
        values = averaged(task, outputs[task.name])[known]
        head = cast("Finishing", task.head).finish(values, train_set.targets[task.name][known])
        done[task.name] = with_options(task, head)
    model = replace(model, tasks=tuple(done.get(task.name, task) for task in model.tasks))
    for task in recalling:
        model = _recalling(model, task, outputs[task.name], train_set)
    return model


def _recalling(model: Model, task: Task, outputs: list[torch.Tensor], train_set: Labelled) -> Model:
    """The model whose networks keep the labelled training rows of a task, each as it sees them itself."""
    target = train_set.targets[task.name]
    known = np.flatnonzero(known_rows(target))
    head, chosen = cast("Recalling", task.head).kept(len(known))
    rows = known[chosen].astype(np.int64)
    found = with_options(task, head)
    shares = _shares(target[rows], task.n_classes)
    recalls = (*model.architecture.recalls, (task.name, found.head_spec))
    architecture = replace(model.architecture, recalls=recalls)
    members = tuple(reshaped(member, architecture) for member in model.members)
    case, corner = _origin(train_set, rows)
    for member, seen in zip(members, outputs, strict=True):
        own = cast("Recall", member.recall(task.name))
        own.fill(seen[torch.from_numpy(rows)], torch.from_numpy(shares), case, corner)
    # Votes take for granted what the kept rows are of, however the classes weighed in training.
    fact = replace(model.facts[task.name], implied=tuple(shares.mean(axis=0).tolist()))
    return replace(
        model,
        architecture=architecture,
        members=members,
        tasks=tuple(found if each.name == task.name else each for each in model.tasks),
        facts={**model.facts, task.name: fact},
    )


def _shares(target: Floats, n_classes: int) -> Floats:
    """Share (n, k) of each class, from indices (n,) or shares."""
    return target if target.ndim == 2 else np.eye(n_classes)[target.astype(np.int64)]


def _origin(train_set: Labelled, rows: Indices) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Number of the case that each row is of; and its corner, where rows are tiles of slides."""
    if train_set.owner is None:
        return torch.from_numpy(rows), None
    bags = train_set.bags
    corners = bags.source.coords(bags.rows[bags.offsets[rows]])
    return torch.from_numpy(train_set.owner[rows]), None if corners is None else torch.from_numpy(corners)


def without_auxiliary(model: Model) -> Model:
    """The model without the layers and facts of tasks that only helped to learn."""
    dropped = tuple(task.name for task in model.tasks if task.is_helper)
    if not dropped:
        return model
    architecture = replace(model.architecture, dropped=dropped, adversaries=())
    return replace(
        model,
        architecture=architecture,
        members=tuple(reshaped(member, architecture) for member in model.members),
        tasks=tuple(task for task in model.tasks if not task.is_helper),
        facts={name: fact for name, fact in model.facts.items() if name not in dropped},
        calibrations={name: value for name, value in model.calibrations.items() if name not in dropped},
    )


def reshaped(member: Network, architecture: Architecture) -> Network:
    """The same weights in a network of other shapes: without those that it has no place for, new ones as it is made."""
    network = Network(architecture)
    own = network.state_dict()
    kept = {name: value for name, value in member.state_dict().items() if name in own}
    network.load_state_dict(own | kept)
    return network.eval()


def outputs_of(model: Model, bags: Bags) -> dict[str, list[torch.Tensor]]:
    """Task name -> outputs of each member on all bags."""
    parts = [model.outputs(bags.gather(chunk))[0] for chunk in bags.chunks(EVAL_ROWS)]
    return {
        task.name: [torch.cat([part[task.name][i] for part in parts]) for i in range(len(model.members))]
        for task in model.tasks
    }
