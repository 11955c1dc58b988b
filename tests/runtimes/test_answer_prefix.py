"""How every answer begins: read with the prompt, in one go, and no part of the text."""

from __future__ import annotations

from typing import Any

import pytest
from toy_session import FLAT, ToySession

from graftline.errors import BundleError, GraftlineError, RequestError
from graftline.recipe import recipe
from graftline.runtimes.defaults import read_defaults
from graftline.runtimes.engine import Engine
from graftline.runtimes.resources import Resources
from graftline.runtimes.text.tokenizer import Tokenizer
from tests.tiny_checkpoints import write_tokenizer

LATENT = "<|latent|>" * 2 + "<answer>[["
MESSAGES = [{"role": "user", "content": "Where to?"}]
Text = dict[str, Any]
GREEDY: Text = {"max_new_tokens": 9, "ignore_eos": True}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return Tokenizer.from_folder(folder)


def engine_of(tokenizer: Tokenizer, prefix: str = "", name: str = "plain") -> Engine:
    session = ToySession(vocabulary=257, capacity=400, odd=3)
    asked = {"answer_prefix": prefix} if prefix else {}
    around = Resources(answer_prefix=prefix)
    return Engine(session, tokenizer, {}, recipe(name), FLAT, resources=around,
                  defaults=read_defaults(asked))  # fmt: skip


def test_it_stands_behind_the_template_and_is_read_with_the_prompt(tokenizer: Tokenizer) -> None:
    engine = engine_of(tokenizer)
    ids = tokenizer.encode_part("user: Where to?\nassistant:" + LATENT)
    expected = engine.generate(ids, **GREEDY)
    calls = len(engine.session.calls)  # type: ignore[attr-defined]
    for prompt in ("Where to?", MESSAGES):
        made = engine.generate(prompt, answer_prefix=LATENT, **GREEDY)
        assert (made.tokens, made.text) == (expected.tokens, expected.text)
        assert made.usage.prompt_tokens == len(ids)
        assert made.usage.completion_tokens == 9
    more = len(engine.session.calls) - calls  # type: ignore[attr-defined]
    assert more == 2 * calls, "no call for the latent tokens: they are rows of the prompt's"
    assert engine.generate("Where to?", **GREEDY).tokens != expected.tokens


def test_texts_without_a_template_and_ids(tokenizer: Tokenizer) -> None:
    engine = engine_of(tokenizer)
    ids = tokenizer.encode_part("So:" + LATENT)
    expected = engine.generate(ids, **GREEDY).tokens
    assert engine.generate("So:", raw=True, answer_prefix=LATENT, **GREEDY).tokens == expected
    given = tokenizer.encode_part("So:")
    assert engine.generate(given, answer_prefix=LATENT, **GREEDY).tokens == expected


def test_a_bundle_says_it_for_every_request(tokenizer: Tokenizer) -> None:
    told, engine = engine_of(tokenizer, LATENT, "onevl"), engine_of(tokenizer)
    expected = engine.generate("Where to?", answer_prefix=LATENT, **GREEDY).tokens
    assert told.generate("Where to?", **GREEDY).tokens == expected
    assert f"answer_prefix={LATENT}" in told.defaults.words
    plain = engine.generate("Where to?", **GREEDY).tokens
    assert told.generate("Where to?", answer_prefix="", **GREEDY).tokens == plain


def test_a_conversation_keeps_what_the_model_has_written(tokenizer: Tokenizer) -> None:
    engine = engine_of(tokenizer, LATENT, "onevl")
    chat = engine.chat(**GREEDY)
    first = chat.send("Where to?")
    assert chat.messages[-1]["content"] == LATENT + first.text
    second = chat.send("And then?")
    whole = engine.generate([*chat.messages[:-1]], **GREEDY)
    assert second.tokens == whole.tokens
    longer = chat.go_on(max_new_tokens=3)
    assert chat.messages[-1]["content"] == LATENT + second.text + longer.text
    events = list(chat.stream("Stop?"))
    assert chat.messages[-1]["content"] == LATENT + "".join(events)


def test_what_cannot_be_is_refused(tokenizer: Tokenizer) -> None:
    engine = engine_of(tokenizer, LATENT, "onevl")
    with pytest.raises(RequestError, match="answer_prefix is 3; use a text"):
        engine.generate("x", answer_prefix=3)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match='no answer_prefix begins; give answer_prefix=""'):
        engine.generate(MESSAGES, continue_final_message=True)
    with pytest.raises(BundleError, match=r"generation_config\.json: answer_prefix is 7"):
        read_defaults({"answer_prefix": 7})
    with pytest.raises(GraftlineError, match="onevl needs an answer prefix here; build the bundle"):
        engine_of(tokenizer, "", "onevl")
    bare = Engine(ToySession(), None, {}, recipe("plain"), FLAT)
    with pytest.raises(RequestError, match="no tokenizer; give the prompt as token ids"):
        bare.generate([1, 2], answer_prefix=LATENT)
