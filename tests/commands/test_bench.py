"""Grouping of questions, fairness of the turns, and the figures, with an engine made of paper."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from graftline.commands import comparison
from graftline.commands.cli import app
from graftline.commands.comparison import compare
from graftline.commands.figures import Comparison, report
from graftline.commands.questions import GROUPS, Question, groups, read_questions, select
from graftline.errors import RequestError

MT = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")


class PaperEngine:
    """`fast` takes half the time and a third of the steps; `wrong` leaves plain at token 2."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def generate(self, prompt: Any, *, recipe: str, **options: Any) -> Any:
        said = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        self.asked.append((recipe, said))
        tokens = [len(said), 1, 2, 3, 4, 5, 6]
        if recipe == "wrong" and "translate" in said:
            tokens[2] = 99
        decode = {"plain": 6.0, "fast": 3.0, "wrong": 12.0}[recipe] * (1 + ("rag" in said))
        stats = SimpleNamespace(
            seconds=decode + 1.0,
            time_to_first_token=1.0,
            steps=2 if recipe == "fast" else 6,
            lossless=recipe != "wrong",
            predicted=None if recipe == "wrong" else 6 / decode * 1.1,
            controller_share=0.01 if recipe == "fast" else 0.0,
        )
        return SimpleNamespace(tokens=tokens, text=f"answer to {said}", stats=stats)


class PaperTrack(PaperEngine):
    """One that decodes a pass at a time; every pass takes a second, `fast` brings three tokens."""

    def __init__(self, clock: list[float], log: list[tuple[str, int]]) -> None:
        super().__init__()
        self.clock, self.log = clock, log

    def sibling(self) -> PaperTrack:
        return PaperTrack(self.clock, self.log)

    def passes(self, prompt: Any, *, recipe: str, **options: Any) -> Any:
        return PaperPasses(self, recipe, self.generate(prompt, recipe=recipe))


class PaperPasses:
    def __init__(self, engine: PaperTrack, recipe: str, result: Any) -> None:
        self.engine, self.recipe, self.result, self.count = engine, recipe, result, 0

    def __next__(self) -> int:
        if self.count == 7:
            raise StopIteration
        self.engine.clock[0] += 10.0 if self.count == 0 and not self.engine.log else 1.0
        self.count += 3 if self.recipe == "fast" and self.count else 1
        self.engine.log.append((self.recipe, self.count))
        return self.count


QUESTIONS = [
    Question("1", "mt_bench", ("write", "again")),
    Question("2", "translation", ("translate",)),
    Question("3", "rag", ("rag",)),
]


def run(**options: Any) -> tuple[Comparison, PaperEngine]:
    engine = PaperEngine()
    found = compare(engine, QUESTIONS, ["fast", "wrong"], {"max_new_tokens": 7}, **options)
    engine.asked = engine.asked[3:]  # the first three warm up
    return found, engine


def test_spec_benchs_categories_become_its_six_groups(tmp_path: Path) -> None:
    rows = [{"question_id": i, "category": c, "turns": ["a", "b"]} for i, c in enumerate(MT)]
    rows += [{"question_id": 9, "category": c, "turns": ["a"]} for c in reversed(GROUPS[1:])]
    rows.append({"prompt": "mine"})
    file = tmp_path / "q.jsonl"
    file.write_text("\n".join(json.dumps(r) for r in rows) + "\n\n")
    questions = read_questions(file)
    assert groups(questions) == [*GROUPS, "prompts"]
    assert Counter(q.group for q in questions)["mt_bench"] == 8
    assert questions[0].turns == ("a", "b")
    assert questions[-1] == Question(str(len(rows)), "prompts", ("mine",))


