"""Lossy rules: the target alone at the strict end of the knob, anything goes at the loose end."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from lossy import DICED, LOOSE, RESOURCES, STRICT, V, logits_of, rule
from toy_session import ToySession

from graftline.errors import GraftlineError
from graftline.recipe import Recipe, recipe
from graftline.runtimes.engine import Engine
from graftline.runtimes.rules import RULES, make_rule
from graftline.runtimes.sampling import Sampling
from graftline.runtimes.session import FINAL, MADE, Floats, Scores
from graftline.runtimes.verdict import Verdict
from graftline.tree import Tree

DRAFTER = {"step-score": "prompt-lookup", "reflective": "reflective"}


class WithHidden(ToySession):
    """Answers with hidden states, [B, N, 2]."""

    def _answered(self, logits: Floats, rows: int) -> Scores:
        a = super()._answered(logits, rows)
        self._answer = replace(a, taps={FINAL: logits[..., :2].copy()})
        return self._answer


def engine() -> Engine:
    return Engine(WithHidden(V), None, {}, recipe("plain"), None, resources=RESOURCES)


def policy(name: str, options: dict[str, object]) -> Recipe:
    drafter = DRAFTER.get(name, "token-recycling")
    return Recipe(f"{name}{options}", "", "", False, (), "", drafter, name, {}, options)


def test_every_lossy_rule_is_tested_and_named_so() -> None:
    assert set(STRICT) == {name for name, kind in RULES.items() if not kind.lossless}
    assert set(LOOSE) == set(STRICT) - {"reflective"}
    for name, options in STRICT.items():
        assert not rule(name, **options).lossless


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        (name, settings)
        for name in STRICT
        for settings in ({}, {"repetition_penalty": 1.5}, {"temperature": 0.8})
        if name not in DICED or "temperature" not in settings
    ],
)
def test_the_strict_end_is_the_target(
    prompts: list[list[int]], name: str, settings: dict[str, float]
) -> None:
    """Token for token; what throws its own dice is held to the law in test_kindred."""
    app, options = engine(), {"max_new_tokens": 30, "seed": 1, **settings}
    plain = app.generate(prompts[:4], **options)
    drafted = app.generate(prompts[:4], recipe=policy(name, STRICT[name]), **options)
    assert [r.tokens for r in drafted] == [r.tokens for r in plain]
    assert not any(r.stats.lossless for r in drafted)
    assert sum(sum(r.stats.accepted_per_depth) for r in drafted) > 0


FAR = logits_of([{5: 0.9}] * 5)
"""A target that wants 5 after everything."""
CHAIN = Tree.chain([1, 7, 8, 9, 10])
BRANCHES = Tree(np.array([1, 7, 8, 9, 10]), np.array([-1, 0, 0, 2, 3]))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("name", LOOSE)
def test_the_loose_end_accepts_everything(name: str, temperature: float) -> None:
    loose = rule(name, Sampling(temperature), seed=3, **LOOSE[name])
    assert loose.judge(CHAIN, FAR, 0).path == (0, 1, 2, 3, 4)
    if name != "step-score":
        assert len(loose.judge(BRANCHES, FAR, 0).path) in (2, 4)
    assert rule(name, **STRICT[name]).judge(CHAIN, FAR, 0) == Verdict((0,), 5)


@pytest.mark.parametrize("name", [n for n in LOOSE if n != "step-score"])
def test_the_targets_own_choice_goes_first(name: str) -> None:
    """Among children that may all stand, the one that the target would choose does."""
    tree = Tree(np.array([1, 7, 5, 8]), np.array([-1, 0, 0, 2]))
    scores = logits_of([{5: 0.5, 7: 0.4}, {2: 0.9}, {3: 0.5, 8: 0.4}, {4: 0.9}])
    assert rule(name, **LOOSE[name]).judge(tree, scores, 0) == Verdict((0, 2, 3), 4)


@pytest.mark.parametrize(
    ("name", "options", "stands"),
    [
        # after 1 the target says 5: 0.6, 7: 0.3, 9: 0.05; entropy 1.15 nats
        ("typical", {"epsilon": 0.31, "delta": 9.0}, []),
        ("typical", {"epsilon": 0.2, "delta": 9.0}, [7]),
        ("typical", {"epsilon": 0.9, "delta": 0.97}, []),  # 0.97 exp(-1.15) = 0.308
        ("typical", {"epsilon": 0.9, "delta": 0.92}, [7]),
        ("typical", {"epsilon": 0.04, "delta": 0.0}, [7, 9, 3]),
        ("threshold", {"threshold": 1.2}, []),  # -log 0.3 = 1.204
        ("threshold", {"threshold": 1.21}, [7]),
        ("threshold", {"threshold": 3.0}, [7, 9]),
        ("relaxed", {"k": 1, "tolerance": 0.69}, []),  # log(0.6 / 0.3) = 0.693
        ("relaxed", {"k": 1, "tolerance": 0.7}, [7]),
        ("relaxed", {"k": 3, "tolerance": 0.0}, [7, 9]),
        ("step-score", {"threshold": -1.2}, []),
        ("step-score", {"threshold": -1.21}, [7]),
        ("step-score", {"threshold": -0.69, "score": "advantage"}, []),  # log(0.3 / 0.6) = -0.693
        ("step-score", {"threshold": -0.7, "score": "advantage"}, [7]),
        ("neighbours", {"k": V, "bound": 0.5}, []),
        ("neighbours", {"k": V, "bound": 1.0}, [7, 9, 3]),
        ("clusters", {"size": 1, "gap": 0.31, "distance": math.inf}, [7]),
        ("clusters", {"size": 1, "gap": 0.29, "distance": math.inf}, []),
        ("clusters", {"size": 2, "gap": 0.6, "distance": math.inf}, [7, 9]),
        ("clusters", {"size": 2, "gap": 0.6, "distance": 0.0}, []),
    ],
)
def test_knobs_by_hand(name: str, options: dict[str, float], stands: list[int]) -> None:
    scores = logits_of([{5: 0.6, 7: 0.3, 9: 0.05}, {2: 0.9}])
    for token in (7, 9, 3):
        verdict = rule(name, **options).judge(Tree.chain([1, token]), scores, 0)
        assert verdict == (Verdict((0, 1), 2) if token in stands else Verdict((0,), 5))


def test_a_rejected_step_is_judged_token_by_token() -> None:
    scores = logits_of([{7: 0.9}, {8: 0.9}, {5: 0.9}, {6: 0.9}])
    assert rule("step-score", threshold=-0.2).judge(Tree.chain([1, 7, 8, 9]), scores, 0) == (
        Verdict((0, 1, 2), 5)
    )
    low = rule("step-score", threshold=-3.0).judge(Tree.chain([1, 7, 8, 9]), scores, 0)
    assert low == Verdict((0, 1, 2, 3), 6)
    with pytest.raises(GraftlineError, match="is a chain"):
        rule("step-score").judge(BRANCHES, FAR, 0)


def test_an_unlikely_step_stands_where_the_target_has_hardly_a_better_one() -> None:
    even = dict.fromkeys(range(4, 9), 0.19)
    scores, step = logits_of([even | {7: 0.2}, even | {8: 0.2}, {6: 0.9}]), Tree.chain([1, 5, 6])
    sent_back, whole = Verdict((0,), 7), Verdict((0, 1, 2), 6)
    by_itself = rule("step-score", threshold=-1.0)  # log 0.19 = -1.66
    assert by_itself.judge(step, scores, 0) == sent_back
    for threshold, verdict in ((-0.05, sent_back), (-0.06, whole)):  # log(0.19 / 0.2) = -0.051
        beside_the_best = rule("step-score", threshold=threshold, score="advantage")
        assert beside_the_best.judge(step, scores, 0) == verdict


def test_the_judge_lets_tokens_stand_by_their_own_hidden_state() -> None:
    hidden = np.zeros((1, 5, 2), np.float32)
    hidden[0, :, 0] = 0, 3, 3, -3, 3  # right, right, wrong, right
    scores = Scores(FAR.argmax, FAR.logits, taps={FINAL: hidden})
    assert rule("judge").judge(CHAIN, scores, 0) == Verdict((0, 1, 2), 5)
    assert rule("judge", threshold=0.99).judge(CHAIN, scores, 0) == Verdict((0,), 5)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("typical", {"epsilon": 2.0}, "epsilon=2.0"),
        ("typical", {"delta": math.nan}, "delta=nan"),
        ("threshold", {"threshold": -1.0}, "threshold=-1.0"),
        ("relaxed", {"k": -1}, "k=-1"),
        ("neighbours", {"k": -1}, "k=-1"),
        ("neighbours", {"bound": 1.5}, "bound=1.5"),
        ("neighbours", {"bound": -0.5}, "bound=-0.5"),
        ("neighbours", {"metric": "cosin"}, "use cosine or euclidean"),
        ("clusters", {"size": -1}, "size=-1"),
        ("clusters", {"gap": -0.1}, "gap=-0.1"),
        ("clusters", {"distance": -0.1}, "distance=-0.1"),
        ("judge", {"threshold": 7.0}, "threshold=7.0"),
        ("judge", {"head": "nowhere.safetensors"}, "nowhere.safetensors is not a head"),
        ("reflective", {"weight": -0.5}, "weight=-0.5"),
        ("reflective", {"weight": 1.5}, "weight=1.5"),
        ("reflective", {"prompt": ""}, "has no tokens"),
        ("step-score", {"threshold": math.nan}, "threshold=nan"),
        ("step-score", {"score": "advantages"}, "did you mean 'advantage'"),
        ("typical", {"epsilom": 0.1}, "did you mean 'epsilon'"),
    ],
)
def test_bad_options_are_refused(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(GraftlineError, match=message) as caught:
        rule(name, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("neighbours", "needs a embedding here; this bundle's token embedding was not found"),
        ("clusters", "embedding"),
        ("judge", "needs a judge head here; learn one: graftline tune"),
        ("reflective", "needs a tokenizer here; rebuild"),
    ],
)
def test_what_is_missing_is_named(name: str, message: str) -> None:
    with pytest.raises(GraftlineError, match=message):
        make_rule(name, Sampling(), np.random.default_rng(0))


def test_the_judge_says_which_pass_is_missing() -> None:
    with pytest.raises(GraftlineError, match=r"tap\{layers=norm\}"):
        rule("judge").judge(CHAIN, Scores(FAR.argmax, FAR.logits), 0)
    made = Scores(FAR.argmax, FAR.logits, taps={MADE: np.zeros((1, 5, 2), np.float32)})
    with pytest.raises(GraftlineError, match=r"tap\{layers=norm\}"):  # what is made for a head
        rule("judge").judge(CHAIN, made, 0)
    wide = Scores(FAR.argmax, FAR.logits, taps={FINAL: np.zeros((1, 5, 9), np.float32)})
    with pytest.raises(GraftlineError, match="for hidden states of 2, this host's have 9"):
        rule("judge").judge(CHAIN, wide, 0)


@pytest.mark.parametrize(
    ("name", "between"),
    [
        ("typical", {"epsilon": 0.005}),
        ("threshold", {"threshold": 5.0}),
        ("relaxed", {"tolerance": 7.0}),
        ("neighbours", {"k": V, "bound": 0.99}),
        ("clusters", {"size": 10, "gap": 2.0, "distance": 2.1}),
        ("judge", {"threshold": 0.5}),
    ],
)
def test_the_knob_buys_steps(
    prompts: list[list[int]], name: str, between: dict[str, object]
) -> None:
    app, steps = engine(), []
    for options in (STRICT[name], between, LOOSE[name]):
        results = app.generate(prompts[:4], recipe=policy(name, options), max_new_tokens=40)
        steps.append(sum(r.stats.steps for r in results))
    assert steps[0] > steps[1] >= steps[2]
