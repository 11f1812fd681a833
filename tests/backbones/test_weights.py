"""Weight files: strict, safe, and named by a digest."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from histotl.backbones._weights import load_strict, read_state, weights_digest
from histotl.core.errors import WeightsError


def net() -> torch.nn.Module:
    return torch.nn.Sequential(OrderedDict(body=torch.nn.Conv2d(3, 4, 3), norm=torch.nn.BatchNorm2d(4)))


def test_every_file_format_gives_the_same_state(tmp_path: Path) -> None:
    state = net().state_dict()
    save_file(dict(state), str(tmp_path / "a.safetensors"))
    torch.save(state, tmp_path / "b.pth")
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "c.pt")
    torch.save({"model": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "d.pt")
    digests = {weights_digest(read_state(path)) for path in tmp_path.iterdir()}
    assert digests == {weights_digest(state)}


def test_the_digest_sees_every_bit_name_shape_and_argument() -> None:
    state = {"a": torch.arange(6.0), "b": torch.tensor(1)}
    variants = [
        state,
        {**state, "a": torch.arange(6.0).nextafter(torch.tensor(9.0))},
        {**state, "a": torch.arange(6.0).view(2, 3)},
        {**state, "a": torch.arange(6.0).to(torch.bfloat16)},
        {"c": state["a"], "b": state["b"]},
    ]
    digests = [weights_digest(v) for v in variants] + [weights_digest(state, {"eps": 1e-3})]
    assert len(set(digests)) == 6
    assert weights_digest(dict(reversed(state.items()))) == digests[0]
    assert weights_digest(state, {"eps": None, "drop": []}) == digests[0]
    assert weights_digest({}) == ""
    strided = torch.arange(12.0).view(3, 4).T
    assert weights_digest({"a": strided}) == weights_digest({"a": strided.contiguous()})


def test_loading_is_strict_and_lists_what_is_wrong() -> None:
    state = net().state_dict()
    load_strict(net(), state, source="w")
    load_strict(net(), {k: v for k, v in state.items() if "num_batches" not in k}, source="w")
    missing = {k: v for k, v in state.items() if k != "norm.bias"}
    with pytest.raises(WeightsError, match=r"1 missing: norm\.bias"):
        load_strict(net(), missing, source="w")
    with pytest.raises(WeightsError, match=r"1 unexpected: head\.weight"):
        load_strict(net(), {**state, "head.weight": torch.zeros(2)}, source="w")
    with pytest.raises(WeightsError, match=r"1 of another shape: body\.bias \(9,\), not \(4,\)"):
        load_strict(net(), {**state, "body.bias": torch.zeros(9)}, source="w")


def test_only_the_classifier_may_be_left_over() -> None:
    state = {**net().state_dict(), "head.weight": torch.zeros(2), "head.bias": torch.zeros(2)}
    load_strict(net(), state, source="w", spare=("head",))
    with pytest.raises(WeightsError, match=r"unexpected: head\.scale"):
        load_strict(net(), {**state, "head.scale": torch.zeros(2)}, source="w", spare=("head",))
    # A classifier that the network does have is no spare part.
    with pytest.raises(WeightsError, match="missing"):
        load_strict(net(), {k: v for k, v in state.items() if "norm" not in k}, source="w", spare=("norm",))


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("was-run",)


def test_a_file_that_would_run_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Evil()}, "evil.pth")
    with pytest.raises(WeightsError, match="could run code"):
        read_state(Path("evil.pth"))
    assert not Path("was-run").exists()


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_damaged_missing_and_foreign_files(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with pytest.raises(WeightsError, match="does not exist") as caught:
        read_state(path)
    assert caught.value.hint
    for data in (b"", b"not weights at all", b"text\n", b"PK\x03\x04 broken zip", b"\x80\x02"):
        path.write_bytes(data)
        with pytest.raises(WeightsError, match=r"cannot be read|damaged"):
            read_state(path)
    whole = tmp_path / f"whole{path.suffix}"
    (
        save_file({"a": torch.zeros(5000)}, str(whole))
        if whole.suffix != ".pth"
        else torch.save(net().state_dict(), whole)
    )
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(WeightsError, match=r"cannot be read|damaged"):
        read_state(path)


def test_a_file_without_a_state_dict_is_refused(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"epoch": 3}, tmp_path / "epoch.pth")
    with pytest.raises(WeightsError, match="holds no state dict but a list"):
        read_state(tmp_path / "list.pth")
    with pytest.raises(WeightsError, match="a dict with 'epoch'"):
        read_state(tmp_path / "epoch.pth")
