"""A slide of several backbones goes to one process, even when two reach it in the same moment."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack

from histotl.embed._claim import claim
from histotl.store.lock import SlideLock


def test_who_is_second_at_the_first_file_leaves_the_others_too(tmp_path):
    paths = {name: tmp_path / name / "slide.h5" for name in ("a", "b")}
    for path in paths.values():
        path.parent.mkdir()
    faster = SlideLock(paths["a"])
    assert faster.acquire()

    def take_the_other() -> None:
        time.sleep(0.05)
        assert SlideLock(paths["b"]).acquire()

    thread = threading.Thread(target=take_the_other)
    thread.start()
    with ExitStack() as held:
        assert claim(tuple(paths), paths.__getitem__, lambda _: False, held) == ("busy", ())
    thread.join()


def test_what_nobody_else_makes_is_ours(tmp_path):
    paths = {name: tmp_path / name / "slide.h5" for name in ("a", "b")}
    for path in paths.values():
        path.parent.mkdir()
    assert SlideLock(paths["a"]).acquire()
    with ExitStack() as held:
        assert claim(tuple(paths), paths.__getitem__, lambda _: False, held) == ("ready", ("b",))
    assert SlideLock(paths["b"]).acquire()
