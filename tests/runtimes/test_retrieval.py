"""Drafters that retrieve from a corpus or the input, and trees merged of two sources."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from store_cases import SHELVES, answer, emit, paths
from toy_session import ToySession

from graftline.errors import GraftlineError
from graftline.recipe import recipe
from graftline.runtimes.drafter import Bid
from graftline.runtimes.drafters import DRAFTERS, make_drafter
from graftline.runtimes.drafters.datastore import CorpusIndex, Datastore
from graftline.runtimes.drafters.input_copy import InputCopy
from graftline.runtimes.drafters.merged import Merged
from graftline.runtimes.drafters.suffix import Suffix
from graftline.runtimes.drafters.token_recycling import TokenRecycling
from graftline.runtimes.drafting import Draft
from graftline.runtimes.engine import Engine
from graftline.runtimes.resources import Resources
from graftline.runtimes.text.corpus import read_corpus
from graftline.runtimes.verdict import Verdict
from graftline.tree import Tree

# --- retrieval --------------------------------------------------------------------------------


def test_the_index_finds_the_longest_suffix_and_every_place_of_it() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        documents = [generator.integers(0, 3, generator.integers(1, 40)) for _ in range(3)]
        index = CorpusIndex(documents, longest=5, depth=4)
        texts = [document.tolist() for document in documents]
        for _ in range(30):
            context = generator.integers(0, 4, 8).tolist()
            length, low, high = index.match(context)
            ends = {n: _ends(texts, context[-n:]) for n in range(1, 6)}
            assert length == max((n for n in ends if ends[n]), default=0)
            if length:
                follow = [[*text[end:], -1][:4] for text, end in ends[length]]
                found = index.continuations(low, high, 1000)
                cut = [f[: f.index(-1) + 1] if -1 in f else f for f in found]
                assert sorted(cut) == sorted(f[:4] for f in follow)
                assert len(index.continuations(low, high, 2)) == min(2, len(follow))


def _ends(texts: list[list[int]], part: list[int]) -> list[tuple[list[int], int]]:
    size = len(part)
    return [(t, i + size) for t in texts for i in range(len(t)) if t[i : i + size] == part]


def test_retrieved_continuations_are_ranked_by_how_many_agree() -> None:
    drafter = Datastore(rows=6)
    drafter.equip(SHELVES)
    drafter = drafter.fork()
    drafter.start([11, 1, 2])
    assert paths(drafter.propose(6)) == [(), (3,), (3, 4), (3, 8), (3, 4, 9)]
    assert drafter.signal == 2
    assert paths(drafter.propose(3)) == [(), (3,), (3, 4)]
    emit(drafter, 2, 3, 8)
    assert len(drafter.propose(6)) == 1  # the end of a document
    emit(drafter, 8, 1)
    assert (len(drafter.propose(6)), drafter.signal) == (1, 0)  # one token is too short a match


def test_tokens_outside_the_corpus_match_nothing() -> None:
    drafter = Datastore(shortest=1)
    drafter.equip(SHELVES)
    for last in (10_000, 0, 10):
        drafter.start([1, 2, last])
        assert len(drafter.propose(8)) == 1


def test_a_datastore_without_a_corpus_says_what_to_give() -> None:
    for chosen in ("rest", "rasd"):
        with pytest.raises(GraftlineError, match="--corpus"):
            Engine(ToySession(), None, {}, recipe(chosen), None)


# --- several sources --------------------------------------------------------------------------


def test_merged_trees_share_prefixes_and_the_better_source_leads() -> None:
    drafter = make_drafter("merged", {"first": "suffix", "second": "token-recycling"}, SHELVES)
    assert isinstance(drafter, Merged)
    drafter = drafter.fork()
    drafter.start([1, 2, 3, 9, 1, 2])
    suffix, recycling = drafter._sources
    assert isinstance(suffix, Suffix)
    assert isinstance(recycling, TokenRecycling)
    emit(drafter, 2, 3, best=(3, 4, 5))
    emit(drafter, 3, 9, best=(9, 4, 5))
    emit(drafter, 9, 1, best=(1, 4, 5))
    emit(drafter, 1, 2, best=(2, 4, 5))
    own = [paths(source.propose(32)) for source in (suffix, recycling)]
    union = set(own[0]) | set(own[1])
    assert set(paths(drafter.propose(1000))) <= union
    merged = paths(drafter.propose(8))
    assert merged[1] == (3,)  # both sources say so
    assert (3, 9, 1, 2) in merged
    assert {(3,), (4,)} <= set(paths(drafter.propose(32)))  # the matrix alone knows 4


def test_merged_learns_which_source_to_trust() -> None:
    """The documents promise much and are wrong at every third token."""
    told = [2, 5, 1] * 9
    resources = Resources(corpus=(np.array([*told[:12], 3, 8, 8]),))
    drafter = make_drafter("merged", {"first": "datastore", "second": "token-recycling"}, resources)
    drafter.start(told[:12])
    leaders: list[int] = []
    orders: list[bool] = []
    for last, token in pairwise(told[11:]):
        tokens = drafter.propose(32).tokens.tolist()
        if last == 1 and 2 in tokens:  # the longest match says 3, the target 2
            leaders.append(drafter.signal & 1)
            orders.append(tokens.index(2) < tokens.index(3))
        drafter.observe(Tree.chain([last]), Verdict((0,), token), answer((token, 9, 10)), 0)
    assert (leaders[0], orders[0]) == (0, False)
    assert (leaders[-1], orders[-1]) == (1, True)
    other = drafter.fork()
    other.start(told[:12])
    tokens = other.propose(32).tokens.tolist()  # what was learned holds for other sequences
    assert tokens.index(2) < tokens.index(3)


def test_drafts_with_a_price_are_not_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    class Paid(Suffix):
        def draft(self, bid: Bid) -> Draft:
            raise AssertionError

    monkeypatch.setitem(DRAFTERS, "paid", Paid)
    with pytest.raises(GraftlineError, match="merged: paid drafts with a model"):
        make_drafter("merged", {"first": "paid"}, SHELVES)


def test_pruning_keeps_retrieved_branches_that_the_drafter_agrees_with() -> None:
    for prune in (False, True):
        options = {"first": "datastore", "second": "token-recycling", "prune": prune}
        drafter = make_drafter("merged", options, SHELVES)
        drafter.start([1, 2])
        assert (3, 4) in paths(drafter.propose(32))  # nothing drafted yet: nothing pruned
        emit(drafter, 2, 1, 2, best=(5, 6, 7))
        assert ((3, 4) in paths(drafter.propose(32))) != prune


# --- copying the input ------------------------------------------------------------------------


def test_input_copy_starts_at_the_input_and_aligns_anew_after_a_mismatch() -> None:
    drafter = InputCopy(rows=4)
    drafter.start([1, 2, 3, 4, 5, 6, 2, 3, 7])
    assert drafter.propose(4).tokens.tolist() == [7, 1, 2, 3]
    emit(drafter, 7, 1, 2)
    assert drafter.propose(4).tokens.tolist() == [2, 3, 4, 5]
    assert drafter.signal == 2
    emit(drafter, 2, 9)  # 3 was replaced: go on after it
    assert drafter.propose(4).tokens.tolist() == [9, 4, 5, 6]
    assert drafter.signal == 8
    emit(drafter, 9, 3)  # occurs twice: not told where
    assert drafter.propose(4).tokens.tolist() == [3, 5, 6, 2]
    emit(drafter, 3, 7)  # occurs once, at the end
    assert (drafter.propose(4).tokens.tolist(), drafter.signal) == ([7], 0)
    emit(drafter, 7, 6, 2)
    assert drafter.propose(4).tokens.tolist() == [2, 3, 7]
    drafter.start([1, 2, 9, 2, 8, 1, 7])
    emit(drafter, 7, 4, 1, 2)  # 1 and 2 occur twice, 1 2 once
    assert drafter.propose(4).tokens.tolist() == [2, 9, 2, 8]
    assert drafter.signal == 2


# --- reading a corpus -------------------------------------------------------------------------


def encode(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def test_a_folder_of_texts_is_read_by_name(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "two.md").write_text("zwei ü", encoding="utf-8")
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfeins")
    (tmp_path / "c.jsonl").write_text('{"text": "x"}\n\n{"prompt": "y\\n"}\n')
    (tmp_path / "ignored.bin").write_bytes(b"\xff")
    (tmp_path / "empty.txt").write_text("")
    read = read_corpus(tmp_path, encode)
    assert ["".join(chr(i) for i in ids) for ids in read] == ["eins", "zwei ü", "x", "y\n"]
    assert all(ids.dtype == np.int64 for ids in read)
    assert len(read_corpus(str(tmp_path / "a.txt"), encode)) == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "grün".encode("latin-1"), "a.txt: byte 2 is not UTF-8"),
        ("a.jsonl", b'{"text": "x"}\nx', "line 2 is not JSON"),
        ("a.jsonl", b'{"body": "x"}', 'line 1 has no text in a field "text" or "prompt"'),
        ("a.jsonl", b"[1]", "line 1 has no text"),
        ("a.md", b"", "no text in it"),
        ("a.pdf", b"x", r"not one of \.txt, \.md, \.jsonl"),
    ],
)
def test_a_bad_corpus_is_refused_in_one_line(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(GraftlineError, match=message) as caught:
        read_corpus(tmp_path / name, encode)
    assert "\n" not in str(caught.value)


def test_a_missing_or_empty_or_locked_corpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GraftlineError, match="there is no such file or folder"):
        read_corpus(tmp_path / "none.txt", encode)
    with pytest.raises(GraftlineError, match="holds no file of"):
        read_corpus(tmp_path, encode)
    (tmp_path / "a.txt").write_text("x")
    if os.geteuid() != 0:
        (tmp_path / "a.txt").chmod(0)
        with pytest.raises(GraftlineError, match="cannot be read"):
            read_corpus(tmp_path, encode)
