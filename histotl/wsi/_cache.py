"""Decoded compressed tiles, shared by threads: each is decoded once and kept until nobody needs it any more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event, Lock
from time import perf_counter
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from histotl.core.errors import SlideReadError
from histotl.wsi.readers.base import BatchDecoder, JpegStreams, Pixels, TiledLevel


@dataclass
class Cost:
    """What fetching and decoding has cost so far, summed over threads.

    Attributes:
        decoded: Tiles decoded.
        bytes_read: Compressed bytes fetched.
        read_s: Seconds in fetching.
        decode_s: Seconds in decoding.
    """

    decoded: int = 0
    bytes_read: int = 0
    read_s: float = 0.0
    decode_s: float = 0.0


class _Slot:
    """One tile: its pixels, or why there are none; neither while it is being decoded."""

    __slots__ = ("done", "result", "users")

    def __init__(self) -> None:
        self.result: Pixels | BaseException | None = None
        self.done: Event | None = None  # made by the first thread that has to wait, which is rare
        self.users = 1

    def settle(self, result: Pixels | BaseException) -> None:
        self.result = result
        if self.done is not None:
            self.done.set()

    def wait(self, lock: Lock) -> Pixels | SlideReadError:
        """The tile, once it is there; raises what stopped the thread that was to decode it."""
        while (result := self.result) is None:
            with lock:
                if self.done is None:
                    self.done = Event()
            # Whoever decodes sets the result and then looks for the event: one of the two sees the other.
            if self.result is None:
                self.done.wait()
        if isinstance(result, BaseException) and not isinstance(result, SlideReadError):
            raise result
        return result


class DecodedTiles:
    """A cache of one level's tiles that knows how often each will be needed.

    Args:
        level: The compressed tiles; its ``fetch`` and ``decode`` are called from several threads at once.
        uses: int (rows, columns): how often each tile will be needed in all.
        max_bytes: Decoded bytes that are kept at most; the oldest tiles leave first, and are decoded again if need be.
            Tiles in use are kept in any case.
        decoder: Decodes JPEG tiles of one call together, where the level has them as whole files; what it does not
            take, and everything where it is None, the level decodes.
    """

    def __init__(
        self,
        level: TiledLevel,
        uses: npt.NDArray[np.integer],
        max_bytes: int,
        decoder: BatchDecoder | None = None,
    ) -> None:
        width, height = level.tile_size
        self._decoder: BatchDecoder | None = None
        self._streams: JpegStreams | None = None
        if decoder is not None and isinstance(level, JpegStreams) and level.streams([]) is not None:
            self._decoder, self._streams = decoder, level
        self._level, self._columns, self._shape = level, uses.shape[1], (height, width, 3)
        self._left: list[int] = uses.ravel().tolist()
        self._most = max(1, max_bytes // (width * height * 3))
        self._slots: dict[int, _Slot] = {}
        self._free: list[Pixels] = []
        self._lock = Lock()
        self.cost = Cost()

    @property
    def decoder(self) -> str:
        """Name of the batch decoder; ``cpu`` where the level decodes all tiles."""
        return "cpu" if self._decoder is None else self._decoder.name

    @property
    def n_kept(self) -> int:
        """Arrays of a tile's size that are held, those that wait to be used again included."""
        with self._lock:
            return len(self._slots) + len(self._free)

    @contextmanager
    def hold(
        self, uses: Mapping[int, int], direct: Sequence[tuple[int, Pixels]] = ()
    ) -> Iterator[tuple[dict[int, Pixels], dict[int, SlideReadError]]]:
        """Decoded tiles for the length of a block: from the cache, decoded now, or by another thread.

        All that nobody has are fetched with one call and decoded before anything is waited for, so threads never wait
        for each other in a circle.

        Args:
            uses: Tile to how many of its planned uses end with the block; 0 where it is read once more than planned.
            direct: Further tiles, decoded into arrays of the caller's and not kept.

        Returns:
            The pixels of tiles, not to be written to; and why there are none for the others.
        """
        slots: dict[int, _Slot] = {}
        try:
            with _Claims(self._lock, self._slots) as claims:
                with self._lock:
                    for tile in uses:
                        slot = self._slots.get(tile)
                        if slot is None:
                            slot = self._slots[tile] = claims.slots[tile] = _Slot()
                        else:
                            slot.users += 1
                        slots[tile] = slot
                failed = self._decode(claims, direct)
            tiles = {}
            for tile, slot in slots.items():
                result = slot.wait(self._lock)
                if isinstance(result, SlideReadError):
                    failed[tile] = result
                else:
                    tiles[tile] = result
            yield tiles, failed
        finally:
            self._release(uses, slots)

    def clear(self) -> None:
        """Let go of all memory; tiles that are asked for later are decoded again."""
        with self._lock:
            self._slots.clear()
            self._free.clear()

    def _release(self, uses: Mapping[int, int], slots: Mapping[int, _Slot]) -> None:
        with self._lock:
            for tile, count in uses.items():
                self._left[tile] -= count
            for tile, slot in slots.items():
                slot.users -= 1
                # A tile that failed has been taken out already, and another thread may be trying it again.
                if slot.users <= 0 and self._left[tile] <= 0 and self._slots.get(tile) is slot:
                    del self._slots[tile]
                    if isinstance(slot.result, np.ndarray):
                        self._free.append(slot.result)
            if len(self._slots) + len(self._free) > self._most:
                self._shrink()

    def _shrink(self) -> None:
        """Back to the limit: free arrays go first, then the oldest tiles that nobody is using."""
        del self._free[max(0, self._most - len(self._slots)) :]
        surplus = len(self._slots) - self._most
        if surplus > 0:
            idle = [tile for tile, slot in self._slots.items() if slot.users <= 0]
            for tile in idle[:surplus]:
                del self._slots[tile]

    def _decode(self, claims: _Claims, direct: Sequence[tuple[int, Pixels]]) -> dict[int, SlideReadError]:
        """Fetch and decode what this thread has claimed; gives the tiles of ``direct`` that failed."""
        ours = list(claims.slots)
        if not ours and not direct:
            return {}
        began = perf_counter()
        data = self._fetch([*ours, *[tile for tile, _ in direct]])
        read = perf_counter()
        together = self._decode_together(data, dict(direct))
        count, failed = 0, {}
        # From the right: what lies at the right border of these tiles is what the next thread waits for.
        for tile in sorted(ours, key=lambda tile: tile % self._columns, reverse=True):
            result = together[tile] if tile in together else self._decode_one(tile, data[tile], None)
            claims.settle(tile, result)
            count += isinstance(result, np.ndarray)
        for tile, out in direct:
            result = out if tile in together else self._decode_one(tile, data[tile], out)
            if isinstance(result, SlideReadError):
                failed[tile] = result
            else:
                count += 1
        ended = perf_counter()
        with self._lock:
            cost = self.cost
            cost.decoded += count
            cost.bytes_read += sum(len(item) for item in data.values() if isinstance(item, bytes))
            cost.read_s += read - began
            cost.decode_s += ended - read
        return failed

    def _fetch(self, tiles: Sequence[int]) -> dict[int, bytes | SlideReadError]:
        """Compressed bytes; where reading all at once fails, tile by tile, so that only the damaged ones are lost."""
        try:
            return dict(zip(tiles, self._level.fetch(tiles), strict=True))
        except SlideReadError as error:
            if len(tiles) == 1:
                return {tiles[0]: error}
        found: dict[int, bytes | SlideReadError] = {}
        for tile in tiles:
            found |= self._fetch([tile])
        return found

    def _decode_together(
        self, data: Mapping[int, bytes | SlideReadError], direct: Mapping[int, Pixels]
    ) -> dict[int, Pixels]:
        """The tiles that the batch decoder takes; those in ``direct`` go where that says."""
        if self._decoder is None or self._streams is None:
            return {}
        fetched = {tile: item for tile, item in data.items() if isinstance(item, bytes)}
        found = self._streams.streams(list(fetched.values())) or []
        streams = {tile: stream for tile, stream in zip(fetched, found, strict=True) if stream is not None}
        if not streams:
            return {}
        outs = {tile: direct[tile] if tile in direct else self._buffer() for tile in streams}
        taken = self._decoder.decode(list(streams.values()), list(outs.values()))
        tiles = {}
        for (tile, out), decoded in zip(outs.items(), taken, strict=True):
            if decoded:
                tiles[tile] = out
            elif tile not in direct:
                self._free.append(out)
        return tiles

    def _decode_one(self, tile: int, data: bytes | SlideReadError, out: Pixels | None) -> Pixels | SlideReadError:
        if isinstance(data, SlideReadError):
            return data
        if out is None:
            out = self._buffer()
        try:
            pixels = self._level.decode(tile, data, out)
        except SlideReadError as error:
            return error
        if pixels is not out:
            out[:] = pixels
        return out

    def _buffer(self) -> Pixels:
        """An array to decode into. Used ones are taken again: fresh memory costs a page fault every 4 kB."""
        try:
            return self._free.pop()
        except IndexError:
            return np.empty(self._shape, np.uint8)


class _Claims:
    """Tiles that one thread has promised to decode; what it leaves undone fails, so that nobody waits for it in vain.

    Args:
        lock: Of the cache.
        cache: All slots; failed ones are taken out, for whoever needs the tile next to try again.
    """

    def __init__(self, lock: Lock, cache: dict[int, _Slot]) -> None:
        self._lock, self._cache = lock, cache
        self.slots: dict[int, _Slot] = {}

    def settle(self, tile: int, result: Pixels | BaseException) -> None:
        """Hand a tile, or the reason why there is none, to all who wait for it."""
        if isinstance(result, BaseException):
            with self._lock:
                self._cache.pop(tile, None)
        self.slots[tile].settle(result)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            for tile, slot in self.slots.items():
                if slot.result is None:
                    self.settle(tile, error)
