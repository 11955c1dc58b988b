"""Text in and out, with the real tokenizer of SmolLM2."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer as HFTokenizer
from tokenizers import decoders, models

from graftline.errors import BundleError, RequestError
from graftline.runtimes.text.chat_template import ChatTemplate
from graftline.runtimes.text.tokenizer import Detokenizer, StopStrings, Tokenizer, Transcript

TEXTS = [
    "Hello, world! It's a test.",
    "naïve café — “quotes” … 日本語テキスト 🙂👩‍👩‍👧‍👦 и кириллица",
    "  leading spaces,\n\n\ttabs\nand   runs ",
    "emoji at the end 🦜",
]


@pytest.fixture(scope="module")
def tokenizer(smollm2: Path) -> Tokenizer:
    return Tokenizer.from_folder(smollm2)


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_are_whole_characters_and_join_to_the_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, raw=True)
    stream = Detokenizer(tokenizer)
    pieces = [stream.feed(token) for token in ids]
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) + stream.flush() == text == tokenizer.decode(ids)
    assert sum(bool(piece) for piece in pieces) > len(text.split()) // 2  # it does stream


def test_a_cut_character_is_held_back_and_flushed_as_one(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("ok 🦜", raw=True)[:-1]
    stream = Detokenizer(tokenizer)
    assert "".join(stream.feed(token) for token in ids) == "ok"
    assert set(stream.flush()) == {" ", "\ufffd"}


def test_random_bytes_stream_as_they_decode(tokenizer: Tokenizer) -> None:
    rng = np.random.default_rng(4)
    for _ in range(20):
        ids = rng.integers(3, 49152, 60).tolist()
        stream = Detokenizer(tokenizer)
        pieces = [stream.feed(token) for token in ids]
        assert not any(piece.endswith("\ufffd") for piece in pieces)
        assert "".join(pieces) + stream.flush() == tokenizer.decode(ids)


def test_leading_spaces_of_sentencepiece_decoders_survive() -> None:
    vocabulary = {"<unk>": 0, "▁Hello": 1, "▁world": 2, "!": 3, "<0xF0>": 4, "<0x9F>": 5}
    vocabulary |= {"<0x99>": 6, "<0x82>": 7}
    plain = HFTokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    plain.decoder = decoders.Sequence(  # type: ignore[assignment]
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    stream = Detokenizer(Tokenizer(plain))
    pieces = [stream.feed(token) for token in [1, 2, 3, 4, 5, 6, 7, 2]]
    assert pieces == ["Hello", " world", "!", "", "", "", "🙂", " world"]


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_stop_strings_are_found_across_pieces(size: int) -> None:
    text = "one two\n\nUser: three END"
    for stops, expected in [
        (("\n\nUser:",), "one two"),
        (("END", "three"), "one two\n\nUser: "),
        (("User: four",), text),
        (("x", "\n\n\n", "two\n"), "one "),
        ((), text),
    ]:
        cutter = StopStrings(stops)
        shown = "".join(cutter.feed(text[i : i + size]) for i in range(0, len(text), size))
        assert cutter.hit == (expected != text)
        assert shown + ("" if cutter.hit else cutter.flush()) == expected


def test_nothing_of_a_stop_string_is_ever_shown() -> None:
    cutter = StopStrings(["abcab"])
    assert [cutter.feed(c) for c in "xabcabz"] == ["x", "", "", "", "", "", ""]
    cutter = StopStrings(["aab"])
    assert "".join(cutter.feed(c) for c in "aaab") == "a"


def test_a_stop_string_within_a_token_cuts_the_text_there(tokenizer: Tokenizer) -> None:
    transcript = Transcript(tokenizer, ["lo w"])
    shown = [transcript.feed(token) for token in tokenizer.encode("Hello world", raw=True)]
    assert transcript.stopped
    assert "".join(shown) == transcript.text == "Hel"
    assert transcript.close() == ""


def test_a_prompt_becomes_a_chat(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("Hi")
    text = (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert ids == tokenizer.encode(text, raw=True)
    assert ids == tokenizer.encode([{"role": "user", "content": "Hi"}])
    assert ids.count(1) == 3  # the template's markers are single special tokens
    assert tokenizer.encode("Hi", raw=True) != ids
    with pytest.raises(RequestError, match="raw=True takes a string"):
        tokenizer.encode([{"role": "user", "content": "Hi"}], raw=True)


def test_templates_follow_the_conventions() -> None:
    template = ChatTemplate(
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'bad' %}"
        "{{ raise_exception('no ' + m.role) }}{% endif %}"
        "{% generation %}{{ m.content | tojson }}{% endgeneration %}{% endfor %}\n"
        "{% if add_generation_prompt %}\nA{% endif %}{{ strftime_now('%Y') | length }}",
        {"bos_token": "<s>"},
    )
    assert template.render([{"role": "user", "content": "é<"}]) == '<s>"é<"A4'
    with pytest.raises(RequestError, match="refuses these messages: no bad"):
        template.render([{"role": "bad", "content": ""}])


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception.__globals__.keys() }}",
    ],
)
def test_templates_run_in_a_sandbox(attack: str) -> None:
    with pytest.raises(RequestError, match="refuses"):
        ChatTemplate(attack, {}).render([{"role": "user", "content": "x"}])


def test_damaged_files_are_one_line(tmp_path: Path, smollm2: Path) -> None:
    with pytest.raises(BundleError, match=r"holds no tokenizer\.json"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match="cannot be read"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((smollm2 / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(BundleError, match="is not JSON"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{% if %}"}))
    with pytest.raises(BundleError, match="the chat template cannot be read"):
        Tokenizer.from_folder(tmp_path)
    named = [{"name": "tool", "template": "T"}, {"name": "default", "template": "D{{ eos_token }}"}]
    config = {"chat_template": named, "eos_token": {"content": "<|im_end|>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.encode("x") == tokenizer.encode("D<|im_end|>", raw=True)
    (tmp_path / "tokenizer_config.json").unlink()
    bare = Tokenizer.from_folder(tmp_path)
    assert not bare.has_chat_template
    assert bare.encode("x") == bare.encode("x", raw=True)
    with pytest.raises(RequestError, match="no chat template"):
        bare.encode([{"role": "user", "content": "x"}])
