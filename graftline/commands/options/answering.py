"""How text is generated."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from graftline.commands.options.printing import JsonResult

Raw = Annotated[bool, typer.Option("--raw", help="Do not apply the chat template.")]


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; None: as the checkpoint's own defaults say."""

    max_new_tokens: Annotated[
        int | None,
        typer.Option(help="Maximum tokens to generate; default: the checkpoint's own, else 128."),
    ] = None
    temperature: Annotated[
        float | None,
        typer.Option(
            help="Sampling temperature; 0 is greedy. Default: the checkpoint's own, else 0."
        ),
    ] = None
    top_k: Annotated[
        int | None, typer.Option(help="Sample from the k most likely tokens; 0: all.")
    ] = None
    top_p: Annotated[
        float | None,
        typer.Option(help="Sample from the fewest tokens with this total probability."),
    ] = None
    min_p: Annotated[
        float | None, typer.Option(help="Drop tokens below this fraction of the top probability.")
    ] = None
    repetition_penalty: Annotated[
        float | None, typer.Option(help="Penalty on tokens that occurred before; 1 is off.")
    ] = None
    no_defaults: Annotated[
        bool,
        typer.Option(
            "--no-defaults",
            help="Ignore the checkpoint's own generation_config.json: greedy unless said "
            "otherwise.",
        ),
    ] = False


@dataclass(frozen=True)
class ChatTemplate:
    """What the chat template is given beside the prompt."""

    tools: Annotated[
        Path | None,
        typer.Option(help="JSON file with a list of tools (JSON schemas) for the chat template."),
    ] = None
    thinking: Annotated[
        bool | None,
        typer.Option(
            "--thinking/--no-thinking", help="enable_thinking for a chat template that knows it."
        ),
    ] = None
    template_arg: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Another argument of the chat template, VALUE as JSON or text; may be given more "
            "than once.",
        ),
    ] = None


@dataclass(frozen=True)
class Shaping:
    """What the scores of tokens are changed by, and which texts are allowed."""

    presence_penalty: Annotated[
        float, typer.Option(help="Taken from the score of every token the answer has used already.")
    ] = 0.0
    frequency_penalty: Annotated[
        float, typer.Option(help="Taken as often as the answer has used the token already.")
    ] = 0.0
    no_repeat_ngram_size: Annotated[
        int,
        typer.Option(help="Never write so many tokens in a row twice, prompt included; 0: off."),
    ] = 0
    logit_bias: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ID=BIAS",
            help="Add to the score of a token id; -inf bars it. May be given more than once.",
        ),
    ] = None
    min_tokens: Annotated[int, typer.Option(help="Do not end before so many tokens.")] = 0
    json_schema: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Answer in JSON that this JSON schema allows."),
    ] = None
    regex: Annotated[
        str | None, typer.Option(metavar="REGEX", help="Answer in a text that matches as a whole.")
    ] = None
    grammar: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Answer in a text of this Lark grammar, llguidance's kind."
        ),
    ] = None


@dataclass(frozen=True)
class Answers:
    """How many answers, where they end, and which log-probabilities come with them."""

    seed: Annotated[
        int | None,
        typer.Option(
            help="Random seed: the same text again, whatever is drafted; but not with recipes that "
            "draw their drafts (the README lists them), where it depends on how many are drafted."
        ),
    ] = None
    n: Annotated[
        int, typer.Option("--n", help="Answers to write; more than 1 needs --temperature above 0.")
    ] = 1
    stop: Annotated[
        list[str] | None, typer.Option(help="Stop before this text; may be given more than once.")
    ] = None
    stop_token_id: Annotated[
        list[int] | None,
        typer.Option("--stop-token-id", help="Stop at this token id; may be given more than once."),
    ] = None
    include_stop: Annotated[bool, typer.Option("--include-stop", help="Keep the stop text.")] = (
        False
    )
    logprobs: Annotated[
        int | None,
        typer.Option(
            help="With --json: log-probabilities of the answer's tokens, before temperature and "
            "penalties, and of so many likeliest tokens in each place."
        ),
    ] = None
    prompt_logprobs: Annotated[
        int | None, typer.Option(help="With --json: the same of the prompt's tokens.")
    ] = None
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Continue past the end-of-text token.")
    ] = False


@dataclass(frozen=True)
class Request:
    """All that a request says of its answer."""

    sampling: Sampling
    template: ChatTemplate
    shaping: Shaping
    answers: Answers


@dataclass(frozen=True)
class Shown:
    """What is shown beside the answer, and how."""

    stats: Annotated[bool, typer.Option("--stats", help="Print statistics to stderr.")] = False
    explain: Annotated[
        bool,
        typer.Option(
            "--explain",
            help="Tell of every step, on stderr: the tree that was scored, what was accepted, "
            "what was expected and what it took, and why it had that size.",
        ),
    ] = False
    timeline: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the same as a page: one file, without network."),
    ] = None
    json: JsonResult = False