def test_a_selection_spreads_over_every_category() -> None:
    questions = [Question(f"{c}{i}", "mt_bench", (c,)) for c in MT for i in range(5)]
    questions += [Question(str(i), "rag", ("x",)) for i in range(4)]
    chosen = select(questions, 10)
    assert Counter(q.group for q in chosen) == {"mt_bench": 10, "rag": 4}
    assert {q.turns[0] for q in chosen if q.group == "mt_bench"} == set(MT)
    assert select(questions, None) == questions
    with pytest.raises(RequestError, match="at least 1"):
        select(questions, 0)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "line 1: not JSON"),
        ("[1]", "line 1: needs 'turns'"),
        ('{"turns": []}', "line 1: needs 'turns'"),
        ('{"turns": [3]}', "line 1: needs 'turns'"),
        ('{"prompt": ""}', "line 1: needs 'turns'"),
        ("\n", "has no questions"),
    ],
)
def test_bad_questions_are_refused_by_line(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "q.jsonl").write_text(text)
    with pytest.raises(RequestError, match=told):
        read_questions(tmp_path / "q.jsonl")


def test_recipes_take_turns_and_none_is_always_first() -> None:
    _, engine = run()
    thirds = [engine.asked[i : i + 3] for i in range(0, 9, 3)]
    assert [{said for _, said in third} for third in thirds] == [{"write"}, {"translate"}, {"rag"}]
    assert all({name for name, _ in t} == {"plain", "fast", "wrong"} for t in thirds)


def test_no_recipe_is_always_first_or_always_follows_the_same() -> None:
    engine = PaperEngine()
    compare(engine, QUESTIONS, ["fast", "wrong"], {"max_new_tokens": 7}, repeat=6)
    turns = [[name for name, _ in engine.asked[i : i + 3]] for i in range(3, 3 + 3 * 18, 3)]
    assert all(sorted(turn) == ["fast", "plain", "wrong"] for turn in turns)
    assert {turn[0] for turn in turns} == {"plain", "fast", "wrong"}
    assert len({tuple(turn) for turn in turns}) > 3


def test_interleaved_all_decode_at_once_and_the_prompt_is_read_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, log = [0.0], list[tuple[str, int]]()
    monkeypatch.setattr(comparison, "perf_counter", lambda: clock[0])
    engine = PaperTrack(clock, log)
    found = compare(
        engine, QUESTIONS[:1], ["fast", "wrong"], {"max_new_tokens": 7}, interleaved=True, repeat=2
    )
    assert len(log) == 2 * (7 + 3 + 7)
    behind = {"plain": 0, "fast": 0, "wrong": 0}
    for name, count in log[:17]:  # always the one with the fewest tokens
        assert behind[name] == min(behind.values())
        behind[name] = count if count < 7 else 99
    assert log[:17] != log[17:]  # none always goes first
    assert found.row("fast").speedup == pytest.approx(3.0)
    assert found.row("wrong").speedup == pytest.approx(1.0)
    assert found.row("plain").tokens_per_second == pytest.approx(1.0)
    assert found.overall_speed("plain") == pytest.approx(7 / ((16.0 + 7.0) / 2))


def test_later_turns_carry_plains_own_answers() -> None:
    engine = PaperEngine()
    prompts: list[Any] = []
    real = engine.generate
    engine.generate = lambda prompt, **o: (prompts.append(prompt), real(prompt, **o))[1]  # type: ignore[method-assign]
    found = compare(engine, QUESTIONS[:1], ["fast"], {"max_new_tokens": 7}, turns=2)
    said = [m["content"] for m in prompts[-1]]
    assert said == ["write", "answer to write", "again"]
    assert found.row("fast").prompts == 2


