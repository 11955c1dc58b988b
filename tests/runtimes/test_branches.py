"""Branches of one sequence: each is decoded as if it alone followed the prompt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from test_ort import HOSTS, LOWERED, sessions
from tokenizers import Tokenizer as HFTokenizer
from tokenizers import models, pre_tokenizers
from toy_session import ToySession

from graftline.errors import BackendError, RequestError
from graftline.recipe import recipe
from graftline.runtimes.engine import Engine
from graftline.runtimes.session import Bools, Ints, Scores, Session
from graftline.runtimes.text.tokenizer import Tokenizer

Make = Callable[..., Engine]
PROMPT = [5, 6, 7, 8, 5, 6]
PARTS = [[1, 2, 3], [4], [9, 9, 9, 9, 9, 9, 9], [4, 1], [2]]


def engine_of(session: Session, tokenizer: Tokenizer | None = None) -> Engine:
    return Engine(session, tokenizer, {"eos_token_id": 0}, recipe("plain"), None)


@pytest.mark.parametrize("ignore_eos", [False, True])
@pytest.mark.parametrize("settings", [{}, {"temperature": 0.9, "seed": 4, "top_p": 0.9}])
def test_each_branch_is_what_it_is_alone(
    make_engine: Make, ignore_eos: bool, settings: dict[str, float]
) -> None:
    engine = make_engine(vocabulary=14)
    options = {"max_new_tokens": 25, "ignore_eos": ignore_eos, **settings}
    found = engine.branches(PROMPT, PARTS, **options)
    alone = engine.generate([PROMPT + part for part in PARTS], **options)
    assert [r.tokens for r in found] == [r.tokens for r in alone]
    assert [r.finish_reason for r in found] == [r.finish_reason for r in alone]
    assert len({tuple(r.tokens) for r in found}) == len(PARTS)
    assert len({len(r.tokens) for r in found}) > 1 or ignore_eos


def test_a_pass_scores_one_row_of_every_live_branch(make_engine: Make) -> None:
    engine = make_engine()
    results = engine.branches(PROMPT, PARTS, max_new_tokens=9, ignore_eos=True)
    rows = sum(map(len, PARTS))
    assert engine.session.calls == [(1, rows)] + [(1, len(PARTS))] * 8  # type: ignore[attr-defined]
    assert all((r.stats.steps, r.stats.mat, r.stats.lossless) == (8, 1.0, True) for r in results)
    assert "5 in one sequence" in results[0].stats.controller


def test_many_and_long_branches_take_several_calls(make_engine: Make) -> None:
    engine = make_engine(capacity=4000)
    parts = [[1 + n % 30] * (1 + n % 7) for n in range(70)]
    found = engine.branches(PROMPT, parts, max_new_tokens=5, ignore_eos=True)
    assert max(n for _, n in engine.session.calls) <= 64  # type: ignore[attr-defined]
    alone = [engine.generate(PROMPT + p, max_new_tokens=5, ignore_eos=True) for p in parts]
    assert [r.tokens for r in found] == [r.tokens for r in alone]


class Leaking(ToySession):
    """Shows one slot too many: the first of another branch."""

    def score_slots(self, tokens: Ints, positions: Ints, mask: Bools) -> Scores:
        if not mask.all():
            mask = mask.copy()
            mask[0, -1, np.flatnonzero(~mask[0, -1])[0]] = True
        return super().score_slots(tokens, positions, mask)


class Misplaced(ToySession):
    """Positions run on over all branches, as slots do."""

    def score_slots(self, tokens: Ints, positions: Ints, mask: Bools) -> Scores:
        return super().score_slots(tokens, np.maximum(positions, self.lengths[0]), mask)


@pytest.mark.parametrize("wrong", [Leaking, Misplaced])
def test_a_wrong_mask_or_position_would_be_seen(wrong: type[ToySession]) -> None:
    found = engine_of(wrong()).branches(PROMPT, PARTS, max_new_tokens=20, ignore_eos=True)
    right = engine_of(ToySession()).branches(PROMPT, PARTS, max_new_tokens=20, ignore_eos=True)
    assert [r.tokens for r in found] != [r.tokens for r in right]


def test_exact_scores_no_single_row(make_engine: Make) -> None:
    engine = make_engine(row_invariant=False, capacity=40)
    plain = make_engine().generate([*PROMPT, 3], max_new_tokens=20, ignore_eos=True)
    options = {"max_new_tokens": 20, "ignore_eos": True}
    found = engine.branches(PROMPT, [[3]], exact=True, **options)[0]
    assert min(n for _, n in engine.session.calls) == 2  # type: ignore[attr-defined]
    assert (found.tokens, found.stats.lossless) == (plain.tokens, True)
    assert not engine.branches(PROMPT, [[3], [4]], max_new_tokens=9)[0].stats.lossless


@pytest.mark.parametrize("host", ["grouped", "unfused"])
def test_real_sessions_agree_with_one_by_one(host: str, tmp_path: Path) -> None:
    for session in sessions(HOSTS[host], tmp_path):
        session.row_invariant, session.exact_rows = True, 1
        engine = engine_of(session)
        parts = [[1, 2, 3], [4], [50, 60], [7]]
        found = engine.branches(PROMPT, parts, max_new_tokens=8, ignore_eos=True)
        for part, one in zip(parts, found, strict=True):
            alone = engine.generate(PROMPT + part, max_new_tokens=8, ignore_eos=True)
            assert one.tokens == alone.tokens, type(session).__name__


@pytest.mark.parametrize("host", ["window", "alibi"])
def test_attention_by_distance_is_refused(host: str, tmp_path: Path) -> None:
    session, _ = sessions(HOSTS[host], tmp_path)
    with pytest.raises(BackendError, match=f"on distance \\({host}\\)"):
        engine_of(session).branches(PROMPT, [[1], [2]], max_new_tokens=2)


def test_a_bundle_of_chains_is_refused(tmp_path: Path) -> None:
    session, _ = sessions(HOSTS["grouped"], tmp_path, LOWERED.replace("tree-mask | ", ""))
    with pytest.raises(BackendError, match="rebuild it with the pass tree-mask"):
        engine_of(session).branches(PROMPT, [[1], [2]], max_new_tokens=2)


@pytest.mark.parametrize(
    ("parts", "options", "message"),
    [
        ([], {}, "takes at least one branch"),
        ([[1], []], {}, "has no tokens"),
        ([[1], [99]], {}, "token id 99"),
        ([[1]] * 5, {"max_new_tokens": 100}, "5 branches need 511 positions.*capacity is 510"),
        ([[1]], {"recipe": "suffix"}, "branches takes no recipe"),
        (["text"], {}, "no tokenizer"),
    ],
)
def test_requests_that_cannot_be_served(
    make_engine: Make, parts: list[list[int]], options: dict[str, object], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        make_engine(capacity=510).branches(PROMPT, parts, **options)


def test_texts_go_on_from_the_prompts_own() -> None:
    words = {letter: n for n, letter in enumerate("zabcdefghijklmnopqrs")}
    made = HFTokenizer(models.WordLevel(words, unk_token="z"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    engine = engine_of(ToySession(vocabulary=len(words)), Tokenizer(made))
    found = engine.branches("a b c d", ["e f", "g"], max_new_tokens=6)
    assert [r.tokens for r in found] == [
        engine.generate(text, max_new_tokens=6).tokens for text in ("a b c d e f", "a b c d g")
    ]
    assert found[0].text == engine.generate("a b c d e f", max_new_tokens=6).text
