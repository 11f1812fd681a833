"""Spec strings: what is read back is what was written, and nothing is ever run."""

from __future__ import annotations

import keyword

import pytest
from hypothesis import given
from hypothesis import strategies as st

from histotl.core.errors import SpecError
from histotl.core.spec import Spec, parse_spec, split_version, with_version

names = st.from_regex(r"[A-Za-z][A-Za-z0-9_./-]{0,12}", fullmatch=True)
keys = st.from_regex(r"[a-z][a-z_]{0,8}", fullmatch=True).filter(lambda k: not keyword.iskeyword(k))
leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(leaves, lambda v: st.lists(v) | st.tuples(v, v) | st.dictionaries(st.text(), v), max_leaves=6)


@given(names, st.dictionaries(keys, values, max_size=3))
def test_round_trip(name: str, args: dict[str, object]) -> None:
    spec = Spec(name, args)
    assert parse_spec(str(spec)) == spec


def test_real_names() -> None:
    spec = parse_spec("timm/resnet50.a1_in1k(weights='a b.pth', pooling='avg')")
    assert spec.name == "timm/resnet50.a1_in1k"
    assert spec.args == {"weights": "a b.pth", "pooling": "avg"}
    assert parse_spec(" none ") == Spec("none") == parse_spec("none()")


@pytest.mark.parametrize(
    "text",
    ["", "(a=1)", "macenko(1)", "macenko(a=1", "macenko(a=b)", "macenko(**{'a': 1})", "m(a=1, a=2)", "m(a=1)(b=2)",
     "m(a=__import__('os').getcwd())", "m(a=1) + 1", "m[0]"],
)  # fmt: skip
def test_refused(text: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec(text)
    assert caught.value.hint


def test_a_bare_word_is_told_to_be_quoted() -> None:
    with pytest.raises(SpecError, match="quotes: weights='random'"):
        parse_spec("timm/resnet50(weights=random)")


@given(names, st.dictionaries(keys, values, max_size=3), st.integers(1, 99))
def test_a_version_comes_back_the_first_unsaid(name: str, args: dict[str, object], version: int) -> None:
    text = str(Spec(name, args))
    assert split_version(with_version(text, version)) == (text, version)
    assert with_version(text, 1) == text
