"""SAM, F-MTL and cooperative flat minima: their exact reductions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from histotl.core.errors import UsageError
from histotl.core.registry import create
from histotl.learn._gradients import gradients, uphill
from histotl.learn._trainer import Data, make_batch, start_stepper
from histotl.learn.bags import Bags
from histotl.learn.config import TrainConfig
from histotl.learn.network import Architecture, Network
from histotl.learn.objective import Objective
from histotl.learn.rows import ArrayRows
from histotl.learn.seeds import seeded
from tests.learn.small import ALL, SIZE, TYPE, YES, Small, rows, same, small


@pytest.mark.parametrize(
    ("optimizer", "balancing"),
    [("sam", "equal"), ("sam", "uncertainty"), ("sam", "upgrad"), ("fmtl", "equal"), ("fmtl", "upgrad")],
)
def test_no_radius_is_the_plain_step(optimizer: str, balancing: str) -> None:
    # F-MTL compares gradients of weights.
    settings = {"balancing": balancing, "gradients": "parameters"}
    plain, flat = small(**settings), small(optimizer=f"{optimizer}(rho=0.0)", **settings)
    losses = plain.train(), flat.train()
    if balancing != "uncertainty":
        np.testing.assert_allclose(*losses, rtol=1e-5)
    first, second = plain.weights(), flat.weights()
    if balancing == "equal" and optimizer == "sam":
        assert same(first, second)
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("optimizer", ["sam", "fmtl"])
def test_a_smaller_radius_is_closer_to_the_plain_step(optimizer: str) -> None:
    def distance(rho: float) -> float:
        runs = small(torch_optimizer="SGD"), small(optimizer=f"{optimizer}(rho={rho})", torch_optimizer="SGD")
        for run in runs:
            run.train()
        first, second = (run.weights() for run in runs)
        return sum(float((first[name] - second[name]).norm()) for name in first)

    far, near = distance(0.1), distance(0.001)
    assert 0 < near < 0.05 * far


def test_sam_is_the_gradient_at_the_moved_weights_and_the_weights_come_back() -> None:
    run = small([SIZE], optimizer="sam(rho=0.3)", torch_optimizer="SGD", dropout=0.0, hidden=0)
    weight, bias = (p.detach().clone() for p in run.network.heads[0].parameters())
    x, targets = rows()
    y = torch.from_numpy((targets["size"] - targets["size"].mean()) / targets["size"].std()).float()
    prior = run.objective.priors["size"]

    def slopes(w: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, ...]:
        w, b = w.clone().requires_grad_(), b.clone().requires_grad_()
        loss = torch.nn.functional.huber_loss(x[:32] @ w[0] + b, y[:32]) / prior
        return torch.autograd.grad(loss, (w, b))

    run.train(1)
    first = slopes(weight, bias)
    norm = torch.cat([g.flatten() for g in first]).norm()
    second = slopes(weight + 0.3 * first[0] / norm, bias + 0.3 * first[1] / norm)
    torch.testing.assert_close(run.network.heads[0].weight.detach(), weight - 0.01 * second[0], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(run.network.heads[0].bias.detach(), bias - 0.01 * second[1], atol=1e-6, rtol=1e-5)


def test_the_climb_has_the_stated_length() -> None:
    parameters = [torch.tensor([3.0, -2.0]), torch.tensor([0.5])]
    slopes: list[torch.Tensor | None] = [torch.tensor([1.0, 1.0]), None]
    plain = uphill(parameters, slopes, 0.1)
    assert plain[1] is None
    torch.testing.assert_close(plain[0], torch.tensor([1.0, 1.0]) * 0.1 / 2**0.5)
    adaptive = uphill(parameters, slopes, 0.1, adaptive=True)[0]
    torch.testing.assert_close(adaptive, torch.tensor([9.0, 4.0]) * 0.1 / 13**0.5)
    assert float((adaptive / parameters[0]).norm()) == pytest.approx(0.1)


def test_fmtl_descends_each_tasks_own_gradient_at_its_own_worst_point() -> None:
    run = small((YES, SIZE), optimizer="fmtl(rho=0.2)", torch_optimizer="SGD", dropout=0.0)
    before, batch = run.weights(), run.batch(np.arange(32))
    names, parameters = [n for n, _ in run.network.named_parameters()], list(run.network.parameters())
    expected = {name: torch.zeros_like(value) for name, value in before.items()}
    for task in ("yes", "size"):
        slopes = gradients(batch.losses(batch.run())[task], parameters)
        with torch.no_grad():
            for parameter, step in zip(parameters, uphill(parameters, slopes, 0.2), strict=True):
                if step is not None:
                    parameter += step
        for name, slope in zip(names, gradients(batch.losses(batch.run())[task], parameters), strict=True):
            if slope is not None:
                expected[name] += slope  # with equal weights g + (g' - g) is g'
        with torch.no_grad():
            for name, parameter in zip(names, parameters, strict=True):
                parameter.copy_(before[name])
    run.train(1)
    for name, value in run.weights().items():
        torch.testing.assert_close(value, before[name] - 0.01 * expected[name], atol=1e-6, rtol=1e-4)


COOPERATIVE = "cooperative"


def cooperative(
    tasks: object = ALL, exchange: str = "mean", torch_optimizer: str = "AdamW", **made_by: object
) -> Small:
    arguments = ", ".join(f"{key}={value!r}" for key, value in made_by.items())
    return small(
        tasks,  # type: ignore[arg-type]
        sharing=f"cooperative(exchange={exchange!r})",
        optimizer=f"cooperative_flat({arguments})",
        torch_optimizer=torch_optimizer,
    )


def test_one_task_with_a_radius_on_its_weights_is_sam() -> None:
    ours, sam = cooperative([TYPE], rho_w=0.1), small([TYPE], sharing="none", optimizer="sam(rho=0.1)")
    assert ours.train() == sam.train()
    assert same(ours.weights(), sam.weights())


@pytest.mark.parametrize("perturb", ["worst", "noise", "none"])
def test_without_exchange_they_are_single_task_networks_bit_for_bit(perturb: str) -> None:
    together = cooperative(exchange="none", perturb=perturb)
    together.train()
    state = together.network.state_dict()
    for place, task in enumerate(ALL):
        alone = small([task], sharing="none")
        alone.train()
        for name, value in alone.weights().items():
            assert torch.equal(state[name.replace(".0.", f".{place}.")], value), (task.name, name)


@pytest.mark.parametrize("exchange", ["mean", "concat", "attention"])
def test_no_radius_is_block_coordinate_descent(exchange: str) -> None:
    ours = cooperative(exchange=exchange, rho=0.0, order="fixed")
    plain = cooperative(exchange=exchange, order="fixed")
    network, descent = plain.network, torch.optim.AdamW(plain.network.parameters(), lr=0.01)
    ours.train(6)
    with seeded(5):
        network.train()
        for step in range(6):
            batch = plain.batch((np.arange(32) + step * 32) % 96)
            for task in ("yes", "size", "type"):
                descent.zero_grad()
                # Others' features carry no gradient, so the task's loss reaches its own block only.
                batch.losses(batch.run())[task].backward()
                descent.step()
    assert same(ours.weights(), plain.weights())
    assert not same(ours.weights(), moved(cooperative(exchange=exchange, rho=0.5, order="fixed"), 6))


def moved(run: Small, steps: int) -> dict[str, torch.Tensor]:
    run.train(steps)
    return run.weights()


def test_the_order_of_separate_tasks_changes_nothing_and_of_others_does() -> None:
    def trained(exchange: str, order: str) -> dict[str, torch.Tensor]:
        return moved(cooperative(exchange=exchange, order=order, rho=0.1), 6)

    assert same(trained("none", "fixed"), trained("none", "random"))
    assert not same(trained("mean", "fixed"), trained("mean", "random"))


@pytest.mark.parametrize("perturb", ["worst", "noise"])
def test_the_disturbance_has_its_radius_and_the_worst_one_raises_the_loss(perturb: str) -> None:
    run = cooperative(perturb=perturb, rho=0.7)
    run.network.eval()
    batch, steps = run.batch(np.arange(32)), run.stepper
    front = steps._front(batch)  # type: ignore[attr-defined]
    found = steps._disturbance(batch, 1, front)  # type: ignore[attr-defined]
    torch.testing.assert_close(found[:, [0, 2]].norm(dim=2), torch.full((32, 2), 0.7))
    if perturb == "worst":
        assert (found[:, 1] == 0).all()

    def loss(by: torch.Tensor) -> float:
        output = batch.run_with(lambda common: steps._answers(1, common, front + by))  # type: ignore[attr-defined]
        return float(batch.losses(output)["size"].detach())

    if perturb == "worst":
        assert loss(found) > loss(torch.zeros_like(found))
        assert loss(found) > loss(-found)


def test_an_aggregator_takes_one_step_by_the_sum_of_all_blocks() -> None:
    x, targets = rows()
    objective = Objective(ALL, targets)
    network = Network(
        Architecture(
            in_dim=8,
            aggregator="abmil(hidden=6, attention=4, dropout=0.0)",
            hidden=4,
            dropout=0.0,
            outputs=objective.n_outputs(),
            sharing="cooperative(exchange='none')",
        )
    )
    bags = Bags.of(ArrayRows(x.numpy()), np.split(np.arange(96), 32))
    data = Data(targets=objective.tensor(targets)[:32], bags=bags)
    config = TrainConfig(sharing="cooperative(exchange='none')", device="cpu")
    descent = torch.optim.SGD(network.parameters(), lr=0.1)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    batch = make_batch(network, objective, data, np.arange(32))
    sum(batch.losses(batch.run()).values()).backward()  # type: ignore[union-attr]
    slopes = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    start_stepper(network, objective, data, config, descent, seed=0).step(batch)
    # Separate blocks see the aggregator as it was before the step, so it is the plain step of all.
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name] - 0.1 * slopes[name], atol=1e-6, rtol=1e-4)


def test_inner_steps_go_further() -> None:
    once, thrice = (cooperative(rho=0.0, inner_steps=n, torch_optimizer="SGD") for n in (1, 3))
    before = once.weights()
    first, second = moved(once, 4), moved(thrice, 4)
    lengths = [sum(float((w[n] - before[n]).norm()) for n in before) for w in (first, second)]
    assert lengths[1] > 2 * lengths[0]


def test_a_missing_task_is_left_alone() -> None:
    for settings in (
        {"optimizer": "sam"},
        {"optimizer": "fmtl", "balancing": "mgda"},
        {"sharing": "cooperative"},
    ):
        run = small(hide=["size"], **settings)
        before = run.weights()
        run.train(4)
        kept = [torch.equal(v, before[n]) for n, v in run.weights().items() if n.startswith("heads.1")]
        assert kept == [True, True], settings


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(UsageError, match="read each other"):
        small(optimizer="cooperative_flat")
    with pytest.raises(UsageError, match="nothing to balance"):
        small(sharing="cooperative", balancing="mgda")
    for spec in ("sam(rho=-1.0)", "fmtl(rho=-0.1)", "cooperative_flat(rho=-1.0)", "cooperative_flat(inner_steps=0)"):
        with pytest.raises(UsageError) as caught:
            create("optimizer", spec)
        assert caught.value.hint
