"""When a draft stops: the rules by hand, the trained ones on data whose best answer is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from toy_session import ToySession

from graftline.errors import GraftlineError
from graftline.recipe import recipe
from graftline.runtimes.control.costs import Costs
from graftline.runtimes.draft_engine import OwnCaches
from graftline.runtimes.drafter import is_paid
from graftline.runtimes.drafters import make_drafter
from graftline.runtimes.engine import Engine
from graftline.runtimes.lengths import LENGTHS, Length, make_length, network
from graftline.runtimes.lengths.acceptance_head import AcceptanceHead, train_acceptance_head
from graftline.runtimes.lengths.length_class import CLASSES, LengthClass, train_length_class
from graftline.runtimes.lengths.network import Network, sigmoid, train
from graftline.runtimes.lengths.recorded import Draft, Recorded
from graftline.runtimes.lengths.running import Running
from graftline.runtimes.resources import Resources
from graftline.runtimes.result import Result
from graftline.runtimes.study.rehearsal import Rehearsal
from graftline.runtimes.study.tuning import expected_length
from graftline.tree import Doubles


def drafted(length: Length, steps: Sequence[tuple[float, float]]) -> int:
    """How many tokens the policy drafts when the distributions have these confidences, entropies.
    """
    for depth, (confidence, entropy) in enumerate(steps):
        if not length.go_on(depth, confidence, entropy):
            return depth
    return len(steps)


def sure(confidence: float) -> tuple[float, float]:
    return confidence, -4.0 * float(np.log(confidence))


def test_thresholds_stop_before_the_unsure_token() -> None:
    steps = [(0.9, 0.2), (0.6, 1.0), (0.4, 2.5), (0.99, 0.0)]
    assert drafted(make_length("confidence"), steps) == 2
    assert drafted(make_length("confidence{threshold=0.95}"), steps) == 0
    assert drafted(make_length("confidence{threshold=0}"), steps) == 4
    assert drafted(make_length("entropy{threshold=0.5}"), steps) == 1
    assert drafted(make_length("entropy{threshold=1}"), steps) == 2


def test_running_gives_two_more_after_a_whole_draft_and_one_less_after_another() -> None:
    length = make_length("running{first=3,most=6}")
    sizes: list[int] = []
    for accepted in (3, 5, 6, 0, 4, 4):
        offered = drafted(length, [sure(0.5)] * 20)
        sizes.append(offered)
        length.observe(accepted, offered)
    assert sizes == [3, 5, 6, 6, 5, 4]
    for _ in range(9):
        length.observe(0, 4)
    assert drafted(length, [sure(0.9)] * 20) == 1
    assert drafted(length.fork(), [sure(0.9)] * 20) == 3  # another sequence starts afresh


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("confidance", "did you mean 'confidence'"),
        ("confidence{treshold=0.4}", "did you mean 'threshold'"),
        ("confidence{threshold=high}", "threshold=high is not a number"),
        ("confidence{threshold=1.5}", "1.5 is not a probability"),
        ("confidence{threshold=nan}", "nan is not a probability"),
        ("entropy{threshold=-1}", "can never be met"),
        ("entropy{threshold=nan}", "can never be met"),
        ("running{first=2.5}", "first=2.5 is not a whole number"),
        ("running{first=9,most=4}", "1 <= least <= first <= most"),
        ("specdec++{threshold=1}", "not a probability of rejection"),
        ("confidence{", "cannot be read"),
        ("specdec++", "graftline tune"),
        ("speckv", "graftline tune"),
    ],
)
def test_bad_policies_are_refused_in_one_line(text: str, told: str) -> None:
    with pytest.raises(GraftlineError) as error:
        make_length(text)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def recorded_drafts(count: int, seed: int, length: int = 8) -> list[Draft]:
    """Drafts whose tokens are accepted with the probability that is their confidence; a draft is
    either of a sure kind or of an unsure one."""
    rng = np.random.default_rng(seed)
    drafts: list[Draft] = []
    for _ in range(count):
        low, high = (0.85, 0.99) if rng.random() < 0.5 else (0.05, 0.4)
        steps = tuple(sure(float(rng.uniform(low, high))) for _ in range(length))
        hits = [rng.random() < confidence for confidence, _ in steps]
        accepted = hits.index(False) if False in hits else length
        drafts.append(Draft(steps, accepted))
    return drafts


def test_gradients_are_those_of_the_loss() -> None:
    rng = np.random.default_rng(1)
    features, truth = rng.normal(size=(40, 3)), rng.integers(0, 2, (40, 1)).astype(float)

    def loss(weights: Sequence[Doubles]) -> float:
        out = network._forward(tuple(weights), features)[-1]
        return float(np.mean(np.logaddexp(0.0, out) - truth * out))

    def slope(outputs: Doubles) -> Doubles:
        return (sigmoid(outputs) - truth) / len(truth)

    shapes = ((3, 5), (5,), (5, 5), (5,), (5, 1), (1,))
    weights = [rng.normal(size=shape) for shape in shapes]
    layers = network._forward(tuple(weights), features)
    found = network._backward(weights, layers, slope(layers[-1]))
    for weight, gradient in zip(weights, found, strict=True):
        for at in np.ndindex(weight.shape):
            before = weight[at]
            weight[at] = before + 1e-6
            above = loss(weights)
            weight[at] = before - 1e-6
            below = loss(weights)
            weight[at] = before
            assert gradient[at] == pytest.approx((above - below) / 2e-6, abs=1e-7)
    trained = train(features, 1, slope, width=5, steps=300)
    assert np.mean((trained(features) > 0) == (truth > 0)) > 0.9


def test_the_acceptance_head_drafts_on_while_a_rejection_is_unlikely() -> None:
    head = train_acceptance_head(recorded_drafts(300, seed=0))
    tuned = {"lengths": {"specdec++": head.to_json()}}
    length = make_length("specdec++", tuned)
    certain, unsure = [sure(0.98)] * 8, [sure(0.1)] * 8
    assert drafted(length, certain) > drafted(length, unsure)
    assert drafted(length, unsure) == 0
    assert drafted(length, certain) == drafted(length, certain)  # a new draft begins at depth 0
    mixed = drafted(length, [*certain[:2], *unsure])
    assert mixed == 2
    lengths = [drafted(make_length(f"specdec++{{threshold={h}}}", tuned), certain) for h in _H]
    assert lengths == sorted(lengths)
    assert lengths[0] < lengths[-1]


_H = (0.05, 0.3, 0.6, 0.95)


def test_the_acceptance_head_multiplies_the_chances_of_the_draft() -> None:
    head = AcceptanceHead(threshold=0.5)
    # p = sigmoid(outputs) = 0.8 for everything: 0.8^3 = 0.512, 0.8^4 = 0.41
    flat = [np.zeros(s) for s in ((3, 2), (2,), (2, 2), (2,), (2, 1))]
    head.network = Network(
        np.zeros(3), np.ones(3), (*flat, np.asarray([np.log(4.0)]))
    )
    assert drafted(head, [(0.5, 1.0)] * 9) == 3
    assert drafted(head.fork(), [(0.5, 1.0)] * 9) == 3


def test_speckv_learns_long_drafts_where_they_pay_and_none_where_they_do_not() -> None:
    def cost(tokens: int) -> float:
        return 10.0 + 2.0 * tokens

    picker = train_length_class(recorded_drafts(300, seed=0), cost)
    length = make_length("speckv", {"lengths": {"speckv": picker.to_json()}})
    assert drafted(length, [sure(0.97)] * 20) >= 6
    assert drafted(length, [sure(0.08)] * 20) == 0
    assert drafted(length.fork(), [sure(0.97)] * 20) in CLASSES
    halves = (recorded_drafts(300, seed=1), recorded_drafts(300, seed=2))
    fixed, chosen = expected_length(halves, cost)
    assert chosen > 1.08 * fixed
    dear = train_length_class(recorded_drafts(300, seed=0), lambda n: 10.0 + 30.0 * n)
    assert drafted(_trained(dear), [sure(0.97)] * 20) == 0


def _trained(picker: Network) -> LengthClass:
    length = LengthClass()
    length.network = picker
    return length


def test_training_is_repeatable_and_stored_networks_are_the_same() -> None:
    drafts = recorded_drafts(50, seed=3)
    first, second = train_acceptance_head(drafts), train_acceptance_head(drafts)
    assert first.to_json() == second.to_json()
    row = np.asarray([[0.4, 1.0, 2.0]])
    assert Network.from_json(first.to_json(), 3, 1)(row) == first(row)
    with pytest.raises(GraftlineError, match="run graftline tune again"):
        Network.from_json(first.to_json(), 2, 1)
    with pytest.raises(GraftlineError, match="run graftline tune again"):
        Network.from_json({"mean": [0.0]}, 3, 1)


def test_nothing_is_trained_from_nothing() -> None:
    with pytest.raises(GraftlineError, match="nothing to tell apart"):
        train_acceptance_head([Draft((sure(0.5),), 1)] * 5)
    with pytest.raises(GraftlineError, match="no drafts were recorded"):
        train_length_class([], float)


def test_recorded_drafts_are_what_was_offered_and_the_policys_own_decisions_stand() -> None:
    recorded = Recorded(Running(first=2, most=4))
    other = recorded.fork()
    assert drafted(recorded, [sure(0.9), sure(0.8), sure(0.7)]) == 2
    recorded.observe(1, 2)
    assert drafted(recorded, [sure(0.6), sure(0.5)]) == 1
    recorded.observe(1, 1)
    assert drafted(other, [sure(0.3)]) == 1
    other.observe(0, 1)
    assert list(recorded.drafts) == [
        Draft((sure(0.9), sure(0.8)), 1),
        Draft((sure(0.6),), 1),
        Draft((sure(0.3),), 0),
    ]


def test_a_rehearsal_trains_the_lengths_and_drafting_by_them_changes_no_token() -> None:
    costs = Costs({1: 10.0, 32: 13.0}, {})
    resources = Resources(draft=lambda: OwnCaches(ToySession(odd=4), 0.5), vocabulary=40)
    rng = np.random.default_rng(2)
    prompts = [rng.integers(1, 40, 10) for _ in range(6)]
    rehearsal = Rehearsal(ToySession(), costs, resources, prompts, 60)
    found = rehearsal.tune(recipe("draft-model"), lambda line: None)
    assert found.steps > 30
    assert found.after > 90
    assert found.lengths.keys() == {"specdec++", "speckv"}
    equipped = replace(resources, tuned={"lengths": found.lengths}, ends=frozenset({0}))
    steps: dict[str, int] = {}
    for name in ("plain", "specdec++", "speckv"):
        engine = Engine(
            ToySession(), None, {"eos_token_id": 0}, recipe(name), costs, resources=equipped
        )
        alone = [engine.generate(p, max_new_tokens=50, ignore_eos=True) for p in prompts[:3]]
        together = engine.generate(prompts[:3], max_new_tokens=50, ignore_eos=True)
        assert isinstance(together, list)
        tokens = [one.tokens for one in alone if isinstance(one, Result)]
        assert [one.tokens for one in together] == tokens
        steps[name] = sum(one.stats.steps for one in together)
        if name == "plain":
            plain = tokens
        assert tokens == plain
    assert steps["specdec++"] < 0.8 * steps["plain"]
    assert steps["speckv"] < 0.8 * steps["plain"]


def test_every_policy_is_in_the_table_by_its_published_name() -> None:
    assert set(LENGTHS) == {"confidence", "entropy", "running", "specdec++", "speckv"}


def test_a_draft_that_a_policy_may_end_promises_less() -> None:
    resources = Resources(draft=lambda: OwnCaches(ToySession(), 0.5, 0.9), vocabulary=40)
    free = make_drafter("draft-model", {"rows": 6}, resources)
    ended = make_drafter("draft-model", {"rows": 6, "length": "confidence"}, resources)
    assert is_paid(free)
    assert is_paid(ended)
    assert free.hope(1) == pytest.approx([0.9**row for row in range(6)])
    assert ended.hope(1) == pytest.approx([(0.9 * 0.65) ** row for row in range(6)])
