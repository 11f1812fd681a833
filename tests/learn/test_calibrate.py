from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from histotl.learn.calibrate import calibrate, entry_loss, fit_temperature, negative_log_likelihood
from histotl.learn.calibrators import Isotonic, Temperature, Vector, averaged, from_dict, to_dict
from histotl.learn.decisions import decide
from histotl.learn.scores import entropy
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
    assert calibrate([size], {"s": [torch.randn(50, 1)]}, {"s": np.ones(50)}).calibrations == {}


def test_ordinal_answer_is_the_median() -> None:
    p = np.array([[0.4, 0.2, 0.1, 0.3], [0.6, 0.0, 0.0, 0.4], [0.1, 0.1, 0.2, 0.6]])
    assert decide(TASKS[2], p).tolist() == [1, 0, 3]
    assert decide(TASKS[1], p[:, :3]).tolist() == [0, 0, 2]
    np.testing.assert_allclose(entropy(np.array([[0.5, 0.5], [1.0, 0.0]])), [np.log(2), 0], atol=1e-12)


def drawn(task: Task, n: int, *, scale: float, shift: float, seed: int = 0) -> tuple[torch.Tensor, np.ndarray]:
    """Outputs that overstate, and classes drawn from what would be right."""
    generator = torch.Generator().manual_seed(seed)
    width = {"binary": 1, "multiclass": 3, "ordinal": 3}[task.kind]
    outputs = torch.randn(n, width, generator=generator, dtype=torch.float64) * 2
    target = torch.multinomial(torch.from_numpy(averaged(task, [outputs])), 1, generator=generator)[:, 0].numpy()
    return outputs * scale + shift * torch.arange(1, width + 1), target.astype(float)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.kind)
@pytest.mark.parametrize("method", ["temperature", "vector", "isotonic"])
@pytest.mark.parametrize("n", [5, 30, 1500])
def test_no_method_makes_validation_worse(task: Task, method: str, n: int) -> None:
    members = [drawn(task, n, scale=2, shift=0.5, seed=seed)[0] for seed in range(2)]
    target = drawn(task, n, scale=2, shift=0.5)[1]
    found = calibrate(
        [task], {"b": members, "m": members, "o": members}, {"b": target, "m": target, "o": target}, method
    )
    p = found.calibrations[task.name].probabilities(task, members)
    before = negative_log_likelihood(averaged(task, members), target.astype(int))
    assert negative_log_likelihood(p, target.astype(int)) <= before
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-12)
    assert (p > 0).all()
    if n == 5:
        np.testing.assert_array_equal(p, averaged(task, members))
    again = from_dict(json.loads(json.dumps(to_dict(found.calibrations[task.name]))))
    assert again == found.calibrations[task.name]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.kind)
def test_vector_scaling_finds_scales_and_shifts(task: Task) -> None:
    outputs, target = drawn(task, 20_000, scale=2.0, shift=0.7)
    found = calibrate([task], {task.name: [outputs]}, {task.name: target}, "vector").calibrations[task.name]
    assert isinstance(found, Vector)
    np.testing.assert_allclose(found.scale, 0.5, rtol=0.06)
    wanted = -0.35 * np.arange(1, outputs.shape[1] + 1)
    shift = np.array(found.shift)
    if task.kind == "multiclass":  # a softmax does not see a common shift
        shift, wanted = shift - shift.mean(), wanted - wanted.mean()
    np.testing.assert_allclose(shift, wanted, atol=0.06)


def test_isotonic_straightens_what_no_temperature_can() -> None:
    rng = np.random.default_rng(0)
    p = rng.uniform(0.01, 0.99, 6000)
    target = (rng.random(6000) < np.where(p < 0.5, 0.3, 0.4 + 0.2 * p)).astype(float)
    outputs = [torch.from_numpy(np.log(p / (1 - p)))[:, None]]
    losses = {}
    for method in ("temperature", "isotonic"):
        found = calibrate(TASKS[:1], {"b": outputs}, {"b": target}, method).calibrations["b"]
        losses[method] = negative_log_likelihood(found.probabilities(TASKS[0], outputs), target.astype(int))
    assert losses["isotonic"] < losses["temperature"] - 0.01
    assert isinstance(found, Isotonic)
    values = found.probabilities(TASKS[0], outputs)[:, 1]
    assert (np.diff(values[np.argsort(p)]) >= -1e-12).all(), "the order of the cases may not turn around"
    assert values[p < 0.45].mean() == pytest.approx(0.3, abs=0.03)


