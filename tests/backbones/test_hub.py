"""The hub: cache first, every refusal with its cure, never a wait on a closed network. Nothing here uses a network."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors

from histotl.backbones._hub import fetch
from histotl.core.errors import WeightsError
from histotl.core.registry import create


def refusal(kind: type[Exception], status: int = 0) -> Exception:
    """An error of the hub's library, made without the response object that differs between its versions."""
    error = kind.__new__(kind)
    error.args = ("from the hub",)
    error.response = SimpleNamespace(status_code=status, headers={})  # type: ignore[attr-defined]
    return error


class Hub:
    """Stands for the hub: what is cached, and what a request is answered with."""

    def __init__(self, cached: dict[str, Path] | None = None, answer: Exception | None = None) -> None:
        self.cached, self.answer, self.asked = cached or {}, answer, []

    def download(self, repo: str, name: str, *, revision: str | None = None, local_files_only: bool = False) -> str:
        if name in self.cached:
            return str(self.cached[name])
        raise errors.LocalEntryNotFoundError("not cached")

    def metadata(self, url: str, timeout: float) -> None:
        self.asked.append((url, timeout))
        if self.answer is not None:
            raise self.answer


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    stand_in = Hub()
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", stand_in.download)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", stand_in.metadata)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    return stand_in


def test_the_cache_is_used_without_a_request(hub: Hub, tmp_path: Path) -> None:
    hub.cached = {"b.bin": tmp_path / "b.bin"}
    assert fetch("org/net", ("a.safetensors", "b.bin")) == tmp_path / "b.bin"
    assert hub.asked == []


TRANSPORT = next(k for k in errors.HfHubHTTPError.__bases__)
CASES: list[tuple[Exception, str, str]] = [
    (refusal(errors.GatedRepoError, 403), "org/net is gated", "accept its licence at https://huggingface.co/org/net"),
    (refusal(errors.RepositoryNotFoundError, 401), "not on the hub, or is private", "HF_TOKEN"),
    (refusal(errors.RevisionNotFoundError, 404), "no such revision", "https://huggingface.co/org/net"),
    (refusal(errors.HfHubHTTPError, 401), "refused the token", "hf auth login"),
    (refusal(errors.HfHubHTTPError, 503), "cannot be reached: from the hub", "weights='path/to/file'"),
    (errors.LocalEntryNotFoundError("no way out"), "cannot be reached: no way out", "weights='path/to/file'"),
    (errors.OfflineModeIsEnabled("offline"), "cannot be reached: offline", "weights='path/to/file'"),
    (ConnectionRefusedError("refused"), "cannot be reached: refused", "weights='path/to/file'"),
    (TimeoutError("slow"), "cannot be reached: slow", "weights='path/to/file'"),
    (refusal(TRANSPORT), "cannot be reached: from the hub", "weights='path/to/file'"),
    (refusal(errors.EntryNotFoundError), "has none of the files a.safetensors, b.bin", "weights='path/to/file'"),
]


@pytest.mark.parametrize(
    ("answer", "fact", "cure"), CASES, ids=[f"{i}-{type(c[0]).__name__}" for i, c in enumerate(CASES)]
)
def test_every_refusal_has_its_cure(hub: Hub, answer: Exception, fact: str, cure: str) -> None:
    hub.answer = answer
    with pytest.raises(WeightsError) as caught:
        fetch("org/net", ("a.safetensors", "b.bin"))
    assert fact in caught.value.message
    assert cure in caught.value.hint
    assert all(timeout <= 10 for _, timeout in hub.asked)


def test_offline_mode_is_named(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match="HF_HUB_OFFLINE is set") as caught:
        fetch("org/net", ("a.bin",))
    assert "unset HF_HUB_OFFLINE" in caught.value.hint
    assert hub.asked == []


def test_a_wrong_repository_name() -> None:
    with pytest.raises(WeightsError, match="no repository name"):
        fetch("a/b/c", ("x",))


def test_a_closed_network_fails_at_once_and_never_gives_random_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def closed(*_args: Any, **_kwargs: Any) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", closed)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    for proxy in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(proxy, raising=False)
        monkeypatch.delenv(proxy.upper(), raising=False)
    started = time.monotonic()
    for spec in ("timm/test_byobnet.r160_in1k", "timm/hf-hub:nobody/has-this-net"):
        with pytest.raises(WeightsError, match="cannot be reached") as caught:
            create("backbone", spec).load(torch.device("cpu"))
        assert "weights='path/to/file'" in caught.value.hint
    assert time.monotonic() - started < 20  # the hub's own retries take 23 s a file
