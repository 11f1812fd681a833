"""One worker a slide: exclusion, heartbeats, and what happens to locks of the dead."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from histotl.core.errors import LockedError, StoreError
from histotl.store.lock import SlideLock
from histotl.store.process import began_at, here, is_alive, start_time


def _holder(**changes: object) -> str:
    """A lock of a process of this machine that is dead."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    common = {"pid": dead.pid, "hostname": socket.gethostname(), "here": here(), "started": "1", "token": "abc"}
    return json.dumps(common | changes)


def _age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_one_holds_it_others_wait(tmp_path: Path) -> None:
    first, second = SlideLock(tmp_path / "s.h5"), SlideLock(tmp_path / "s.h5")
    assert first.acquire()
    assert first.acquire()  # it has it already
    assert first.held
    assert not second.acquire()
    assert not second.held
    holder = second.holder()
    assert (holder.pid, holder.hostname) == (os.getpid(), socket.gethostname())
    second.release()  # not its own: nothing happens
    assert first.held
    first.release()
    first.release()
    assert not first.held
    assert second.holder() is None
    assert second.acquire()
    second.release()
    assert list(tmp_path.iterdir()) == []


def test_the_with_block_refuses_and_names_the_holder(tmp_path: Path) -> None:
    with SlideLock(tmp_path / "a" / "s.h5") as lock:
        assert json.loads(lock.path.read_text())["pid"] == os.getpid()
        with pytest.raises(LockedError, match=f"process {os.getpid()} on ") as caught, SlideLock(tmp_path / "a/s.h5"):
            pass
        assert str(lock.path) in caught.value.hint
    assert not lock.path.exists()


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="lock file"):
        SlideLock(tmp_path / "file" / "s.h5").acquire()


@pytest.mark.parametrize(
    "text",
    [
        _holder(),
        _holder(here="", started=""),  # TRIDENT's own: only pid and host
        _holder(pid=os.getpid(), started="1"),  # the id came again
        _holder(pid=2**60),
    ],
    ids=["dead", "trident", "reused pid", "impossible pid"],
)
def test_the_lock_of_a_dead_process_here_is_taken_over_at_once(tmp_path: Path, text: str) -> None:
    lock = SlideLock(tmp_path / "s.h5")
    lock.path.write_text(text)
    assert lock.acquire()
    assert lock.holder().pid == os.getpid()
    lock.release()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "patience_s"),
    [
        (_holder(hostname="elsewhere", here="elsewhere/1/2"), 600),
        (_holder(here="another/boot/id"), 600),
        ("", 60),
        ("not json", 60),
        ("[1, 2]", 60),
        ('{"pid": null}', 60),
    ],
    ids=["elsewhere", "another boot", "empty", "no JSON", "no object", "no pid"],
)
def test_a_lock_of_elsewhere_or_nobody_is_taken_over_when_it_is_silent_for_long(
    tmp_path: Path, text: str, patience_s: float
) -> None:
    lock = SlideLock(tmp_path / "s.h5")
    lock.path.write_text(text)
    assert not lock.acquire()
    _age(lock.path, patience_s - 20)
    assert not lock.acquire()
    _age(lock.path, patience_s + 20)
    assert lock.acquire()
    lock.release()
    assert list(tmp_path.iterdir()) == []


def test_a_live_process_here_keeps_its_lock_however_silent(tmp_path: Path) -> None:
    lock = SlideLock(tmp_path / "s.h5")
    assert lock.acquire()
    _age(lock.path, 100_000)
    assert not SlideLock(tmp_path / "s.h5").acquire()
    lock.release()


def test_the_heartbeat_is_felt_in_the_file(tmp_path: Path) -> None:
    with SlideLock(tmp_path / "s.h5", heartbeat_s=0.02) as lock:
        _age(lock.path, 1000)
        deadline = time.monotonic() + 20
        while lock.path.stat().st_mtime < time.time() - 500:
            assert time.monotonic() < deadline, "no heartbeat in 20 s"
            time.sleep(0.01)