def test_what_could_not_be_done_is_said() -> None:
    outputs, target = drawn(TASKS[1], 50, scale=2, shift=0.0)
    for method, needed in (("vector", 60), ("isotonic", 1000)):
        found = calibrate(TASKS[1:2], {"m": [outputs]}, {"m": target}, method)
        assert found.notes["m"] == f"50 labelled validation rows, {method} needs {needed}: temperature instead"
        assert isinstance(found.calibrations["m"], Temperature)
    assert calibrate(TASKS[1:2], {"m": [outputs]}, {"m": target}, "none").calibrations == {}
    few = calibrate(TASKS[1:2], {"m": [outputs[:9]]}, {"m": target[:9]})
    assert "9 labelled validation rows, 10 needed" in few.notes["m"]


LABELS = Task(name="found", kind="multilabel", columns=("a", "b", "c"))


def labelled_entries(n: int, shift: float = 0.0) -> tuple[torch.Tensor, np.ndarray]:
    """Outputs twice too large, moved by a shift a label, and labels of which a third is unknown."""
    rng = np.random.default_rng(0)
    right = rng.normal(size=(n, 3)) * 2
    target = (rng.random((n, 3)) < 1 / (1 + np.exp(-right))).astype(float)
    target[rng.random((n, 3)) < 1 / 3] = np.nan
    return torch.from_numpy(right * 2 + shift * np.arange(1, 4)), target


def test_labels_have_a_temperature_of_their_known_entries() -> None:
    outputs, target = labelled_entries(8000)
    assert fit_temperature(LABELS, [outputs], target) == pytest.approx(2.0, rel=0.05)
    unknown = np.isnan(target)
    other = outputs.clone()
    other[torch.from_numpy(unknown)] = 50.0
    assert fit_temperature(LABELS, [other], target) == fit_temperature(LABELS, [outputs], target)


def test_each_label_has_its_own_scale_and_line() -> None:
    outputs, target = labelled_entries(8000, shift=1.0)
    found = calibrate([LABELS], {"found": [outputs]}, {"found": target}, "vector").calibrations["found"]
    assert isinstance(found, Vector)
    np.testing.assert_allclose(found.scale, 0.5, rtol=0.06)
    np.testing.assert_allclose(found.shift, -0.5 * np.arange(1, 4), atol=0.12)
    line = calibrate([LABELS], {"found": [outputs]}, {"found": target}, "isotonic").calibrations["found"]
    assert isinstance(line, Isotonic)
    p, known = line.probabilities(LABELS, [outputs]), ~np.isnan(target)
    assert p.sum(axis=1).std() > 0.1, "labels do not share one probability"
    for c in range(3):
        for low, high in ((0.0, 0.3), (0.3, 0.7), (0.7, 1.0)):
            inside = known[:, c] & (p[:, c] >= low) & (p[:, c] <= high)
            assert target[inside, c].mean() == pytest.approx(p[inside, c].mean(), abs=0.03)


@pytest.mark.parametrize("method", ["temperature", "vector", "isotonic"])
def test_no_method_makes_labels_worse(method: str) -> None:
    outputs, target = labelled_entries(1200, shift=0.5)
    found = calibrate([LABELS], {"found": [outputs]}, {"found": target}, method).calibrations["found"]
    before, after = averaged(LABELS, [outputs]), found.probabilities(LABELS, [outputs])
    assert entry_loss(after, target) < entry_loss(before, target)
    assert from_dict(json.loads(json.dumps(to_dict(found)))) == found
