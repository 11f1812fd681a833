"""What becomes of a model between the last step of training and its file."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch

from histotl.learn.bags import Bags
from histotl.learn.calibrators import averaged
from histotl.learn.fit import Labelled
from histotl.learn.heads.base import Finishing
from histotl.learn.labels import known_rows
from histotl.learn.model import Model
from histotl.learn.network import Network
from histotl.learn.objective import with_options
from histotl.learn.trained import EVAL_ROWS


def finished(model: Model, train_set: Labelled) -> Model:
    """With what heads take from the trained networks' answers for the training rows."""
    wanted = [task for task in model.tasks if isinstance(task.head, Finishing)]
    if not wanted:
        return model
    outputs, done = outputs_of(model, train_set.bags), {}
    for task in wanted:
        known = known_rows(train_set.targets[task.name])
        values = averaged(task, outputs[task.name])[known]
        head = cast("Finishing", task.head).finish(values, train_set.targets[task.name][known])
        done[task.name] = with_options(task, head)
    return replace(model, tasks=tuple(done.get(task.name, task) for task in model.tasks))


def without_auxiliary(model: Model) -> Model:
    """The model without the layers and facts of tasks that only helped to learn."""
    dropped = tuple(task.name for task in model.tasks if task.is_helper)
    if not dropped:
        return model
    architecture = replace(model.architecture, dropped=dropped, adversaries=())
    members = []
    for member in model.members:
        kept = Network(architecture)
        own = kept.state_dict()
        kept.load_state_dict({name: value for name, value in member.state_dict().items() if name in own})
        members.append(kept.eval())
    return replace(
        model,
        architecture=architecture,
        members=tuple(members),
        tasks=tuple(task for task in model.tasks if not task.is_helper),
        facts={name: fact for name, fact in model.facts.items() if name not in dropped},
        calibrations={name: value for name, value in model.calibrations.items() if name not in dropped},
    )


def outputs_of(model: Model, bags: Bags) -> dict[str, list[torch.Tensor]]:
    """Task name -> outputs of each member on all bags."""
    parts = [model.outputs(bags.gather(chunk))[0] for chunk in bags.chunks(EVAL_ROWS)]
    return {
        task.name: [torch.cat([part[task.name][i] for part in parts]) for i in range(len(model.members))]
        for task in model.tasks
    }
