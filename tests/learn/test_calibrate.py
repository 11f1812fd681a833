from __future__ import annotations

import numpy as np
import pytest
import torch

from histotl.learn.calibrate import averaged, calibrate, fit_temperature, negative_log_likelihood
from histotl.learn.scores import decide, entropy
from histotl.learn.task import Task

TASKS = (
    Task(name="b", kind="binary", classes=("n", "y")),
    Task(name="m", kind="multiclass", classes=("a", "b", "c")),
    Task(name="o", kind="ordinal", classes=("a", "b", "c", "d")),
)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.kind)
@pytest.mark.parametrize("sharpened", [0.4, 3.0])
def test_a_known_temperature_is_found(task: Task, sharpened: float) -> None:
    generator = torch.Generator().manual_seed(0)
    width = {"binary": 1, "multiclass": 3, "ordinal": 3}[task.kind]
    outputs = torch.randn(20_000, width, generator=generator, dtype=torch.float64) * 2
    p = torch.from_numpy(averaged(task, [outputs]))
    target = torch.multinomial(p, 1, generator=generator)[:, 0].numpy().astype(float)
    target[::7] = np.nan
    assert fit_temperature(task, [outputs * sharpened], target) == pytest.approx(sharpened, rel=0.05)


def test_temperature_never_makes_validation_worse_and_keeps_answers() -> None:
    rng = torch.Generator().manual_seed(1)
    members = [torch.randn(60, 3, generator=rng) * 5 for _ in range(3)]
    target = torch.randint(0, 3, (60,), generator=rng).numpy()
    t = fit_temperature(TASKS[1], members, target.astype(float))
    before, after = averaged(TASKS[1], members), averaged(TASKS[1], members, t)
    assert negative_log_likelihood(after, target) <= negative_log_likelihood(before, target)
    np.testing.assert_allclose(after.sum(axis=1), 1, atol=1e-12)
    single = [members[0]]
    np.testing.assert_array_equal(averaged(TASKS[1], single).argmax(1), averaged(TASKS[1], single, t).argmax(1))


def test_few_labels_and_regression_have_no_temperature() -> None:
    target = np.full(50, np.nan)
    target[:9] = 1
    assert fit_temperature(TASKS[0], [torch.randn(50, 1)], target) == 1.0
    size = Task(name="s", kind="regression")
    assert calibrate([size], {"s": [torch.randn(50, 1)]}, {"s": np.ones(50)}) == {}


def test_ordinal_answer_is_the_median() -> None:
    p = np.array([[0.4, 0.2, 0.1, 0.3], [0.6, 0.0, 0.0, 0.4], [0.1, 0.1, 0.2, 0.6]])
    assert decide(TASKS[2], p).tolist() == [1, 0, 3]
    assert decide(TASKS[1], p[:, :3]).tolist() == [0, 0, 2]
    np.testing.assert_allclose(entropy(np.array([[0.5, 0.5], [1.0, 0.0]])), [np.log(2), 0], atol=1e-12)
