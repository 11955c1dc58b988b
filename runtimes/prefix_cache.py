"""What an engine has read before: a prompt that begins in the same way is copied, not read."""

from __future__ import annotations

import threading
import weakref
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from graftline.runtimes.session import Ints, Scores, Snapshot

CHUNK = 256
"""Prompt tokens that are read in one call; prompts are cut at its multiples."""
DEFAULT_BYTES = 256 << 20
"""What `load` lets a cache hold: about 5,800 positions of a 135M model in fp32, 2,000 of a 7B one
in fp16."""
_OVERHEAD = 1024
"""Bytes that Python's own objects take for a block, so that tiny ones count as well."""
_TOKEN = np.dtype(">u4")
"""Big-endian: keys sort as their tokens do."""


@dataclass(frozen=True)
class PromptEnd:
    """The scores of a prompt's last row (B = 1, N = 1), behind `length` tokens. `chunked`: all of
    the prompt was read in chunks from its beginning, so that reading it again gives these bits."""

    length: int
    scores: Scores
    chunked: bool

    @property
    def nbytes(self) -> int:
        """Bytes of the scores."""
        return sum(part.nbytes for part in self.scores.parts().values())


@dataclass(frozen=True)
class Known:
    """What is known of a prompt: `parts` are snapshots to restore one after another, the first so
    many positions of each. The first `chunked` positions have the bits that reading the prompt in
    chunks gives them. `end`: set where the whole prompt is known, with its scores."""

    parts: list[tuple[Snapshot, int]]
    length: int
    chunked: int
    end: PromptEnd | None


_Ended = tuple[int, PromptEnd] | None
"""A prompt that ends in a block, and after how many of its tokens."""


@dataclass(eq=False)
class _Block:
    """The keys and values of up to CHUNK positions, behind those that it follows."""

    key: bytes
    slots: Snapshot | None
    behind: weakref.ref[_Block] | None
    """What it follows; weakly, so that a cache that is dropped is gone at once."""
    alike: int = 0
    """Its first positions that have the same bits in every prompt that begins with them."""
    ends: dict[int, PromptEnd] = field(default_factory=dict[int, PromptEnd])
    """Prompts that end in this block, by the number of its tokens that they have."""
    following: list[_Block] = field(default_factory=list["_Block"])
    """Sorted by key."""

    @property
    def parent(self) -> _Block:
        """What it follows. Only the root follows nothing."""
        parent = None if self.behind is None else self.behind()
        assert parent is not None, "a block is held by what it follows"
        return parent

    @property
    def nbytes(self) -> int:
        slots = 0 if self.slots is None else self.slots.nbytes
        return slots + len(self.key) + sum(e.nbytes for e in self.ends.values()) + _OVERHEAD

    def place(self, key: bytes) -> int:
        """Where a key is, or would be, among those that follow."""
        return bisect_left(self.following, key, key=_key)

    def same(self, key: bytes) -> _Block | None:
        """The block of exactly these tokens."""
        place = self.place(key)
        found = self.following[place] if place < len(self.following) else None
        return found if found is not None and found.key == key else None

    def beginning(self, key: bytes) -> list[_Block]:
        """Those whose tokens begin with these."""
        place = end = self.place(key)
        while end < len(self.following) and self.following[end].key.startswith(key):
            end += 1
        return self.following[place:end]

    def nearest(self, key: bytes, any_length: bool) -> tuple[_Block | None, int]:
        """The block with the longest common beginning, and its tokens: one of the two neighbours,
        in sorted order. Not of `any_length`: of those that are alike in every prompt."""

        def shared(block: _Block) -> int:
            common = _common(block.key, key)
            return common if any_length else min(common, block.alike)

        place = self.place(key)
        near = self.following[max(place - 1, 0) : place + 1]
        best = max(near, key=shared, default=None)
        return best, 0 if best is None else shared(best)


