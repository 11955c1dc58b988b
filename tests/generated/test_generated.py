"""Random decoders: every one is served as ONNX Runtime serves its file, or refused in one line."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.generated import fuzz
from tests.generated.decoder import generate
from tests.generated.draw import ODD, draw, settle
from tests.generated.dying import DIES, dies_at_three
from tests.generated.fuzz import Row, choose, report
from tests.generated.named import NAMED
from tests.generated.outcome import Choice, Outcome, of, of_seed
from tests.generated.reference import Reference, prompts
from tests.generated.settings import Layer, Settings

SEEDS = (
    640, 641, 642, 643, 644, 646, 647, 649, 650, 651, 655, 664, 667, 671, 673, 675, 682, 685, 687,
    693, 699, 700, 703, 704, 725, 726, 731, 735, 759, 766, 781, 786, 805, 809, 811, 818, 823, 827,
    828, 860,
)  # fmt: skip
"""Chosen of 240 for their features: `python -m tests.generated.fuzz --choose 40`."""
EQUAL_AT_LEAST = len(SEEDS) // 2


@pytest.fixture(scope="module")
def outcomes() -> dict[int, Outcome]:
    """Filled by the tests of single seeds."""
    return {}


@pytest.mark.parametrize("seed", SEEDS)
def test_a_seed_is_equal_or_refused(
    seed: int, tmp_path: Path, outcomes: dict[int, Outcome]
) -> None:
    outcome = outcomes[seed] = of_seed(seed, tmp_path)
    assert outcome.kind in ("equal", "refused"), f"{outcome.line}; make fuzz SEED={seed} N=1"
    assert "\n" not in outcome.line
    # what a backend cannot open, graftline wrote wrongly
    assert not outcome.line.startswith("BackendError"), outcome.line


def test_half_of_them_are_served(outcomes: dict[int, Outcome]) -> None:
    if len(outcomes) < len(SEEDS):
        pytest.skip("counts the outcomes of all seeds, and not all were run")
    served = sum(outcome.kind == "equal" for outcome in outcomes.values())
    assert served >= EQUAL_AT_LEAST, Counter(o.kind for o in outcomes.values())


def test_an_interrupted_run_says_how_far_it_came(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is known is printed; nobody takes it for a run that found no fault."""

    def interrupted(seeds: Sequence[int], workers: int) -> Iterator[Row]:
        yield Row(3, "equal", "", ["odd=none"])
        raise KeyboardInterrupt

    monkeypatch.setattr(fuzz, "run", interrupted)
    monkeypatch.setattr(sys, "argv", ["fuzz", "--count", "5", "--seed", "3"])
    assert fuzz.main() == 130
    told = capsys.readouterr()
    assert "1 of 5 seeds: 1 equal" in told.out
    assert told.err.endswith("interrupted after 1 of 5 seeds\n")


def test_every_feature_is_drawn() -> None:
    """What the generator can write, some seed writes."""
    drawn = Counter(f for seed in range(1500) for f in draw(seed).features)
    wanted = [f"odd={kind}" for kind in ODD] + [
        f"sees={kind}" for kind in ("full", "window", "chunk", "sinks", "prefix", "dilated")
    ]
    wanted += [f"opset={n}" for n in (18, 19, 20, 22, 23, 24)]
    wanted += ["slopes=clipped", "buckets=logarithmic", "rotary=interleaved", "attention=gqa",
               "attention=op3", "mask_from=input", "padding=bool", "cached=True", "half=True",
               "norm_spelled=skip_default", "place=post", "parallel=True", "tied=True"]  # fmt: skip
    assert [f for f in wanted if not drawn[f]] == []


def test_every_oddity_is_a_named_host() -> None:
    named = {kind for host in NAMED.values() for kind in host.settings.odd}
    assert sorted(set(ODD) - named) == []


@pytest.mark.parametrize("layer", [
    Layer("window", 9), Layer("chunk", 7), Layer("sinks", 6, 2), Layer("dilated", 3),
    Layer("prefix", 11),
])  # fmt: skip
@pytest.mark.parametrize("source", ["range", "positions", "buffer"])
def test_masks_mean_what_they_are_called(layer: Layer, source: str, tmp_path: Path) -> None:
    """The last row's logits change with a token exactly where the mask says it is seen."""
    from tests.generated.masks import seen_by

    s = Settings(layers=(layer,), mask_from=source)
    reference = Reference.write(generate(s), tmp_path / "host.onnx")
    ids = prompts(s, 0)[0][:24]
    plain = reference.logits(ids[None])[0]
    row = len(ids) - 1
    for key in range(row):
        changed = ids.copy()
        changed[key] = (changed[key] + 3) % s.vocabulary
        moved = np.abs(reference.logits(changed[None])[0, row] - plain[row]).max() > 1e-6
        assert moved == seen_by(layer, np.asarray(row), np.asarray(key)), key


def test_the_comparison_sees_a_wrong_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A window that is one position wider than in the file compared with is a silent fault."""
    from tests.generated import outcome as room

    wrong = Settings(layers=(Layer("window", 12), Layer("window", 12)))
    right = Settings(layers=(Layer("window", 13), Layer("window", 13)))
    real = room.Reference.write

    def swapped(host: object, file: Path) -> Reference:
        real(generate(wrong), file)
        return real(generate(right), file.with_name("right.onnx"))

    monkeypatch.setattr(room.Reference, "write", swapped)
    found = of(right, Choice(), tmp_path)
    assert found.kind == "silent", found.line


def test_the_report_names_what_failed() -> None:
    rows = [Row(3, "equal", "", ["sees=full"]), Row(4, "silent", "token 2 is 5", ["sees=chunk"])]
    text = report(rows, 3)
    assert "make fuzz SEED=4 N=1" in text
    assert "2 of 3 seeds: 1 equal, 0 refused, 1 silent, 0 crash" in text
    assert text.index("sees=chunk") < text.index("sees=full")


def test_chosen_seeds_have_all_features_and_no_fault() -> None:
    rows = [
        Row(0, "silent", "", ["a", "b", "c"]), Row(1, "refused", "", ["a"]),
        Row(2, "equal", "", ["a", "b"]), Row(3, "equal", "", ["b"]), Row(4, "refused", "", ["c"]),
    ]  # fmt: skip
    assert choose(rows, 2) == [2, 4]
    assert choose(rows, 4) == [1, 2, 3, 4]


def test_a_process_that_dies_is_a_crash_of_its_seed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The seeds in flight beside it are run again, each alone, and those left in a new pool."""
    monkeypatch.setattr(fuzz, "one", dies_at_three)
    rows = sorted(fuzz.run(range(7), workers=2), key=lambda row: row.seed)
    assert [row.seed for row in rows] == list(range(7))
    assert [row.kind for row in rows] == ["crash" if s == DIES else "equal" for s in range(7)]
    assert rows[DIES].line == "the process died"
    assert "crash at seed 3: the process died\n    make fuzz SEED=3 N=1" in report(rows, 7)


@pytest.mark.parametrize("odd", ["strict", "softmax_heads"])
@pytest.mark.parametrize("half", [False, True])
def test_hosts_that_hide_everything_somewhere_have_finite_logits(
    odd: str, half: bool, tmp_path: Path
) -> None:
    """Two masks of the lowest number add up to -inf, and a softmax over nothing else is NaN."""
    settings = settle(
        Settings(
            layers=(Layer(),), odd=(odd,), half=half, mask_input="float32", mask_spelled="bias"
        )
    )
    ids = np.arange(24)[None] % settings.vocabulary
    assert Reference.write(generate(settings), tmp_path / "host.onnx").logits(ids).shape[1] == 24
