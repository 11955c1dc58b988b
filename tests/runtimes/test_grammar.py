"""Texts under a grammar: always what it allows, and the same whatever was drafted."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from grammars import GRAMMARS, PROMPTS, SCHEMA, WILD, V, engine
from misbehaviour import Misbehaving
from toy_session import FLAT, ToySession

from graftline.errors import BackendError, RequestError
from graftline.recipe import recipe
from graftline.runtimes.control.costs import Costs
from graftline.runtimes.drafters import DRAFTERS
from graftline.runtimes.engine import Engine
from graftline.runtimes.grammar import Grammar, Grammars
from graftline.runtimes.request import read_options
from graftline.runtimes.text.tokenizer import Tokenizer
from graftline.tree import Tree

pytest.importorskip("llguidance")


@pytest.fixture(autouse=True)
def _misbehaving(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DRAFTERS, "misbehaving", Misbehaving)  # type: ignore[arg-type]


def whole(name: str, text: str) -> bool:
    """Whether a text is one of the grammar's, by other means than llguidance."""
    if name == "json":
        read = json.loads(text)
        known = read["colour"] in ("red", "green") and all(type(n) is int for n in read["sizes"])
        return known and len(read) == 3 and len(read["sizes"]) <= 3 and len(read["told"]) <= 6
    if name == "lark":
        depth = text.count("(")
        return re.fullmatch(rf"\({{{depth}}}[a-c]{{1,4}}\){{{depth}}}", text) is not None
    return re.fullmatch(GRAMMARS["regex"]["regex"], text) is not None


RECIPES = (
    "prompt-lookup", "suffix", "token-recycling", "lookahead", "jacobi", "rest", "rasd", "aded",
    "stand", "draft-model", "cascade-drafting", "pearl", "specmquant", WILD,
)  # fmt: skip


@pytest.mark.parametrize("costs", [None, FLAT], ids=["fixed", "flat"])
@pytest.mark.parametrize("heat", [0.0, 0.8])
@pytest.mark.parametrize("name", GRAMMARS)
def test_texts_are_the_grammars_whatever_is_drafted(
    bytewise: Tokenizer, name: str, heat: float, costs: Costs | None
) -> None:
    options: dict[str, Any] = {
        "max_new_tokens": 100, "temperature": heat, "seed": 3, "raw": True, **GRAMMARS[name]
    }  # fmt: skip
    plain: Any = engine(bytewise).generate(PROMPTS, **options)
    assert any(r.finish_reason == "eos" for r in plain)
    for one in plain:
        assert one.finish_reason == "length" or whole(name, one.text), one.text
    drafted, app = 0, engine(bytewise, costs)
    for chosen in RECIPES:
        found: Any = app.generate(PROMPTS, recipe=chosen, **options)
        assert [r.tokens for r in found] == [r.tokens for r in plain], chosen
        drafted += sum(r.stats.steps < len(r.tokens) - 1 for r in found)
    assert drafted > 10


def test_a_mask_depends_on_the_path_alone(bytewise: Tokenizer) -> None:
    """However it was reached: through drafts, back again, or at once."""
    made = Grammars(bytewise, V, frozenset({256}))
    request = read_options({"json_schema": SCHEMA})
    text = '{"colour": "green", "sizes": [-3, 40], "told": "a\\\\b"}'
    ids, chance = bytewise.encode_part(text), np.random.default_rng(2)
    wandering = made.of(request, 0)
    assert wandering is not None
    for _ in range(60):
        length = int(chance.integers(0, len(ids) + 1))
        fresh = made.of(request, 0)
        assert fresh is not None
        zeros = np.zeros(V, np.float32)
        expected = fresh[1](np.asarray(ids[:length], np.int64), zeros.copy())
        wild = Tree.chain([ids[length - 1], *chance.integers(30, 127, 3).tolist()])
        wandering[1].guided(wild, ids[:length], 9, drawn=False)
        found = wandering[1](np.asarray(ids[:length], np.int64), zeros.copy())
        assert found.tolist() == expected.tolist()
        if length < len(ids):
            assert found[ids[length]] == 0.0
        else:
            assert np.flatnonzero(found == 0.0).tolist() == [256]


def test_ends_are_those_of_the_grammar(bytewise: Tokenizer) -> None:
    app = engine(bytewise)
    short: Any = app.generate("q", raw=True, regex="abc", max_new_tokens=20)
    assert (short.text, short.finish_reason, short.tokens[-1]) == ("abc", "eos", 256)
    bare: Any = app.generate("q", raw=True, regex="abc|abcd", min_tokens=4, max_new_tokens=20)
    assert (bare.text, len(bare.tokens)) == ("abcd", 5)
    words = r"after 3 new tokens no token is left to choose: min_tokens, regex bar all of them"
    with pytest.raises(RequestError, match=words):
        app.generate("q", raw=True, regex="abc", min_tokens=9)
    stopped: Any = app.generate("q", raw=True, regex="ab+c", stop="b", max_new_tokens=20)
    assert (stopped.text, stopped.finish_reason) == ("a", "stop")