class PrefixCache:
    """Keys and values of sequences that were read, in blocks of CHUNK positions that share their
    beginnings, of at most `most` bytes: what was used least recently goes first.

    Positions that a decoding step has written are rounded differently from those of a prompt, on
    backends where rows depend on one another. There only positions are used again that have the
    same bits in every prompt, and whole prompts, so that a text is the same bits with and without.
    Siblings of one engine may share a cache; several threads may use it.
    """

    def __init__(self, most: int = DEFAULT_BYTES) -> None:
        self.most = most
        self.nbytes = 0
        self._root = _Block(b"", None, None)
        self._used: OrderedDict[_Block, None] = OrderedDict()
        """A block is used whenever one that follows it is, and after it: so the first here is
        always one that nothing follows."""
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Blocks that it holds."""
        return len(self._used)

    def find(self, prompt: Ints, any_length: bool, least: int | None = None) -> Known:
        """The longest beginning of a prompt that is known; all of it only with its scores, because
        otherwise the last token has to be read. `any_length`: not only positions that are alike in
        every prompt. Those end anywhere in a chunk where `least` rows of it are left to read; None:
        at its end."""
        with self._lock:
            return self._find(_keyed(prompt), any_length, least)

    def _find(self, key: bytes, any_length: bool, least: int | None) -> Known:
        node, start, chunked = self._root, 0, 0
        parts: list[tuple[Snapshot, int]] = []
        size = CHUNK * _TOKEN.itemsize
        while len(key) - start > size:
            found = node.same(key[start : start + size])
            whole = found is not None and found.alike == CHUNK
            if found is None or not (any_length or whole):
                break
            chunked += CHUNK if whole and CHUNK * len(parts) == chunked else 0
            parts.append((_slots(found), CHUNK))
            node, start = found, start + size
        rest, length = key[start:], start // _TOKEN.itemsize
        count = len(rest) // _TOKEN.itemsize
        for block in node.beginning(rest) if count <= CHUNK else ():
            end = block.ends.get(count)
            if end is not None and (any_length or end.chunked):
                self._touch(block)
                parts.append((_slots(block), count))
                return Known(parts, end.length, end.length if end.chunked else chunked, end)
        if any_length or least is not None:
            block, common = node.nearest(rest, any_length)
            left = count - 1 if any_length else min(count, CHUNK) - (least or 1)
            if block is not None and (common := min(common, left)) > 0:
                chunked += 0 if any_length else common
                parts.append((_slots(block), common))
                node, length = block, length + common
        self._touch(node)
        return Known(parts, length, chunked, None)

    def keep(
        self, ids: Ints, alike: int, end: PromptEnd, cut: Callable[[int, int], Snapshot]
    ) -> None:
        """Keep the keys and values of all `ids`, or of as many as fit, of which the first `alike`
        have the same bits in every prompt that begins with them; `cut` takes a snapshot of the
        positions from one to before another. `end`: of the prompt among them."""
        with self._lock:
            node = self._root
            for start in range(0, len(ids), CHUNK):
                key = _keyed(ids[start : start + CHUNK])
                stop = start + len(key) // _TOKEN.itemsize
                same = max(0, min(alike, stop) - start)
                ended = (end.length - start, end) if start < end.length <= stop else None
                block = _covering(node, key, same, ended)
                if block is None:
                    block = self._write(node, key, same, ended, lambda a=start, b=stop: cut(a, b))
                    if not self._fits(block):
                        return
                node = block
            self._touch(node)

    def _write(
        self, node: _Block, key: bytes, alike: int, ended: _Ended, cut: Callable[[], Snapshot]
    ) -> _Block:
        """The block of these tokens behind `node`, as the sequence has it that they are of."""
        block = node.same(key)
        before = 0 if block is None else block.nbytes
        if block is None:
            block = self._link(_Block(key, cut(), weakref.ref(node), alike))
        elif alike > block.alike or _better(block.alike, ended):
            block.slots, block.alike = cut(), alike
            block.ends.clear()
        elif ended is not None:  # of other bits than the snapshot that stays, unless both are alike
            same = ended[1].chunked and ended[0] <= min(alike, block.alike)
            ended = ended[0], replace(ended[1], chunked=same)
        if ended is not None:
            block.ends[ended[0]] = ended[1]
        self.nbytes += block.nbytes - before
        self._touch(block)
        return block

    def _link(self, block: _Block) -> _Block:
        """A new block takes its place, and that of a shorter one that it continues."""
        beside, place = block.parent.following, block.parent.place(block.key)
        if place and block.key.startswith(beside[place - 1].key):
            self._drop(beside[place - 1])
        insort(beside, block, key=_key)
        return block

    def _fits(self, block: _Block) -> bool:
        """Drop what was used least recently until all is within `most`; False where even this
        block, which was just used, had to go."""
        while self.nbytes > self.most:
            oldest = next(iter(self._used))
            self._drop(oldest)
            if oldest is block:
                return False
        return True

    def _drop(self, block: _Block) -> None:
        assert not block.following, "what others continue is used after them"
        del block.parent.following[block.parent.place(block.key)]
        del self._used[block]
        self.nbytes -= block.nbytes

    def _touch(self, block: _Block) -> None:
        """Used now, and all that it follows."""
        while block is not self._root:
            self._used[block] = None
            self._used.move_to_end(block)
            block = block.parent


def _better(alike: int, ended: _Ended) -> bool:
    """Whether a prompt's end, read in chunks, lies behind the positions that are alike."""
    return ended is not None and ended[1].chunked and ended[0] > alike


def _covering(node: _Block, key: bytes, alike: int, ended: _Ended) -> _Block | None:
    """A block behind `node` that has all of these tokens, read as well, and the prompt's end."""
    for block in node.beginning(key):
        known = None if ended is None else block.ends.get(ended[0])
        same = ended is None or (known is not None and known.chunked >= ended[1].chunked)
        if same and block.alike >= alike:
            return block
    return None


def _slots(block: _Block) -> Snapshot:
    assert block.slots is not None, "only the root has none"
    return block.slots


def _key(block: _Block) -> bytes:
    return block.key


def _keyed(ids: Ints) -> bytes:
    return np.asarray(ids).astype(_TOKEN).tobytes()


def _common(first: bytes, second: bytes) -> int:
    """Tokens that two keys have in common at their beginning."""
    count = min(len(first), len(second)) // _TOKEN.itemsize
    one, other = (np.frombuffer(key, _TOKEN, count) for key in (first, second))
    differ = np.flatnonzero(one != other)
    return int(differ[0]) if len(differ) else count
