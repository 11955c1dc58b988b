"""Why steps scored what they scored: the stories of an engine are what happened."""

from __future__ import annotations

from pathlib import Path

import pytest

from graftline.errors import RequestError
from graftline.inspection.timeline import drawn_tree, story_lines
from graftline.runtimes.control.choose import Offer, choose
from graftline.runtimes.control.costs import Costs
from graftline.runtimes.load import load
from graftline.runtimes.step_story import Considered, StepStory, considered
from tests.commands.calling import call, refused
from tests.inspection.browser import browser, opened

PROMPT = "ab ab ab ab ab ab ab"


def story(**given: object) -> StepStory:
    values: dict[str, object] = {
        "past": 7, "kind": "tree", "tokens": (1, 2, 3, 4), "parents": (-1, 0, 0, 2),
        "path": (0, 2), "fresh": (3, 9), "proposed": 6, "signal": 1, "milliseconds": 12.0,
        "expected": 1.5, "expected_milliseconds": 11.0, "considered": (),
    }  # fmt: skip
    return StepStory(**{**values, **given})  # type: ignore[arg-type]


def test_the_stories_are_what_happened(tiny_bundle: Path) -> None:
    engine = load(tiny_bundle, threads=1)
    stories = engine.explain()
    result = engine.generate(PROMPT, max_new_tokens=40, ignore_eos=True)
    assert not isinstance(result, list)
    assert len(stories) == result.stats.steps
    assert [t for one in stories for t in one.fresh] == result.tokens[1:]
    assert sum(len(one.tokens) - 1 for one in stories) == result.stats.drafted
    past = stories[0].past
    for one in stories:
        assert one.past == past, "what is committed before each step"
        past += len(one.fresh)
        assert [one.tokens[node] for node in one.path[1:]] == list(one.fresh[:-1])[: len(one.path)]
        assert one.milliseconds > 0
        assert one.expected is not None
        assert one.expected_milliseconds is not None
        assert one.expected >= 1
        assert (one.kind == "plain") == (len(one.tokens) == 1)
        assert one.why
    assert any(one.considered for one in stories), "copies were proposed"


def test_what_is_considered_is_what_the_choice_looks_at() -> None:
    table = {1: 10.0, 2: 11.0, 4: 14.0, 8: 30.0}
    costs = Costs(table, table)
    offer = Offer(0, [0.9, 0.8, 0.7, 0.2, 0.1, 0.1, 0.1])
    sizes = considered(offer, 1, costs.of)
    assert sizes[0] == Considered(1, 1.0, 10.0)
    assert [one.rows for one in sizes] == list(range(1, 9))
    assert sizes[3].tokens == pytest.approx(3.4)
    chosen = choose([offer], 1, costs.of, 1)
    best = max(sizes, key=lambda one: one.tokens / one.milliseconds)
    assert chosen.rows[0] == best.rows == 4
    whole = considered(Offer(0, [2.0], size=3, price=5.0, slower=2.0), 1, costs.of)
    assert whole[1] == Considered(4, 3.0, 2 * 14.0 + 5.0)
    assert considered(None, 1, costs.of) == ()


def test_why_is_said_in_words() -> None:
    sizes = (Considered(1, 1.0, 10.0), Considered(2, 1.8, 10.0), Considered(4, 2.0, 16.0))
    assert story(tokens=(1, 2), considered=sizes).why == (
        "2 rows promise 1.80 times plain, the most of up to 4"
    )
    assert "2 rows 1.80, less what must be sure" in story(considered=sizes).why
    assert story(tokens=(1,), considered=sizes).why.endswith("with 2 rows: not enough")
    assert story(proposed=1).why == "no proposal"
    assert "step costs are not known" in story(expected=None).why


def test_a_tree_is_drawn_on_a_line() -> None:
    def decode(ids: object) -> str:
        return "".join(f"t{i}" for i in ids)  # type: ignore[attr-defined]

    assert drawn_tree(story(), decode) == "'t1' ('t2', +'t3' 't4')"
    first, second = story_lines([story()], decode)
    assert "expected 1.50 in 11.0 ms, got 2 in 12.0 ms" in first
    assert second.strip().startswith("scored 't1' ('t2', +'t3' 't4'); ")


def test_run_explains_itself(tiny_bundle: Path, tmp_path: Path) -> None:
    page = tmp_path / "answer.html"
    ask = ("run", tiny_bundle, PROMPT, "--max-new-tokens", "24", "--ignore-eos")
    plain = call(*ask)
    done = call(*ask, "--explain", "--timeline", page)
    assert done.exit_code == 0, done.output
    assert done.stdout == plain.stdout, "the answer is the same"
    assert "step   1  past" in done.stderr
    assert f"wrote {page}" in done.stderr
    told = refused(*ask, "--explain", "--n", "2", "--temperature", "1")
    assert "leave out --n" in told
    with browser() as chromium:
        one = opened(chromium, page)
        assert one.page.locator(".answer button").count() > 3
        one.page.keyboard.press("ArrowRight")
        assert "Step 2 of" in one.page.locator("#step").inner_text()
        one.page.locator(".timeline rect").first.click()
        assert "Why:" in one.page.locator("#step").inner_text()
        assert one.told == []


def test_a_fused_step_has_nothing_to_tell(tiny_bundle: Path) -> None:
    engine = load(tiny_bundle, threads=1)
    engine.step = "fused"
    with pytest.raises(RequestError, match="use --step host"):
        engine.explain()
