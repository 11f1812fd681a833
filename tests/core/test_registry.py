"""The registry: every plug-in can be built, named and built again; mistakes are answered with the cure."""

from __future__ import annotations

import dataclasses
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from histotl.core import registry
from histotl.core.errors import MissingDependencyError, SpecError, UnknownNameError
from histotl.core.registry import PLUGIN_FOLDERS, available, canonical, create, identified, plugin, unavailable


@pytest.mark.parametrize("kind", PLUGIN_FOLDERS)
def test_every_kind_has_plugins_and_none_fails_to_import(kind: str) -> None:
    assert available(kind)
    assert unavailable(kind) == {}
    for name in available(kind):
        assert plugin(kind, name).summary.endswith("."), f"{kind} {name} needs a one-line docstring"


def _buildable() -> list[tuple[str, str]]:
    every = [(kind, name) for kind in PLUGIN_FOLDERS for name in available(kind)]
    return [(k, n) for k, n in every if dataclasses.MISSING not in plugin(k, n).parameters.values()]


@pytest.mark.parametrize(("kind", "name"), _buildable())
def test_canonical_round_trip(kind: str, name: str) -> None:
    built = create(kind, name)
    assert create(kind, canonical(built)) == built
    assert canonical(create(kind, canonical(built))) == canonical(built)


def test_unknown_name_answers_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError) as caught:
        create("stain", "macenco")
    assert "macenko" in caught.value.hint
    assert isinstance(caught.value, LookupError)


def test_unknown_kind() -> None:
    with pytest.raises(UnknownNameError, match="stian"):
        available("stian")


def test_unknown_argument_answers_with_the_nearest() -> None:
    with pytest.raises(SpecError) as caught:
        create("stain", "macenko(alhpa=1.0)")
    assert "alpha" in caught.value.hint


def test_wrong_type() -> None:
    with pytest.raises(SpecError, match="alpha='x'"):
        create("stain", "macenko(alpha='x')")


def test_family_passes_the_model() -> None:
    assert getattr(create("backbone", "timm/resnet18(weights='random')"), "model") == "resnet18"  # noqa: B009
    assert canonical(create("backbone", "timm/resnet18(weights='random')")).startswith("timm/resnet18(")
    with pytest.raises(SpecError, match="needs 'model'"):
        create("backbone", "timm")


def test_two_classes_of_one_name_are_refused() -> None:
    @dataclasses.dataclass(frozen=True)
    class Other:
        """Another."""

    with pytest.raises(SpecError, match="registered by"):
        registry.register("stain", "macenko")(Other)


def test_only_frozen_dataclasses() -> None:
    class Plain:
        """No dataclass."""

    with pytest.raises(SpecError, match="not a frozen dataclass"):
        registry.register("stain", "plain")(Plain)


def test_a_file_whose_library_is_missing_hides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import histotl.image.stain as folder

    (tmp_path / "needs_moon.py").write_text("import no_such_library_moon\n")
    monkeypatch.setattr(folder, "__path__", [*folder.__path__, str(tmp_path)])
    assert "macenko" in available("stain")
    with pytest.raises(MissingDependencyError, match="no_such_library_moon"):
        create("stain", "needs_moon")
    sys.modules.pop("histotl.image.stain.needs_moon", None)
    registry._unavailable["stain"].pop("needs_moon")
    registry._scanned["stain"].discard("needs_moon")


def test_threads_that_ask_at_once_all_get_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import histotl.image.stain as folder

    source = (
        "import time\nfrom dataclasses import dataclass\nfrom histotl.core.registry import register\ntime.sleep(0.3)\n"
        "@register('stain', 'zz_slow')\n@dataclass(frozen=True)\nclass Slow:\n    'Slow.'\n"
    )
    (tmp_path / "zz_slow.py").write_text(source)
    monkeypatch.setattr(folder, "__path__", [*folder.__path__, str(tmp_path)])
    try:
        with ThreadPoolExecutor(4) as pool:
            assert all("zz_slow" in names for names in pool.map(available, ["stain"] * 4))
    finally:
        sys.modules.pop("histotl.image.stain.zz_slow", None)
        registry._plugins["stain"].pop("zz_slow", None)
        registry._scanned["stain"].discard("zz_slow")


@pytest.mark.parametrize("kind", PLUGIN_FOLDERS)
def test_every_version_is_a_whole_number_from_1(kind: str) -> None:
    for name in available(kind):
        assert plugin(kind, name).version >= 1


def test_an_identity_has_the_version_of_the_algorithm(monkeypatch: pytest.MonkeyPatch) -> None:
    d4 = create("augment", "d4")
    assert identified(d4) == canonical(d4)
    monkeypatch.setattr(type(d4), "version", 3, raising=False)
    assert plugin("augment", "d4").version == 3
    assert identified(d4) == f"{canonical(d4)} version 3"
    assert create("augment", canonical(d4)) == d4


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("macenko(residual='some')", "residual='some' is not one of 'keep', 'drop'"),
        ("macenko(white='grey')", "white='grey' is not one of 'slide', 255"),
        ("macenko(alpha='x')", "alpha='x' is not float"),
    ],
)
def test_values_that_are_named_one_by_one_are_listed(spec: str, told: str) -> None:
    with pytest.raises(SpecError) as caught:
        create("stain", spec)
    assert caught.value.message == f"stain 'macenko': {told}"
    assert "Literal" not in str(caught.value)


def test_a_decoder_that_there_is_not_is_answered_with_those_that_there_are() -> None:
    with pytest.raises(SpecError, match="decode='gpu' is not one of 'auto', 'direct', 'openslide', 'dct'") as caught:
        create("reader", "openslide(decode='gpu')")
    assert "'openslide'" in caught.value.hint
