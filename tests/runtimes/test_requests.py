"""Requests: prompts of every kind, streaming, stop strings, pass by pass; bad ones in one line."""

from __future__ import annotations

import gc
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_session import FLAT, ToySession

from graftline.errors import GraftlineError, RequestError
from graftline.recipe import recipe
from graftline.runtimes.engine import Engine
from graftline.runtimes.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def speaking(smollm2: Path) -> Engine:
    """Says random tokens of the real vocabulary, most of them copied over and over."""
    session = ToySession(vocabulary=49152, capacity=400)
    return Engine(
        session, Tokenizer.from_folder(smollm2), {"eos_token_id": [2]}, recipe("plain"), FLAT
    )


MESSAGES = [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ("", {}, "the prompt is empty"),
        ([], {}, "the prompt is empty"),
        (["Hi", ""], {}, "the prompt is empty"),
        ([[1, 2], []], {}, "the prompt is empty"),
        ([1, 49152], {}, "token id 49152 at position 1 is out of range.* 0 to 49151"),
        ([-1], {}, "token id -1"),
        ([1, "a"], {}, "not a list of int and str"),
        ([1, 2.5], {}, "not a list of float and int"),
        (3, {}, "not int"),
        ({"role": "user"}, {}, "not dict"),
        ([{"role": "user"}], {}, "needs the keys 'role' and 'content'"),
        ("Hi", {"max_new_tokens": 0}, "max_new_tokens is 0; use at least 1"),
        ("Hi", {"max_new_tokens": -5}, "use at least 1"),
        ("Hi", {"max_new_tokens": 2.5}, "max_new_tokens is 2.5"),
        ("Hi", {"max_new_tokens": True}, "max_new_tokens is True"),
        ("Hi", {"max_new_tokens": 400}, "431 positions, but the capacity is 400, the most that"),
        ([1] * 273, {}, "273 prompt tokens and 128 new ones need 401"),
        ("Hi", {"temperature": -1}, "temperature is -1"),
        ("Hi", {"temperature": float("nan")}, "temperature is nan"),
        ("Hi", {"top_p": 0}, "top_p must be above 0"),
        ("Hi", {"top_p": 1.5}, "top_p is 1.5"),
        ("Hi", {"min_p": 2}, "min_p is 2"),
        ("Hi", {"top_k": -1}, "top_k is -1"),
        ("Hi", {"repetition_penalty": 0}, "repetition_penalty must be above 0"),
        ("Hi", {"seed": -1}, "seed is -1"),
        ("Hi", {"stop": ["a", ""]}, "stop texts must not be empty"),
        ("Hi", {"temprature": 1}, "unknown option 'temprature'; did you mean 'temperature'"),
        ("Hi", {"recipe": "prompt-lokup"}, "did you mean 'prompt-lookup'"),
        ("Hi", {"raw": 1}, "raw is 1"),
        ("Hi", {"exact": "yes"}, "exact is 'yes'; use True or False"),
    ],
)
def test_bad_requests_are_one_line(
    speaking: Engine, prompt: Any, options: dict[str, Any], message: str
) -> None:
    before = len(speaking.session.calls)  # type: ignore[attr-defined]
    with pytest.raises(GraftlineError, match=message) as caught:
        speaking.generate(prompt, **options)
    assert "\n" not in str(caught.value)
    with pytest.raises(GraftlineError, match=message + "|stream takes one prompt"):
        speaking.stream(prompt, **options)  # at the call, not at the first piece
    assert len(speaking.session.calls) == before  # type: ignore[attr-defined]


def test_every_kind_of_prompt(speaking: Engine) -> None:
    tokenizer = speaking.tokenizer
    assert tokenizer is not None
    ids = tokenizer.encode(MESSAGES)
    few = {"max_new_tokens": 8}
    expected = speaking.generate(ids, **few)
    assert speaking.generate("Hi", **few).tokens == expected.tokens
    assert speaking.generate(MESSAGES, **few).tokens == expected.tokens
    assert speaking.generate(np.asarray(ids), **few).tokens == expected.tokens
    assert expected.text == tokenizer.decode(expected.tokens)
    batch = speaking.generate(["Hi", MESSAGES, ids], **few)
    assert [r.tokens for r in batch] == [expected.tokens] * 3
    assert speaking.generate("Hi", raw=True, **few).tokens != expected.tokens


