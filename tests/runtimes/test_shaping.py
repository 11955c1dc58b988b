"""What shapes logits: each processor as defined, and no draft changes what comes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
from lossy import EMBEDDING, HEAD, STRICT
from misbehaviour import Misbehaving
from toy_drafts import CheckedDraft
from toy_session import ToySession

from graftline.errors import GraftlineError, RequestError
from graftline.recipe import Recipe, recipe, recipes
from graftline.runtimes.drafters import DRAFTERS
from graftline.runtimes.engine import Engine
from graftline.runtimes.processors import Frequency, NoRepeat, Processor, Repetition, Shaping
from graftline.runtimes.resources import Resources
from graftline.runtimes.session import Floats, Ints
from graftline.runtimes.shaping import Shaper
from graftline.tree import Tree

V = 40


def scatter(path: Ints, logits: Floats) -> Floats:
    """Every token of the path counts: a row shaped by any other path has other favourites."""
    logits[int(path.sum() * 7 + path[-1]) % V] += 5.0
    return logits


SETTINGS: dict[str, dict[str, Any]] = {
    "repetition": {"repetition_penalty": 4.0},
    "presence": {"presence_penalty": 6.5},
    "frequency": {"frequency_penalty": 2.0},
    "bias": {"logit_bias": {3: 2.5, 7: -4.0, 9: -np.inf}},
    "ngram": {"no_repeat_ngram_size": 2},
    "min_tokens": {"min_tokens": 20, "stop_token_ids": [2, 3, 4, 5, 6]},
    "processor": {"logits_processors": [scatter]},
    "all": {
        "presence_penalty": 1.0, "no_repeat_ngram_size": 3, "min_tokens": 9,
        "logits_processors": [scatter], "stop_token_ids": [11, 12],
    },
}  # fmt: skip


def engine(**session: Any) -> Engine:
    """With all that store drafters, draft models and rules of recipes need."""
    resources = Resources(
        draft=CheckedDraft, vocabulary=V, corpus=(np.arange(1, V),), embedding=lambda: EMBEDDING,
        tuned={"judge": HEAD}, encode=lambda text: [len(word) for word in text.split()],
        decode=lambda ids: " ".join(map(str, ids)),
    )  # fmt: skip
    return Engine(
        ToySession(V, **session), None, {"eos_token_id": 0}, recipe("plain"), None,
        resources=resources,
    )  # fmt: skip


def served() -> list[Recipe]:
    """Every exact recipe that draws nothing of its own, so that one seed gives one text, and
    every lossy rule at its strict end."""
    drawn = ("rejection", "block", "k-sequential", "greedy-multipath-block")
    unmet = {"tuned", "mask token", "depths", "head", "route", "exit", "answer prefix"}
    exact = [
        one for one in recipes()
        if one.lossless and not unmet & {*one.needs}
        and one.rule not in drawn and one.name != "parallel-within-sequence"
    ]  # fmt: skip
    drafter = {"step-score": "prompt-lookup", "reflective": "reflective", "judge": "prompt-lookup"}
    lossy = [
        Recipe(f"strict {rule}", "", "", False, (), "", drafter.get(rule, "token-recycling"), rule,
               {}, options)
        for rule, options in STRICT.items() if rule != "judge"  # it needs hidden states
    ]  # fmt: skip
    wild = Recipe("wild", "", "", True, (), "", "misbehaving", "point-mass", {"shape": "bushy"})
    return [*exact, *lossy, wild]


@pytest.fixture(autouse=True)
def _misbehaving(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DRAFTERS, "misbehaving", Misbehaving)  # type: ignore[arg-type]


NAMED = {one.name: one for one in served()}
PLAIN: dict[str, list[list[int]]] = {}
"""What plain decoding gives under each of the settings."""


def texts(app: Engine, prompts: list[list[int]], given: dict[str, Any], **more: Any) -> list[Any]:
    options = {"max_new_tokens": 28, "seed": 5, **given, **more}
    return app.generate(prompts[:3], **options)  # type: ignore[return-value]


def plain(prompts: list[list[int]], setting: str, heat: float) -> list[list[int]]:
    key = f"{setting} {heat}"
    if key not in PLAIN:
        results = texts(engine(), prompts, SETTINGS[setting], temperature=heat)
        PLAIN[key] = [r.tokens for r in results]
    return PLAIN[key]


def pairs() -> Iterator[tuple[str, str, float]]:
    """Every recipe under every third setting, greedy and sampled in turn; every pair of a setting
    and a temperature comes."""
    for place, name in enumerate(NAMED):
        for number, setting in enumerate(SETTINGS):
            if (place + number) % 3 == 0:
                heat = (0.0, 0.9)[(place + number // 3) % 2]
                diced = NAMED[name].rule in ("neighbours", "clusters")
                yield name, setting, 0.0 if diced else heat


@pytest.mark.parametrize(("name", "setting", "heat"), pairs())
def test_drafts_change_no_token(
    prompts: list[list[int]], name: str, setting: str, heat: float
) -> None:
    found = texts(engine(), prompts, SETTINGS[setting], temperature=heat, recipe=NAMED[name])
    assert [r.tokens for r in found] == plain(prompts, setting, heat)


def test_the_settings_matter_and_drafts_are_accepted(prompts: list[list[int]]) -> None:
    unshaped = [r.tokens for r in texts(engine(), prompts, {})]
    for setting in SETTINGS:
        assert plain(prompts, setting, 0.0) != unshaped, setting
    accepted = 0
    for setting in SETTINGS:
        found = texts(engine(), prompts, SETTINGS[setting], recipe="token-recycling")
        accepted += sum(len(r.tokens) - 1 - r.stats.steps for r in found)
    assert accepted > 20


def test_shaping_by_the_wrong_path_would_be_seen(
    prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As above, with rows of a tree that are shaped as if nothing had been drafted before them."""
    rooted = Shaper.path
    monkeypatch.setattr(Shaper, "path", lambda self, tree, node: rooted(self, tree, 0))
    for setting in ("repetition", "ngram", "processor", "all"):
        found = texts(engine(), prompts, SETTINGS[setting], recipe="token-recycling")
        assert [r.tokens for r in found] != plain(prompts, setting, 0.0), setting


