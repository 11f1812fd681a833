"""Handles that threads borrow: never one for two, opened only when needed."""

from __future__ import annotations

from histotl.wsi._handles import Handles


class Handle:
    def __init__(self) -> None:
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


def test_a_handle_is_lent_to_one_at_a_time() -> None:
    first, opened = Handle(), []

    def open_one() -> Handle:
        opened.append(Handle())
        return opened[-1]

    handles = Handles(open_one, first)
    with handles.borrow() as a:
        assert a is first
        with handles.borrow() as b, handles.borrow() as c:
            assert [b, c] == opened
        with handles.borrow() as again:
            assert again in opened
    assert len(opened) == 2
    handles.close()
    assert [handle.closed for handle in (first, *opened)] == [1, 1, 1]


def test_a_handle_comes_back_after_an_error() -> None:
    first = Handle()
    handles = Handles(Handle, first)
    for _ in range(2):
        try:
            with handles.borrow() as lent:
                assert lent is first
                raise KeyError
        except KeyError:
            pass


def test_a_handle_of_somebody_elses_stays_open() -> None:
    first, other = Handle(), Handle()
    handles = Handles(lambda: other, first, keep_first=True)
    with handles.borrow(), handles.borrow():
        pass
    handles.close()
    assert (first.closed, other.closed) == (0, 1)