def test_one_who_lost_the_lock_neither_holds_nor_removes_it(tmp_path: Path) -> None:
    first = SlideLock(tmp_path / "s.h5")
    assert first.acquire()
    other = _holder(hostname="elsewhere", here="e", token="new")
    (tmp_path / "other").write_text(other)
    (tmp_path / "other").replace(first.path)
    assert not first.held
    first.release()
    assert first.path.read_text() == other


def test_a_take_over_that_died_halfway_is_taken_over_too(tmp_path: Path) -> None:
    lock = SlideLock(tmp_path / "s.h5")
    lock.path.write_text(_holder(token="old1"))
    (tmp_path / "s.h5.lock.old1").write_text(_holder(token="old2"))
    (tmp_path / "s.h5.lock.old1.old2").write_text(_holder(token="old3"))
    assert lock.acquire()
    lock.release()
    assert list(tmp_path.iterdir()) == []


def test_a_take_over_by_a_live_process_is_respected(tmp_path: Path) -> None:
    lock = SlideLock(tmp_path / "s.h5")
    lock.path.write_text(_holder(token="old1"))
    (tmp_path / "s.h5.lock.old1").write_text(_holder(pid=os.getpid(), started=start_time(os.getpid())))
    assert not lock.acquire()


@pytest.mark.parametrize("stale", [False, True])
def test_of_many_threads_that_want_it_at_once_one_wins(tmp_path: Path, stale: bool) -> None:
    for turn in range(40):
        locks = [SlideLock(tmp_path / f"{turn}.h5") for _ in range(6)]
        if stale:
            locks[0].path.write_text(_DEAD)
        gate, got = threading.Barrier(len(locks)), []

        def take(lock: SlideLock, gate: threading.Barrier = gate, got: list[SlideLock] = got) -> None:
            gate.wait()
            if lock.acquire():
                got.append(lock)

        threads = [threading.Thread(target=take, args=(lock,)) for lock in locks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(got) == 1
        assert got[0].held
        got[0].release()
    assert list(tmp_path.iterdir()) == []


_DEAD = _holder()


def _race(folder: str, turns: int, gate: object, won: object) -> None:
    for turn in range(turns):
        lock = SlideLock(Path(folder) / f"{turn}.h5")
        gate.wait()
        if lock.acquire():
            won.put((turn, os.getpid()))
        gate.wait()  # nobody lets go before everybody has tried
        lock.release()


def test_of_many_processes_that_want_a_dead_ones_lock_one_wins(tmp_path: Path) -> None:
    turns, workers = 25, 3
    for turn in range(turns):
        (tmp_path / f"{turn}.h5.lock").write_text(_DEAD)
    context = multiprocessing.get_context("spawn")
    gate, won = context.Barrier(workers), context.Queue()
    processes = [context.Process(target=_race, args=(str(tmp_path), turns, gate, won)) for _ in range(workers)]
    for process in processes:
        process.start()
    winners = [won.get(timeout=60) for _ in range(turns)]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * workers
    assert sorted(turn for turn, _ in winners) == list(range(turns))
    assert won.empty()
    assert list(tmp_path.iterdir()) == []


def test_processes_are_told_apart() -> None:
    me = os.getpid()
    assert is_alive(me)
    assert is_alive(me, start_time(me))
    assert not is_alive(0)
    assert not is_alive(-1)
    zombie = subprocess.Popen([sys.executable, "-c", ""])
    deadline = time.monotonic() + 30
    if Path("/proc/self/stat").exists():
        while is_alive(zombie.pid):  # a zombie until it is waited for
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert abs(began_at(me) - time.time()) < 24 * 3600
    zombie.wait()
    assert not is_alive(zombie.pid)


def test_without_hard_links_the_lock_is_still_exclusive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(src: object, dst: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    first, second = SlideLock(tmp_path / "s.h5"), SlideLock(tmp_path / "s.h5")
    assert first.acquire()
    holder = second.holder()
    assert holder is not None
    assert holder.pid == os.getpid()
    assert not second.acquire()
    first.release()
    assert second.acquire()
    second.release()
    assert list(tmp_path.iterdir()) == []
