"""Values, errors, configuration tables, atomic files."""

from __future__ import annotations

import dataclasses
import os
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from histotl.core import errors
from histotl.core.atomic import TEMPORARY_SUFFIX, atomic_path, write_text
from histotl.core.config import from_mapping
from histotl.core.errors import HistotlError, SpecError, UsageError
from histotl.core.provenance import Provenance, file_digest
from histotl.core.units import round_px
from histotl.core.values import BackboneCard, FeatureIdentity, TileSpec


def card(**changes: object) -> BackboneCard:
    base = BackboneCard(name="net", dim=3, pooling="avg", input_px=224, mean=(0.5,) * 3, std=(0.5,) * 3)
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def identity(**changes: object) -> FeatureIdentity:
    return FeatureIdentity.of(card(**changes), TileSpec(), stain="none", compute="fp32", dtype="fp16")


@given(st.floats(-1e6, 1e6))
def test_rounding_is_to_the_nearest_with_halves_up(value: float) -> None:
    assert abs(round_px(value) - value) <= 0.5
    assert round_px(int(value) + 0.5) == int(value) + 1


def test_identity_round_trip_and_differences() -> None:
    one = identity()
    assert FeatureIdentity.from_json(one.to_json()) == one
    assert one.digest == identity().digest
    assert one.differences(identity(dim=4)) == ["backbone.dim: 3 != 4"]
    assert identity(licence="MIT") == one, "a licence does not change features"


def test_a_changed_algorithm_is_said_as_such() -> None:
    one = identity()
    older, newer = (dataclasses.replace(one, stain=f"macenko(beta=0.15){text}") for text in ("", " version 2"))
    assert older.differences(newer) == ["stain version: 1 != 2"]
    assert older.digest != newer.digest


def test_identity_is_the_weights_and_not_their_place() -> None:
    here, there = (identity(weights=f"file:{name}", weights_digest="abc") for name in ("a", "b"))
    assert here == there
    assert here != identity(weights="file:a", weights_digest="abd")


def test_tile_spec_folder_is_tridents() -> None:
    assert TileSpec(tile_px=256, mpp=0.5).folder == "20x_256px_0px_overlap"
    assert TileSpec(tile_px=224, mpp=8.0, overlap_px=16).folder == "1.25x_224px_16px_overlap"


@pytest.mark.parametrize(
    "bad", [{"tile_px": 0}, {"overlap_px": 224}, {"mpp": 0.0}, {"mpp": float("nan")}, {"min_tissue": 2.0}]
)
def test_impossible_tiles(bad: dict[str, float]) -> None:
    with pytest.raises(UsageError) as caught:
        TileSpec(**bad)  # type: ignore[arg-type]
    assert caught.value.hint


def test_every_error_prints_its_cure_and_survives_pickling() -> None:
    kinds = [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, HistotlError)]
    assert len(kinds) >= 18
    for kind in kinds:
        error = kind("mpp is 352.8", hint="give --mpp-override")
        assert str(error) == "mpp is 352.8\n  hint: give --mpp-override"
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again)) == (kind, str(error))


def test_config_from_a_table() -> None:
    assert from_mapping(TileSpec, {"mpp": 1, "edge": "pad"}, where="[embed]") == TileSpec(mpp=1.0, edge="pad")
    with pytest.raises(UsageError, match=r"\[embed\] has no key 'tile_size'"):
        from_mapping(TileSpec, {"tile_size": 3}, where="[embed]")
    with pytest.raises(SpecError, match="edge='wrap'"):
        from_mapping(TileSpec, {"edge": "wrap"}, where="[embed]")


def test_atomic_file_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "a" / "x.txt"
    write_text(path, "old")

    def fail_half_way() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert path.read_text() == "old"
    assert not list(path.parent.glob(f".*{TEMPORARY_SUFFIX}"))


def test_atomic_file_keeps_the_umask(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        write_text(tmp_path / "x", "1")
    finally:
        os.umask(mask)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640


def test_digest_sees_both_ends(tmp_path: Path) -> None:
    path = tmp_path / "slide"
    data = bytearray(5 << 20)
    digests = set()
    for position in (0, len(data) - 1, None):
        changed = bytearray(data)
        if position is not None:
            changed[position] = 1
        path.write_bytes(changed)
        digests.add(file_digest(path))
    assert len(digests) == 3


def test_provenance_names_versions() -> None:
    made = Provenance.now(specs={"stain": "none"})
    assert made.libraries["torch"]
    assert made.made_by.startswith("histotl 0")
    assert '"stain": "none"' in made.to_json()
