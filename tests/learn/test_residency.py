"""Where rows lie changes nothing about them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import histotl.learn.maps as maps_module
import histotl.store.reader as reader_module
import histotl.store.rows as rows_in_file
from histotl.core.errors import StoreError
from histotl.learn import memory
from histotl.learn.bags import Bags, BagStore
from histotl.learn.config import TrainConfig
from histotl.learn.device_rows import DeviceRows, on_device
from histotl.learn.fit import Fitted, Labelled, fit
from histotl.learn.rows import ArrayRows
from histotl.learn.task import Task
from histotl.store.embeddings import open_embeddings

Write = Callable[..., Path]
LITTLE, MUCH = 1e-9, 1.0
SIZES = [3, 40, 1, 25, 300, 12]
YES = Task(name="yes", kind="binary", classes=("n", "y"))


def foreign(folder: Path, name: str, x: np.ndarray, **how: object) -> None:
    """A file of another tool."""
    folder.mkdir(parents=True, exist_ok=True)
    with h5py.File(folder / f"{name}.h5", "w") as file:
        file.create_dataset("features", data=x, **how)
        file.create_dataset("coords", data=np.stack([np.arange(len(x)), np.arange(len(x))], axis=1))


@pytest.fixture
def arrays() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.normal(size=(n, 16)).astype(np.float16) for n in SIZES]


@pytest.fixture
def sources(tmp_path: Path, arrays: list[np.ndarray]) -> dict[str, Bags]:
    """The same bags on every rung; one folder is partly in one block, partly chunked, partly compressed."""
    for i, x in enumerate(arrays):
        foreign(tmp_path / "blocks", f"S{i}", x)
        how: dict[str, object] = [{}, {"chunks": (1, 16)}, {"compression": "gzip"}][i % 3]  # type: ignore[assignment]
        foreign(tmp_path / "mixed", f"S{i}", x, **how)
    groups = [[i] for i in range(len(SIZES))]
    found = {
        "memory": BagStore.open(tmp_path / "blocks", memory_gb=MUCH).bags(groups),
        "maps": BagStore.open(tmp_path / "blocks", memory_gb=LITTLE).bags(groups),
        "unpacked": BagStore.open(tmp_path / "mixed", memory_gb=LITTLE).bags(groups),
        "chunked in memory": BagStore.open(tmp_path / "mixed", memory_gb=MUCH).bags(groups),
    }
    source = found["memory"].source
    found["device"] = found["memory"].at(DeviceRows(source, np.arange(source.n), torch.device("cpu")))
    return found


def weights(fitted: Fitted) -> list[torch.Tensor]:
    return [value for member in fitted.members for value in member.state_dict().values()]


def test_rows_are_the_same_on_every_rung(sources: dict[str, Bags], arrays: list[np.ndarray]) -> None:
    everything = np.concatenate(arrays).astype(np.float32)
    rng = np.random.default_rng(1)
    rows = rng.integers(0, len(everything), 500)
    for name, bags in sources.items():
        np.testing.assert_array_equal(bags.source.read(rows), everything[rows], err_msg=name)
        packed = bags.gather(np.array([4, 1, 5]), max_tiles=20, rng=np.random.default_rng(3))
        wanted = sources["memory"].gather(np.array([4, 1, 5]), max_tiles=20, rng=np.random.default_rng(3))
        assert torch.equal(packed.x, wanted.x), name
        assert packed.coords is not None
        assert wanted.coords is not None
        assert torch.equal(packed.coords, wanted.coords), name
        assert packed.offsets.tolist() == [0, 20, 40, 52]
    # Where tiles lie is not what they are: the corners tell which tiles were drawn.
    assert not torch.equal(wanted.coords[:20, 0], torch.arange(20))


def test_training_is_the_same_on_every_rung(sources: dict[str, Bags], quick: TrainConfig) -> None:
    targets = {"yes": np.array([0.0, 1, 0, 1, 0, 1])}
    config = replace(quick, max_steps=10, min_steps=10, batch_size=3, max_tiles=20, dropout=0.2)
    found = {
        name: weights(
            fit(
                Labelled(bags=bags, targets=targets),
                Labelled(bags=bags, targets=targets),
                tasks=[YES],
                config=config,
                aggregator="abmil(hidden=8, attention=4)",
            )
        )
        for name, bags in sources.items()
    }
    for name, state in found.items():
        assert all(torch.equal(a, b) for a, b in zip(state, found["memory"], strict=True)), name


def test_files_stay_open_but_not_more_than_allowed(
    tmp_path: Path, arrays: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    for i, x in enumerate(arrays):
        foreign(tmp_path / "blocks", f"S{i}", x)
    mapped, real = [], reader_module.mapped
    monkeypatch.setattr(rows_in_file, "mapped", lambda path, *where: mapped.append(path) or real(path, *where))

    def open_now() -> int:
        return sum(1 for _ in Path("/proc/self/fd").iterdir())

    for most, times in ((4096, 1), (2, 3)):
        monkeypatch.setattr(maps_module, "OPEN_FILES", most)
        source = BagStore.open(tmp_path / "blocks", memory_gb=LITTLE).source
        mapped.clear()
        before = open_now()
        for _ in range(3):
            source.read(np.arange(source.n))
            assert open_now() - before <= min(most, len(arrays))
        # A first look at each tells whether it can be mapped.
        assert len(mapped) == (1 + times) * len(arrays)


def test_pages_are_given_back_before_they_exceed_the_budget(tmp_path: Path) -> None:
    x = np.arange(640, dtype=np.float16).reshape(40, 16)
    for i in range(6):
        foreign(tmp_path / "blocks", f"S{i}", x)
    files = [open_embeddings(path) for path in sorted((tmp_path / "blocks").glob("*.h5"))]
    maps, held = maps_module.Maps(files, budget=3 * maps_module.TOUCH), []
    for number in range(6):
        out = np.empty((1, 16), np.float16)
        maps.read(number, np.array([1]), None, out)
        np.testing.assert_array_equal(out[0], x[1])
        held.append(resident_bytes(tmp_path / "blocks"))
    # A read brings in what the system maps at a time, less than TOUCH; the fourth gives back the three before.
    assert 0 < held[0] < held[1] < held[2]
    assert held[3:] == held[:3]


def resident_bytes(folder: Path) -> int:
    """Bytes of the files in a folder that this process has in memory by map."""
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        if "-" in line.split()[0]:
            inside = str(folder) in line
        elif inside and line.startswith("Rss:"):
            found += int(line.split()[1]) << 10
    return found


def test_without_room_for_unpacking_it_says_what_to_do(
    tmp_path: Path, arrays: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign(tmp_path / "chunked", "S", arrays[4], chunks=(1, 16))
    source = BagStore.open(tmp_path / "chunked", memory_gb=LITTLE).source
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr(maps_module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(StoreError, match="1 files of features must be unpacked") as caught:
        source.read(np.arange(3))
    assert "TMPDIR" in caught.value.hint


def test_damaged_numbers_are_found_while_unpacking(tmp_path: Path, arrays: list[np.ndarray]) -> None:
    arrays[4][7, 3] = np.inf
    foreign(tmp_path / "chunked", "S", arrays[4], chunks=(1, 16))
    with pytest.raises(StoreError, match=r"S\.h5: 1 of 300 rows"):
        BagStore.open(tmp_path / "chunked", memory_gb=LITTLE).source.read(np.arange(3))


def test_without_a_gpu_rows_stay_where_they_are() -> None:
    source = ArrayRows(np.zeros((3, 2)))
    assert on_device(source, np.arange(3), torch.device("cpu")) is source


def test_rows_that_do_not_exist_are_refused() -> None:
    for rows in ([3], [-1]):
        with pytest.raises(StoreError, match="there are 3"):
            ArrayRows(np.zeros((3, 2))).read(np.array(rows))


def test_the_budget_is_half_of_what_is_free_within_the_control_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_machine", lambda: 64 << 30)
    monkeypatch.setattr(memory, "_GROUPS", ())
    assert memory.budget_bytes(0) == 32 << 30
    (tmp_path / "max").write_text(f"{8 << 30}\n")
    (tmp_path / "current").write_text(f"{2 << 30}\n")
    monkeypatch.setattr(memory, "_GROUPS", ((tmp_path / "max", tmp_path / "current"),))
    assert memory.budget_bytes(0) == 3 << 30
    (tmp_path / "max").write_text("max\n")
    assert memory.budget_bytes(0) == 32 << 30
    assert memory.budget_bytes(0.25) == 1 << 28
    monkeypatch.setattr(memory, "_machine", lambda: 1 << 20)
    assert memory.budget_bytes(0) == memory.LEAST


def test_two_threads_read_the_same_rows(
    tmp_path: Path, arrays: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next step is read while the present one looks at the validation set."""
    for i, x in enumerate(arrays):
        foreign(tmp_path / "mixed", f"S{i}", x, **({"chunks": (1, 16)} if i % 2 else {}))
    monkeypatch.setattr(maps_module, "OPEN_FILES", 1)
    source = BagStore.open(tmp_path / "mixed", memory_gb=LITTLE).source
    everything, unpacked = np.concatenate(arrays).astype(np.float32), []
    real = maps_module.Maps._unpack
    monkeypatch.setattr(maps_module.Maps, "_unpack", lambda self: unpacked.append(1) or real(self))

    def read(seed: int) -> bool:
        rows = np.random.default_rng(seed).integers(0, len(everything), 300)
        return np.array_equal(source.read(rows), everything[rows])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, range(200)))
    assert unpacked == [1]
