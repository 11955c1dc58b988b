"""Conversations, and what a chat template is given."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from engines import left_over
from toy_session import FLAT, ToySession

from graftline.errors import BundleError, RequestError
from graftline.recipe import recipe
from graftline.runtimes.defaults import Defaults, read_defaults
from graftline.runtimes.engine import Engine
from graftline.runtimes.prefix_cache import PrefixCache
from graftline.runtimes.text.chat_template import ChatTemplate, TemplateArguments
from graftline.runtimes.text.tokenizer import Tokenizer

TEMPLATE = (
    "{%- if tools %}<|tools|>{{ tools | tojson }}\n{%- endif %}"
    "{%- for m in messages %}<|{{ m.role }}|>"
    "{%- if m.tool_calls %}{{ m.tool_calls | tojson }}{%- endif %}"
    "{{ m.content or '' }}<|end|>\n{%- endfor %}"
    "{%- if add_generation_prompt %}<|assistant|>"
    "{%- if enable_thinking is defined and enable_thinking is false %}<think></think>{%- endif %}"
    "{%- endif %}"
)
TRIMMING = TEMPLATE.replace("m.content or ''", "(m.content or '') | trim")
TOOLS = [{"type": "function", "function": {"name": "warmth", "parameters": {"type": "object"}}}]
CALL = {"function": {"name": "warmth", "arguments": {"city": "Oslo"}}}
TALK: list[dict[str, Any]] = [
    {"role": "user", "content": "How warm is it?"},
    {"role": "assistant", "tool_calls": [CALL]},
    {"role": "tool", "content": "4"},
]


def engine_of(smollm2: Path, capacity: int = 600, **options: Any) -> Engine:
    session = ToySession(vocabulary=49152, capacity=capacity, odd=3)
    return Engine(
        session, Tokenizer.from_folder(smollm2), {"eos_token_id": [2]}, recipe("suffix"), FLAT,
        prefixes=PrefixCache(), **options,
    )  # fmt: skip


def test_a_conversation_is_what_its_messages_give(smollm2: Path) -> None:
    engine = engine_of(smollm2)
    chat = engine.chat("Be brief.", max_new_tokens=12)
    first = chat.send("One.")
    second = chat.send("Two.", temperature=0.8, seed=4)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One."},
        {"role": "assistant", "content": first.text},
        {"role": "user", "content": "Two."},
        {"role": "assistant", "content": second.text},
    ]
    assert chat.messages == messages
    again = engine.generate(messages[:4], max_new_tokens=12, temperature=0.8, seed=4)
    assert again.tokens == second.tokens
    assert chat.room == 600 - len(engine.encode(messages))


def test_a_turn_reads_what_is_new_to_it(smollm2: Path) -> None:
    """The template closes the last answer and opens the next: a few tokens besides the message."""
    engine = engine_of(smollm2)
    chat = engine.chat(max_new_tokens=40, ignore_eos=True)
    chat.send("Tell me of the sea, of ships, and of those who went down to them. " * 8)
    before = len(engine.encode(chat.messages))
    result = chat.send("And then?")
    asked = len(engine.encode(chat.messages[:-1]))
    again = asked - result.stats.reused
    assert again <= asked - before + 40, "no more than the answer, if it is cut otherwise as text"
    assert result.stats.reused > 100
    assert engine.chat().send("Hi", max_new_tokens=1).stats.reused > 20, "the usual system prompt"


def test_streams_keep_their_answers_too(smollm2: Path) -> None:
    engine = engine_of(smollm2)
    chat, silent = (engine.chat(max_new_tokens=12) for _ in range(2))
    with chat.stream("One.") as stream:
        text = "".join(stream)
    assert stream.result is not None
    assert text == stream.result.text == silent.send("One.").text
    assert chat.messages == silent.messages

    async def one() -> str:
        return "".join([event.text async for event in chat.asend("Two.")])

    assert asyncio.run(one()) == silent.send("Two.").text
    assert chat.messages == silent.messages


def test_a_turn_that_is_given_up_leaves_the_conversation_as_it_was(smollm2: Path) -> None:
    engine = engine_of(smollm2)
    chat = engine.chat(max_new_tokens=40, ignore_eos=True)
    chat.send("One.")
    before = list(chat.messages)
    with chat.stream("Two.") as stream:
        next(stream)
    assert (chat.messages, stream.result) == (before, None)

    async def some() -> None:
        events = chat.asend("Two.")
        await anext(events)
        await events.aclose()

    asyncio.run(some())
    assert chat.messages == before
    assert left_over(engine) == 0
    assert chat.send("Two.", timeout=0.0).finish_reason == "timeout"
    assert chat.messages == before
    with pytest.raises(RequestError, match="top_p is 3"):
        chat.send("Two.", top_p=3)
    assert chat.messages == before


def test_undo_fork_and_go_on(smollm2: Path) -> None:
    engine = engine_of(smollm2)
    chat = engine.chat(max_new_tokens=12, ignore_eos=True)
    chat.send("One.")
    before = list(chat.messages)
    chat.send("Two.")
    other = chat.fork()
    assert other.undo() == chat.messages[2:]
    assert other.messages == before
    chat.send("Three.")
    assert other.messages == before
    other.undo()
    with pytest.raises(RequestError, match="no turn to take back"):
        other.undo()
    with pytest.raises(RequestError, match="last message is not an assistant's text"):
        other.go_on()
    told = [*before[:-1], {"role": "assistant", "content": "It was a dark"}]
    begun = engine.chat(messages=told)
    more = begun.go_on(max_new_tokens=6)
    assert begun.messages[-1]["content"] == "It was a dark" + more.text
    assert begun.messages[:-1] == told[:-1]
    stream = begun.stream("Two.", max_new_tokens=3)
    begun.send("Three.", max_new_tokens=3)
    with pytest.raises(RequestError, match=r"went on while .* use chat\.fork\(\)"):
        "".join(stream)


def test_a_full_conversation_says_what_to_do(smollm2: Path) -> None:
    engine = engine_of(smollm2, capacity=120)
    chat = engine.chat(max_new_tokens=30, ignore_eos=True)
    chat.send("One.")
    before = list(chat.messages)
    with pytest.raises(RequestError) as caught:
        chat.send("Two, " * 40)
    told = str(caught.value)
    assert "but the capacity is 120" in told
    assert "take turns back (chat.undo()), go on in a new chat from a summary" in told
    assert "lower max_new_tokens" in told
    assert "\n" not in told
    assert chat.messages == before
    assert chat.send("Two.", max_new_tokens=4).finish_reason == "length"


def test_a_chat_needs_a_template(smollm2: Path) -> None:
    with pytest.raises(RequestError, match="no chat template; keep the conversation as one text"):
        Engine(ToySession(), None, {}, recipe("plain"), FLAT).chat()
    engine = engine_of(smollm2)
    with pytest.raises(RequestError, match="raw leaves out the chat template"):
        engine.chat(raw=True)
    with pytest.raises(RequestError, match="one answer a turn; fork it for n of them"):
        engine.chat(n=2, temperature=1.0).send("Hi")
    with pytest.raises(RequestError, match="unknown option 'temprature'"):
        engine.chat(temprature=1)  # type: ignore[call-arg]
    with pytest.raises(RequestError, match="there is no message to answer"):
        engine.chat().send([])
    with pytest.raises(RequestError, match="message 1 needs the keys"):
        engine.chat().send([{"role": "user", "content": ""}, {"role": "tool"}])


def test_tools_and_their_calls_reach_the_template(smollm2: Path) -> None:
    source = Tokenizer.from_folder(smollm2)
    engine = engine_of(smollm2)
    engine.tokenizer = Tokenizer(source._tokenizer, TEMPLATE, source.special)
    chat = engine.chat(tools=TOOLS, enable_thinking=False, max_new_tokens=5)
    chat.messages[:] = TALK[:2]
    chat.send(TALK[2])
    text = ChatTemplate(TEMPLATE, {}).render(
        TALK, TemplateArguments(TOOLS, others={"enable_thinking": False})
    )
    assert '"warmth"' in text
    assert text.endswith("<think></think>")
    prompt = engine.encode(TALK, tools=TOOLS, enable_thinking=False)
    assert prompt.tolist() == source.encode(text, raw=True)
    assert len(chat.messages) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"enable_thinking": True}, r"does not know 'enable_thinking' \(it takes none\); leave it"),
        ({"tools": TOOLS}, "does not know 'tools'"),
        ({"template_args": {"documents": []}}, "does not know 'documents'"),
        ({"template_args": {"messages": []}}, "has 'messages', which the engine gives itself"),
        ({"tools": TOOLS[0]}, "tools is no list of JSON schemas"),
        ({"tools": [len]}, "tools is no list of JSON schemas"),
        ({"enable_thinking": 1}, "enable_thinking is 1; use True or False"),
        ({"continue_final_message": None}, "continue_final_message is None"),
        ({"continue_final_message": True}, "continues a message; give messages"),
        ({"template_args": "x=1"}, "template_args is 'x=1'; use a dict"),
        ({"tools": TOOLS, "raw": True}, "tools is for chat templates, and this is a text without"),
    ],
)
def test_what_the_template_does_not_know_is_refused(
    smollm2: Path, options: dict[str, Any], message: str
) -> None:
    engine = engine_of(smollm2)
    with pytest.raises(RequestError, match=message) as caught:
        engine.generate("Hi", **options)
    assert "\n" not in str(caught.value)


def test_ids_take_no_template_arguments(smollm2: Path) -> None:
    with pytest.raises(RequestError, match="enable_thinking is for chat templates, and this is a"):
        engine_of(smollm2).generate([1, 2], enable_thinking=True)
    template = ChatTemplate("{% if x is not defined %}{% set x = 1 %}{% endif %}{{ x }}", {})
    assert template.known == ["x"]
    assert template.render([], TemplateArguments(others={"x": 2})) == "2"
    with pytest.raises(RequestError, match=r"does not know 'y' \(it knows x\)"):
        template.render([], TemplateArguments(others={"y": 2}))


@pytest.mark.parametrize("template", [TEMPLATE, TRIMMING], ids=["as it is", "trimmed"])
@pytest.mark.parametrize("tools", [None, TOOLS])
@pytest.mark.parametrize("thinking", [None, True, False])
def test_rendering_is_transformers(
    template: str, tools: list[Any] | None, thinking: bool | None, smollm2: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(smollm2 / "tokenizer.json"))
    given = {} if thinking is None else {"enable_thinking": thinking}
    ours = ChatTemplate(template, {})
    ends = ("Once ", "  a  time\n", "x")
    talks = [TALK, *([*TALK, {"role": "assistant", "content": end}] for end in ends)]
    for talk in talks:
        for go_on in (False, True) if talk[-1]["role"] == "assistant" else (False,):
            want = theirs.apply_chat_template(
                talk, chat_template=template, tools=tools, tokenize=False,
                add_generation_prompt=not go_on, continue_final_message=go_on, **given,
            )  # fmt: skip
            assert ours.render(talk, TemplateArguments(tools, go_on, given)) == want


def test_a_message_of_parts_is_continued_at_its_last_text(smollm2: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(smollm2 / "tokenizer.json"))
    template = (
        "{% for m in messages %}{% for p in m.content %}{{ p.text or p.type }},{% endfor %}"
        "{% endfor %}"
    )
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two "}, {"type": "image"}]
    talk = [{"role": "assistant", "content": parts}]
    want = theirs.apply_chat_template(
        talk, chat_template=template, tokenize=False, continue_final_message=True
    )
    assert ChatTemplate(template, {}).render(talk, TemplateArguments(go_on=True)) == want
    assert want == "one ,two "


def test_what_cannot_be_continued_is_refused() -> None:
    template = ChatTemplate(TEMPLATE, {})
    with pytest.raises(RequestError, match="last message has no text to continue"):
        template.render(TALK[:2], TemplateArguments(go_on=True))
    with pytest.raises(RequestError, match="last message has no text to continue"):
        template.render([], TemplateArguments(go_on=True))
    deaf = ChatTemplate("{% for m in messages %}{{ m.role }}{% endfor %}", {})
    with pytest.raises(RequestError, match="leaves out the last message's text"):
        deaf.render([{"role": "user", "content": "x"}], TemplateArguments(go_on=True))


def test_a_template_of_its_own_for_tools(smollm2: Path) -> None:
    source = Tokenizer.from_folder(smollm2)
    tokenizer = Tokenizer(source._tokenizer, "plain", {}, "{{ tools | length }} tools")
    messages = [{"role": "user", "content": "x"}]
    assert tokenizer.encode(messages) == source.encode("plain", raw=True)
    found = tokenizer.encode(messages, arguments=TemplateArguments(TOOLS))
    assert found == source.encode("1 tools", raw=True)


SAMPLED = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 50, "eos_token_id": 2}


def test_the_checkpoints_own_settings_hold_where_a_request_says_nothing(smollm2: Path) -> None:
    own = engine_of(smollm2, defaults=read_defaults({**SAMPLED, "repetition_penalty": 1.1}))
    plain = engine_of(smollm2)
    few: dict[str, Any] = {"max_new_tokens": 20, "seed": 3}
    said = {"temperature": 0.6, "top_p": 0.9, "top_k": 50, "repetition_penalty": 1.1}
    found = own.generate("Hi", **few)
    assert found.tokens == plain.generate("Hi", **few, **said).tokens
    assert found.stats.defaults == said
    greedy = own.generate("Hi", **few, temperature=0, repetition_penalty=1)
    assert greedy.tokens == plain.generate("Hi", **few).tokens != found.tokens
    assert greedy.stats.defaults == {"top_p": 0.9, "top_k": 50}
    assert plain.generate("Hi", **few).stats.defaults == {}
    stream = own.stream("Hi", **few)
    assert "".join(stream) == found.text


@pytest.mark.parametrize(
    ("config", "options"),
    [
        ({}, {}),
        ({"eos_token_id": 2, "bos_token_id": 1, "use_cache": True}, {}),
        ({"temperature": 0.6, "top_p": 0.9}, {}),
        ({"do_sample": False, "temperature": 0.6, "repetition_penalty": 1.2},
         {"repetition_penalty": 1.2}),
        ({"do_sample": True}, {"temperature": 1.0}),
        ({"do_sample": True, "top_k": 0, "top_p": 1.0, "min_p": None}, {"temperature": 1.0}),
        (SAMPLED, {"temperature": 0.6, "top_p": 0.9, "top_k": 50}),
        ({"max_new_tokens": 64}, {"max_new_tokens": 64}),
        ({"no_repeat_ngram_size": 3, "min_new_tokens": 4, "min_length": 9},
         {"no_repeat_ngram_size": 3, "min_tokens": 4}),
    ],
)  # fmt: skip
def test_a_config_means_what_transformers_takes_it_to(
    config: dict[str, Any], options: dict[str, Any]
) -> None:
    assert read_defaults(config).options == options


def test_settings_that_are_not_used_are_told() -> None:
    found = read_defaults({**SAMPLED, "num_beams": 4, "typical_p": 1.0, "suppress_tokens": [0]})
    assert found.unused == {"num_beams": 4, "suppress_tokens": [0]}
    assert found.words == (
        "the checkpoint's own: temperature=0.6, top_k=50, top_p=0.9; not used: num_beams=4, "
        "suppress_tokens=[0]"
    )
    assert Defaults().words == "none of the checkpoint's own"
    with pytest.raises(BundleError, match=r"_config\.json: top_p is 'much'; .* defaults=F"):
        read_defaults({"do_sample": True, "top_p": "much"})
