from __future__ import annotations

import numpy as np
import pytest
import torch

from histotl.core.errors import UsageError
from histotl.core.registry import available, create
from histotl.learn.sharing.base import SharingShape
from tests.learn.small import ALL, SIZE, TYPE, YES, same, small

SHAPE = SharingShape(width=6, hidden=4, dropout=0.0, names=("a", "b", "c"), seed=3)


def build(spec: str, shape: SharingShape = SHAPE) -> torch.nn.Module:
    torch.manual_seed(0)
    return create("sharing", spec).build(shape).double()  # type: ignore[attr-defined,no-any-return]


def bags(n: int = 5) -> torch.Tensor:
    return torch.randn(n, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def reach(module: torch.nn.Module) -> list[set[str]]:
    """For each task, the weights that its features depend on."""
    own = module.own(module.common(bags()))  # type: ignore[operator]
    found = []
    for task in range(3):
        slopes = torch.autograd.grad(own[task].sum(), list(module.parameters()), retain_graph=True, allow_unused=True)
        names = [name for name, _ in module.named_parameters()]
        found.append({n for n, g in zip(names, slopes, strict=True) if g is not None and g.abs().max() > 0})
    return found


def test_what_tasks_share() -> None:
    hard, none, soft = (reach(build(spec)) for spec in ("hard", "none", "soft"))
    assert hard[0] == hard[1] == hard[2] == {"trunk.1.weight", "trunk.1.bias"}
    for each in (none, soft, reach(build("cooperative"))):
        assert not (each[0] & each[1])
        assert not (each[1] & each[2])
    mtan = reach(build("mtan"))
    assert mtan[0] & mtan[1] == {"trunk.1.weight", "trunk.1.bias"}
    assert {"gates.0.weight", "gates.0.bias"} == mtan[0] - mtan[1]
    mmoe = reach(build("mmoe(experts=2)"))
    assert mmoe[0] & mmoe[1] == {f"experts.{e}.1.{part}" for e in (0, 1) for part in ("weight", "bias")}
    cross = reach(build("cross_attention"))
    assert {"trunks.layers.1.weight", "block.query.weight"} <= cross[0]


@pytest.mark.parametrize("spec", ["none", "soft", "mtan", "cross_attention", "mmoe", "cooperative"])
def test_a_tasks_own_first_weights_depend_on_its_name_and_the_seed_only(spec: str) -> None:
    def own(shape: SharingShape, task: str) -> list[torch.Tensor]:
        state, place = build(spec, shape).state_dict(), shape.names.index(task)
        return [value for name, value in state.items() if f"layers.{place}." in name or f"gates.{place}." in name]

    other = SharingShape(width=6, hidden=4, dropout=0.0, names=("z", "c", "a"), seed=3)
    for task in ("a", "c"):
        pairs = list(zip(own(SHAPE, task), own(other, task), strict=True))
        assert pairs
        assert all(torch.equal(first, second) for first, second in pairs)
    changed = SharingShape(width=6, hidden=4, dropout=0.0, names=("a", "b", "c"), seed=4)
    assert not any(torch.equal(a, b) for a, b in zip(own(SHAPE, "a"), own(changed, "a"), strict=True))


@pytest.mark.parametrize("sharing", ["hard", "none"])
@pytest.mark.parametrize("hidden", [0, 16])
def test_masking_a_task_everywhere_is_training_without_it(sharing: str, hidden: int) -> None:
    masked = small(ALL, hide=["size"], sharing=sharing, hidden=hidden)
    without = small((YES, TYPE), sharing=sharing, hidden=hidden)
    assert masked.train() == without.train()
    found, expected = masked.network, without.network
    for theirs, ours in ((0, 0), (1, 2)):
        assert torch.equal(found.heads[ours].weight, expected.heads[theirs].weight)
        if sharing == "none" and hidden:
            layers = found.sharing.trunks.layers, expected.sharing.trunks.layers  # type: ignore[attr-defined]
            assert torch.equal(layers[0][ours].weight, layers[1][theirs].weight)
    if sharing == "hard" and hidden:
        assert torch.equal(found.sharing.trunk[1].weight, expected.sharing.trunk[1].weight)  # type: ignore[attr-defined]
    # The masked task kept its first weights.
    assert torch.equal(found.heads[1].weight, small(ALL, sharing=sharing, hidden=hidden).network.heads[1].weight)


def test_ties_are_the_stated_norms() -> None:
    flat = [torch.cat([p.flatten() for p in layer.parameters()]) for layer in build("soft").trunks.layers]  # type: ignore[union-attr]
    stack = torch.stack(flat)
    pairs = [(flat[0] - flat[1]), (flat[0] - flat[2]), (flat[1] - flat[2])]
    expected = {
        "l1": sum(p.abs().sum() for p in pairs),
        "l2": sum(p.norm() for p in pairs),
        "mean": ((stack - stack.mean(0)) ** 2).sum(),
        "plain_l1": stack.abs().sum(),
        "plain_l2": sum(row.norm() for row in flat),
    }
    for norm, value in expected.items():
        found = build(f"soft(norm={norm!r}, strength=0.5)").penalty()  # type: ignore[operator]
        assert found.item() == pytest.approx(0.5 * value.item()), norm
    assert build("soft").trunks.layers[0].weight.shape == (4, 6)  # type: ignore[union-attr,index]


@pytest.mark.parametrize("norm", ["l1", "l2", "mean"])
def test_strong_ties_bring_trunks_together_and_equal_ones_have_finite_gradients(norm: str) -> None:
    def apart(strength: float) -> float:
        run = small(sharing=f"soft(norm={norm!r}, strength={strength})", dropout=0.0)
        run.train(60)
        weights = run.network.sharing.trunks.weights()  # type: ignore[attr-defined]
        return float((weights - weights.mean(0)).norm().detach())

    assert apart(1.0) < 0.3 * apart(0.0)
    module = build(f"soft(norm={norm!r})")
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    module.penalty().backward()  # type: ignore[operator]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


def test_gates_and_mixtures_are_the_stated_sums() -> None:
    x = bags()
    mtan = build("mtan")
    z = torch.nn.functional.gelu(mtan.trunk[0](x))  # type: ignore[index,operator]
    gate = torch.sigmoid(mtan.gates[1](torch.cat([z, x], 1)))  # type: ignore[index,operator]
    torch.testing.assert_close(mtan.own(mtan.common(x))[1], z * gate)  # type: ignore[operator]
    mmoe = build("mmoe(experts=3)")
    experts = torch.stack([expert(x) for expert in mmoe.experts], 1)  # type: ignore[union-attr]
    share = mmoe.gates[2](x).softmax(1)  # type: ignore[index,operator]
    torch.testing.assert_close(mmoe.own(mmoe.common(x))[2], (experts * share[..., None]).sum(1))  # type: ignore[operator]


def test_attention_looks_at_the_others_only() -> None:
    block = build("cross_attention").block
    tokens = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    seen = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    block(tokens, seen)[:, 1].sum().backward()  # type: ignore[operator]
    assert seen.grad is not None
    assert (seen.grad[:, 1] == 0).all()
    assert (seen.grad[:, [0, 2]] != 0).any()


@pytest.mark.parametrize("exchange", ["mean", "concat", "attention"])
def test_cooperative_features_of_the_others_are_read_and_get_no_gradient(exchange: str) -> None:
    module = build(f"cooperative(exchange={exchange!r})")
    own = module.own(module.common(bags()))  # type: ignore[operator]
    features = module.features(module.common(bags()))  # type: ignore[operator]
    for task in range(3):
        assert own[task].shape == (5, module.out_dim)
        torch.testing.assert_close(own[task][:, :4], features[task])
    slopes = torch.autograd.grad(own[1].square().sum(), list(module.trunks.parameters()), allow_unused=True)  # type: ignore[union-attr]
    assert [slope is None for slope in slopes] == [True, True, False, False, True, True]
    with torch.no_grad():
        module.trunks.layers[0].weight.mul_(2)  # type: ignore[union-attr,index]
        changed = module.own(module.common(bags()))  # type: ignore[operator]
    assert all((a - b).abs().max() > 1e-9 for a, b in zip(own, changed, strict=True)), "the first task is not read"


@pytest.mark.parametrize("sharing", [*available("sharing"), "cooperative(exchange='attention')", "soft(norm='l1')"])
def test_every_way_of_sharing_learns_all_tasks(sharing: str) -> None:
    run = small(sharing=sharing, dropout=0.1)
    run.train(150)
    run.network.eval()
    losses = run.batch(np.arange(96)).again()
    assert set(losses) == {"yes", "size", "type"}
    assert all(float(loss) < 0.6 for loss in losses.values()), losses


def test_same_seed_same_weights() -> None:
    for sharing in available("sharing"):
        first, second = small(sharing=sharing), small(sharing=sharing)
        first.train(5)
        second.train(5)
        assert same(first.weights(), second.weights()), sharing


def test_wrong_settings_are_refused() -> None:
    for spec in ("mmoe(experts=0)", "cross_attention(heads=0)", "soft(strength=-1.0)", "soft(norm='l3')"):
        with pytest.raises(UsageError) as caught:
            create("sharing", spec)
        assert caught.value.hint


def test_one_task_alone_is_the_same_under_none_and_cooperative() -> None:
    first, second = (small([SIZE], sharing=s, optimizer="adamw") for s in ("none", "cooperative"))
    first.train()
    second.train()
    assert same(first.weights(), second.weights())