def test_the_figures_are_those_of_the_published_json() -> None:
    found, _ = run()
    made = report(found, QUESTIONS)
    assert json.loads(json.dumps(made)) == made
    assert made.keys() == {"plain", "fast", "wrong"}
    assert made["fast"]["groups"].keys() == {"mt_bench", "translation", "rag"}
    assert made["fast"]["lossless"]
    assert not made["wrong"]["lossless"]
    assert made["plain"]["overall"] == {
        "tokens_per_second": pytest.approx(18 / 24), "speedup": 1.0,
        "median_speedup": 1.0, "mat": 1.0,
        "identical": True, "prompts": 3, "predicted": pytest.approx(1.1 * 18 / 24),
        "controller_share": 0.0,
    }  # fmt: skip
    fast = made["fast"]["overall"]
    assert fast["speedup"] == pytest.approx(2.0)
    assert fast["mat"] == pytest.approx(3.0)
    assert fast["predicted"] == pytest.approx(1.1 * fast["tokens_per_second"])
    assert fast["controller_share"] == pytest.approx(0.01)
    assert made["wrong"]["overall"]["predicted"] is None
    assert made["wrong"]["overall"]["speedup"] == pytest.approx(0.5)
    assert made["wrong"]["groups"]["rag"]["identical"]
    assert not made["wrong"]["groups"]["translation"]["identical"]
    assert not made["wrong"]["overall"]["identical"]
    assert found.agreeing("wrong") == 2
    assert found.overall_speed("plain") == pytest.approx(21 / 27)
    (where,) = found.differences
    assert (where.recipe, where.question, where.plain, where.other) == ("wrong", "2", 2, 99)
    assert where.common == (9, 1)


def test_repeats_give_medians_and_an_unstable_answer_is_not_identical() -> None:
    found, engine = run(repeat=3)
    assert len(engine.asked) == 27
    assert found.row("fast").speedup == pytest.approx(2.0)

    class Unsteady(PaperEngine):
        def generate(self, prompt: Any, *, recipe: str, **options: Any) -> Any:
            made = super().generate(prompt, recipe=recipe, **options)
            if recipe == "fast" and len(self.asked) > 5:
                made.tokens[3] = len(self.asked)
            return made

    found = compare(Unsteady(), QUESTIONS, ["fast"], {"max_new_tokens": 7}, repeat=2)
    assert not found.row("fast").identical


def test_interleaved_recipes_answer_as_one_by_one(tiny_bundle: Path, tmp_path: Path) -> None:
    asking = [json.dumps({"prompt": text}) for text in ("ab ab ab", "cd", "ab ab ab")]
    (tmp_path / "q.jsonl").write_text("\n".join(asking))
    asked = ["bench", str(tiny_bundle), "--prompts", str(tmp_path / "q.jsonl"), "--ignore-eos"]
    asked += ["--recipes", "suffix,jacobi", "--max-new-tokens", "24", "--interleaved"]
    out = tmp_path / "out.json"
    told = CliRunner().invoke(app, [*asked, "--json", str(out)])
    assert told.exit_code == 0, told.output
    found = json.loads(out.read_text())
    assert found["interleaved"]
    assert all(r["overall"]["identical"] for r in found["recipes"].values())
    assert found["recipes"]["suffix"]["overall"]["mat"] >= 1.0
    told = CliRunner().invoke(app, [*asked, "--step", "fused", "--recipes", "token-recycling"])
    assert told.exit_code == 2
    assert "leave out --interleaved or --step fused" in told.stderr


def test_acceptance_is_shown_next_to_the_bound(tiny_bundle: Path, tmp_path: Path) -> None:
    asking = [json.dumps({"category": group, "turns": ["ab ab ab"]}) for group in GROUPS]
    (tmp_path / "q.jsonl").write_text("\n".join(asking))
    asked = ["bench", str(tiny_bundle), "--prompts", str(tmp_path / "q.jsonl"), "--oracle"]
    asked += ["--recipes", "prompt-lookup,sjd", "--max-new-tokens", "16", "--ignore-eos"]
    told = CliRunner().invoke(app, asked)
    assert told.exit_code == 2
    assert "give a --temperature above 0" in told.stderr
    out = ["--json", str(tmp_path / "out.json")]
    told = CliRunner().invoke(app, [*asked, *out, "--temperature", "0.8", "--seed", "3"])
    assert told.exit_code == 0, told.output
    assert "acceptance at drafted nodes" in told.stdout
    found = json.loads((tmp_path / "out.json").read_text())["oracle"]
    assert found["sjd"]["of"] == "rejection"
    for name in ("prompt-lookup", "sjd"):
        means = found[name]
        assert 0 < means["nodes"] <= 64
        assert 0 <= means["rule"] <= means["bound"] + 1e-9 <= 1 + 1e-8
    assert found["prompt-lookup"]["bound"] <= found["prompt-lookup"]["best"]