def test_branches_are_shaped_as_if_each_stood_alone(prompts: list[list[int]]) -> None:
    app = engine()
    for given in SETTINGS.values():
        options: dict[str, Any] = {"max_new_tokens": 12, **given, "min_tokens": 5}
        found = app.branches(prompts[0], [[1, 2], [3]], **options)
        alone = app.generate([[*prompts[0], 1, 2], [*prompts[0], 3]], **options)
        assert [r.tokens for r in found] == [r.tokens for r in alone]  # type: ignore[union-attr]


def shaped(option: dict[str, Any], path: list[int], prompt: int, logits: Floats) -> Floats:
    processors = Shaping(**option).processors(prompt, frozenset({0, 1}))
    return Shaper(np.asarray(path), processors).shaped(np.asarray(path), logits)


def test_penalties_as_openai_defines_them() -> None:
    """mu[j] - c[j] * frequency - (c[j] > 0) * presence, c being counts in the generated text."""
    path, logits = [5, 5, 6, 7, 7, 7, 8], np.arange(10, dtype=np.float32)
    found = shaped({"presence_penalty": 0.5, "frequency_penalty": 0.25}, path, 3, logits)
    counts = np.bincount([7, 7, 7, 8], minlength=10)
    np.testing.assert_allclose(found, logits - counts * 0.25 - (counts > 0) * 0.5)
    assert logits.tolist() == list(range(10)), "the target's own stay"


def by_transformers(name: str, *options: Any) -> Callable[[list[int], Floats], Floats]:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    processor = getattr(transformers, name)(*options)

    def call(path: list[int], logits: Floats) -> Floats:
        return processor(torch.tensor([path]), torch.tensor(logits)[None])[0].numpy()

    return call


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_ngrams_and_repetition_as_transformers_has_them(size: int) -> None:
    chance = np.random.default_rng(size)
    cases: list[tuple[Processor, Callable[[list[int], Floats], Floats]]] = [
        (NoRepeat(size), by_transformers("NoRepeatNGramLogitsProcessor", size)),
        (Repetition(1.7), by_transformers("RepetitionPenaltyLogitsProcessor", 1.7)),
    ]
    for length in (1, 2, 3, 6, *range(8, 40)):
        path = chance.integers(0, 3, length).tolist()
        logits = chance.normal(size=12).astype(np.float32)
        for ours, theirs in cases:
            found = ours(np.asarray(path), logits.copy())
            np.testing.assert_allclose(found, theirs(path, logits), rtol=1e-6)


def test_no_end_before_min_tokens(prompts: list[list[int]]) -> None:
    app, ends = engine(), {"stop_token_ids": list(range(1, 20))}
    early = texts(app, prompts, ends)
    assert min(len(r.tokens) for r in early) < 7
    late = texts(app, prompts, {**ends, "min_tokens": 7})
    assert min(len(r.tokens) for r in late) == 8, "seven, and an end"
    assert not any(0 <= t < 20 for r in late for t in r.tokens[:7])
    assert {r.finish_reason for r in late} <= {"stop", "eos", "length"}