def test_branches_follow_the_grammar_each(bytewise: Tokenizer) -> None:
    app = engine(bytewise)
    options: dict[str, Any] = {"regex": "[a-f]{4}(x|yz)", "max_new_tokens": 20}
    parts = [[1, 2], [3]]
    found = app.branches([5, 6, 7], parts, **options)
    alone: Any = app.generate([[5, 6, 7, *part] for part in parts], **options)
    assert [r.tokens for r in found] == [r.tokens for r in alone]
    assert all(re.fullmatch("[a-f]{4}(x|yz)", r.text) for r in found)


def test_grammars_mix_in_one_batch(bytewise: Tokenizer) -> None:
    app = engine(bytewise)
    own: Any = [*GRAMMARS.values(), {}]
    common: dict[str, Any] = {"raw": True, "max_new_tokens": 60, "recipe": "suffix"}
    found: Any = app.generate([*PROMPTS, "q"], own, **common)
    alone = [app.generate(p, **o, **common) for p, o in zip([*PROMPTS, "q"], own, strict=True)]
    assert [r.tokens for r in found] == [r.tokens for r in alone]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"regex": "(ab"}, r"regex cannot be compiled: .*unclosed group"),
        ({"grammar": "start: foo"}, 'grammar cannot be compiled: .*unknown name: "foo"'),
        ({"json_schema": {"type": 3}}, "json_schema cannot be compiled: .*type must be"),
        ({"json_schema": {"not": {}}}, r"json_schema cannot be compiled: Unimplemented keys: \["),
        ({"json_schema": "{bad"}, "json_schema is not JSON: Expecting property name"),
        ({"json_schema": {"enum": {1}}}, "json_schema is not JSON: Object of type set"),
        ({"json_schema": 3}, "json_schema is 3; use a schema as a dict or as JSON text"),
        ({"regex": 3}, "regex is 3; use a text"),
        ({"regex": "a", "grammar": "b"}, "regex and grammar: a request follows one of them"),
        ({"regex": "a", "ignore_eos": True}, "regex says where the text ends; leave ignore_eos"),
    ],
)
def test_what_is_no_grammar_is_refused_in_one_line(
    bytewise: Tokenizer, given: dict[str, Any], words: str
) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        engine(bytewise).submit("q", **given)
    assert "\n" not in str(caught.value)


def test_what_a_grammar_needs_is_said(
    bytewise: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = ToySession(vocabulary=V)
    with pytest.raises(RequestError, match="no tokenizer, so no grammar can be followed"):
        Engine(session, None, {"eos_token_id": 3}, recipe("plain"), None).generate([1], regex="a")
    endless = Tokenizer(bytewise._tokenizer)
    with pytest.raises(RequestError, match="no end-of-text token, so no text could end"):
        Engine(session, endless, {}, recipe("plain"), None).generate([1], regex="a")
    small = ToySession(vocabulary=40)
    with pytest.raises(RequestError, match="llguidance cannot read this model's tokenizer"):
        Engine(small, endless, {"eos_token_id": 3}, recipe("plain"), None).generate([1], regex="a")
    monkeypatch.setitem(sys.modules, "llguidance", None)
    words = r'^llguidance is not installed; run: pip install "graftline\[grammar\]"$'
    with pytest.raises(BackendError, match=words):
        engine(bytewise).generate("q", regex="a")


def test_compiled_grammars_are_kept_and_not_shared(bytewise: Tokenizer) -> None:
    made = Grammars(bytewise, V, frozenset({256}))
    one, two = (made.of(read_options({"regex": "ab"}), 0) for _ in range(2))
    assert one is not None
    assert two is not None
    assert len(made._compiled) == 1
    zeros = np.zeros(V, np.float32)
    one[1](np.asarray(bytewise.encode_part("a")), zeros.copy())
    assert two[1](np.zeros(0, np.int64), zeros.copy())[64] == 0.0
    for place in range(40):
        made.of(read_options({"regex": f"a{place}"}), 0)
    assert len(made._compiled) == 16


@pytest.mark.parametrize("name", GRAMMARS)
def test_with_the_real_tokenizer(smollm2: Path, name: str) -> None:
    """Tokens of several letters: bytes are forced, and tokens are still the target's choice."""
    tokenizer = Tokenizer.from_folder(smollm2)
    app = engine(tokenizer, FLAT, vocabulary=49152)
    options: dict[str, Any] = {"max_new_tokens": 40, "raw": True, **GRAMMARS[name]}
    if name == "json":  # else most of it is white space
        options["json_schema"] = {**SCHEMA, "x-guidance": {"whitespace_flexible": False}}
    for heat in (0.0, 0.7):
        plain: Any = app.generate(PROMPTS, temperature=heat, seed=1, **options)
        for chosen in ("prompt-lookup", "token-recycling"):
            more: dict[str, Any] = {"temperature": heat, "seed": 1, "recipe": chosen}
            found: Any = app.generate(PROMPTS, **more, **options)
            assert [r.tokens for r in found] == [r.tokens for r in plain]
        assert all(whole(name, r.text) for r in plain if r.finish_reason == "eos")
        assert any(r.finish_reason == "eos" for r in plain)


def test_a_grammar_that_forgets_to_go_back_is_caught(
    bytewise: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    stay: Callable[..., Any] = lambda self, text: None  # noqa: E731
    monkeypatch.setattr(Grammar, "_go", stay)
    found: Any = engine(bytewise).generate("q", raw=True, regex="abc", max_new_tokens=9)
    assert found.text != "abc"