@pytest.mark.parametrize("name", ["plain", "prompt-lookup", "suffix", "token-recycling"])
def test_streamed_pieces_are_valid_and_join_to_the_text(speaking: Engine, name: str) -> None:
    options = {"max_new_tokens": 90, "recipe": name, "ignore_eos": True}
    expected = speaking.generate(MESSAGES, **options)
    stream = speaking.stream(MESSAGES, **options)
    pieces = list(stream)
    assert all(pieces)
    assert "".join(pieces) == expected.text
    for piece in pieces:
        assert piece.encode("utf-8").decode("utf-8") == piece
        assert not piece.endswith("\ufffd") or piece is pieces[-1]
    assert stream.result is not None
    assert stream.result.tokens == expected.tokens


@pytest.mark.parametrize("name", ["plain", "prompt-lookup", "suffix", "token-recycling"])
def test_a_stop_string_ends_at_the_completing_token(speaking: Engine, name: str) -> None:
    tokenizer = speaking.tokenizer
    assert tokenizer is not None
    free = speaking.generate(MESSAGES, max_new_tokens=60, ignore_eos=True)
    for start in (5, 20, 33):
        stop = free.text[start : start + 9]
        place = free.text.index(stop)
        result = speaking.generate(
            MESSAGES, max_new_tokens=60, ignore_eos=True, recipe=name, stop=["never", stop]
        )
        assert result.text == free.text[:place]
        assert result.finish_reason == "stop"
        assert result.tokens == free.tokens[: len(result.tokens)]
        assert stop in tokenizer.decode(result.tokens)
        assert stop not in tokenizer.decode(result.tokens[:-1])
    batch = speaking.generate(
        [MESSAGES, [5, 6]], max_new_tokens=60, ignore_eos=True, recipe=name, stop=stop
    )
    assert batch[0].tokens == result.tokens
    alone = speaking.generate([5, 6], max_new_tokens=60, ignore_eos=True, stop=stop)
    assert batch[1].tokens == alone.tokens


@pytest.mark.parametrize("name", ["plain", "suffix"])
def test_passes_are_the_targets_and_give_the_count(speaking: Engine, name: str) -> None:
    options = {"max_new_tokens": 60, "recipe": name, "ignore_eos": True}
    expected = speaking.generate(MESSAGES, **options)
    passes = speaking.passes(MESSAGES, **options)
    counts = list(passes)
    assert counts[0] == 1
    assert counts[-1] == 60
    assert counts == sorted(counts)
    assert passes.result is not None
    assert passes.result.tokens == expected.tokens
    assert len(counts) == 1 + passes.result.stats.steps
    with pytest.raises(RequestError, match="passes takes one prompt"):
        speaking.passes(["Hi", "you"])
    begun = speaking.passes(MESSAGES, **options)
    next(begun)
    speaking.generate("Hi", max_new_tokens=1)  # others do not wait for it
    begun.close()
    assert next(begun, None) is None
    assert begun.result is None


def test_a_backend_with_one_set_of_caches_has_no_sibling(speaking: Engine) -> None:
    with pytest.raises(RequestError, match="load the bundle again"):
        speaking.sibling()


def test_a_stream_that_nobody_reads_holds_nobody_up(speaking: Engine) -> None:
    options: dict[str, Any] = {"max_new_tokens": 50, "ignore_eos": True}
    expected = speaking.generate("Hi", **options)
    stream = speaking.stream("Hi", **options)
    first = next(stream)
    assert speaking.generate("Hi", max_new_tokens=3).tokens == expected.tokens[:3]
    other = threading.Thread(target=speaking.generate, args=("Hi",), kwargs=options)
    other.start()
    other.join(60)
    assert not other.is_alive()
    assert first + "".join(stream) == expected.text  # others' steps were its own, too
    assert stream.result is not None
    assert stream.result.tokens == expected.tokens


def test_a_stream_that_nobody_wants_ends_within_a_step(speaking: Engine) -> None:
    session, options = speaking.session, {"max_new_tokens": 300, "ignore_eos": True}
    for piece in speaking.stream("Hi", **options):  # the loop's end is the stream's
        assert piece
        break
    with speaking.stream("Hi", **options) as closed:
        next(closed)
    assert closed.result is None
    assert list(closed) == []
    kept = speaking.stream("Hi", **options)
    next(kept)
    kept.close()
    speaking.generate("Hi", max_new_tokens=2)
    assert len(session.lengths) <= 1
    waiting = speaking.stream("Hi", max_new_tokens=5)
    del waiting
    gc.collect()
    speaking.generate("Hi", max_new_tokens=2)
    assert len(session.lengths) <= 1