def test_the_path_of_a_row_is_that_of_its_ancestors() -> None:
    tree = Tree(np.array([3, 1, 5, 2, 0]), np.array([-1, 0, 0, 1, 3]))
    shaper = Shaper(np.array([8, 9]), [])
    shaper.extend([4] * 100)
    shaper.extend([3])
    assert shaper.path(tree, 0).tolist() == [8, 9, *[4] * 100, 3]
    assert shaper.path(tree, 4).tolist()[-4:] == [3, 1, 2, 0]
    assert shaper.path(tree, 2).tolist()[-2:] == [3, 5]
    assert Frequency(2, 1.0, 0.0)(shaper.path(tree, 0), np.zeros(10, np.float32))[4] == -1.0


def test_a_request_without_any_of_these_copies_no_row(
    prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("shaped")

    monkeypatch.setattr(Shaper, "__init__", refuse)
    assert texts(engine(), prompts, {"temperature": 0.5, "top_k": 3}, recipe="suffix")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"presence_penalty": float("nan")}, "presence_penalty is nan; use 0 for none"),
        ({"frequency_penalty": "1"}, "frequency_penalty is '1'"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size is -1; use 0 for none"),
        ({"min_tokens": 1.5}, r"min_tokens is 1\.5"),
        ({"min_tokens": 29}, "min_tokens is 29 and max_new_tokens 28; lower min_tokens"),
        ({"logit_bias": {"3": 1.0}}, "logit_bias is .* use a dict from token ids to numbers"),
        ({"logit_bias": {3: np.inf}}, "logit_bias is"),
        ({"logit_bias": {V: 1.0}}, "logit_bias names the token id 40; the vocabulary has ids 0 to"),
        ({"logits_processors": scatter}, "logits_processors is .* use a list of functions"),
        ({"logits_processors": [lambda p, z: z[:3]]}, r"logits_processors\[0\] returned \[3\]"),
        ({"logits_processors": [lambda p, z: None]}, r"logits_processors\[0\] returned .*NoneType"),
        ({"logits_processors": [lambda p, z: z * np.nan]}, "not numbers or "),
        ({"logits_processors": [lambda p, z: z + np.inf]}, "not numbers or "),
        (
            {"logits_processors": [lambda p, z: z - np.inf], "min_tokens": 2},
            r"after 0 new tokens no token is left to choose: logits_processors\[0\], min_tokens",
        ),
    ],
)
def test_what_cannot_shape_is_refused(
    prompts: list[list[int]], given: dict[str, Any], words: str
) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        texts(engine(), prompts, given)
    assert "\n" not in str(caught.value)


def test_a_processor_cannot_change_the_path(prompts: list[list[int]]) -> None:
    def greedy_for_more(path: Ints, logits: Floats) -> Floats:
        path[0] = 1
        return logits

    with pytest.raises(ValueError, match="read-only"):
        texts(engine(), prompts, {"logits_processors": [greedy_for_more]})


@pytest.mark.parametrize(
    "given",
    [
        *({k: v for k, v in one.items() if k != "stop_token_ids"} for one in SETTINGS.values()),
        *({name: "a"} for name in ("json_schema", "regex", "grammar")),
        {"logprobs": 0}, {"prompt_logprobs": 0}, {"top_k": 3}, {"top_p": 0.5},
    ],
)  # fmt: skip
def test_a_fused_step_refuses_by_name(given: dict[str, Any]) -> None:
    from graftline.runtimes.fused import HOST_ONLY, check_fused
    from graftline.runtimes.request import read_options

    check = partial(check_fused, recipe("token-recycling"))
    check(read_options({"stop_token_ids": [1], "min_p": 0.1, "temperature": 0.5}))
    name = next(name for name in HOST_ONLY if name in given)
    with pytest.raises(GraftlineError, match=rf"^{name}.*: a fused step .* use --step host"):
        check(read_options(given))


def test_strict_rules_accept_no_barred_token(prompts: list[list[int]]) -> None:
    """At their loose ends, too: what is barred is never written."""
    from lossy import LOOSE

    for rule, options in LOOSE.items():
        if rule == "judge":
            continue
        drafter = "prompt-lookup" if rule == "step-score" else "token-recycling"
        one = Recipe(f"loose {rule}", "", "", False, (), "", drafter, rule, {}, options)
        bar = dict.fromkeys(range(5, 25), -np.inf)
        for heat in (0.0, 1.0):
            found = texts(engine(), prompts, {"logit_bias": bar}, recipe=one, temperature=heat)
            assert not any(5 <= t < 25 for r in found for t in r.tokens), rule
