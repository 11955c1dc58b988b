"""The fused step on the trt session: the tokens of the host's steps, over the device stand-in."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from stand_in_device import StandInDevice
from toy_session import FLAT
from trt_pair import GRAFTED, lowered, plan_of, same

from graftline.errors import BackendError
from graftline.models.decoder import TinyDecoder
from graftline.recipe import recipe
from graftline.runtimes.drafters import make_drafter
from graftline.runtimes.engine import Engine
from graftline.runtimes.fused import Start, chain
from graftline.runtimes.ort.session import OrtSession
from graftline.runtimes.sampling import Sampling
from graftline.runtimes.trt.fused import TrtFusedStep
from graftline.runtimes.trt.session import TrtSession

PASSES = (
    "anchors | kv-cache | tree-mask | select-rows | reduce-logits | "
    "fuse-verify{sample=true} | fuse-draft | lower-tensorrt{dtype=fp32,capacity=%d}"
)
CAPACITY = 60
RECIPE = recipe("token-recycling")
PROMPTS = [[5, 9, 5, 9, 5, 9, 11], [1, 2, 3], [7] * 12, [4]]


def tree() -> Any:
    drafter: Any = make_drafter(RECIPE.drafter, RECIPE.options)
    return drafter.plan


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory) -> TrtSession:
    folder = tmp_path_factory.mktemp("fused")
    passes = PASSES % (CAPACITY + len(tree()))  # no slot to spare
    graph, facts, ports = lowered(TinyDecoder(), passes, folder / "trt")
    plan = plan_of(ports, rows=(4, len(tree())), batch=3)
    device = StandInDevice(graph, ports, plan.profiles, 1 << 24)
    session = TrtSession(device, plan, facts, ports, graph)
    assert session.capacity == CAPACITY
    return session


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> OrtSession:
    folder = tmp_path_factory.mktemp("host")
    graph = lowered(TinyDecoder(), f"{GRAFTED} | lower-ort", folder / "ort")
    return OrtSession(*graph, capacity=CAPACITY)


def engines(fused: TrtSession, host: OrtSession) -> tuple[Engine, Engine]:
    stepping = TrtFusedStep(fused)
    one = Engine(fused, None, {}, RECIPE, FLAT, fused=lambda: stepping, step="fused")
    return one, Engine(host, None, {}, recipe("plain"), FLAT)


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.9, "seed": 7}, {"temperature": 1.3, "min_p": 0.1, "seed": 3}],
    ids=["greedy", "sampled", "min-p"],
)
def test_the_tokens_are_the_hosts(fused: TrtSession, host: OrtSession, options: Any) -> None:
    """Alone, and four in a batch of three: one waits for the first that has finished."""
    one, other = engines(fused, host)
    wanted: Any = {"raw": True, "max_new_tokens": 24, **options}
    for prompt in PROMPTS:
        found = one.generate(prompt, **wanted)
        assert found.tokens == other.generate(prompt, **wanted).tokens
    batch = [engine.generate(PROMPTS, batch=3, **wanted) for engine in (one, other)]
    assert [r.tokens for r in batch[0]] == [r.tokens for r in batch[1]]


def test_a_step_drafts_what_the_one_before_has_learned(
    fused: TrtSession, host: OrtSession
) -> None:
    one, other = engines(fused, host)
    prompt = PROMPTS[0]
    wanted: Any = {"raw": True, "max_new_tokens": 30}
    one.generate(prompt, **wanted)  # fills the table with this very text
    device: Any = fused._device
    runs, launches = device.runs, device.launches
    found = one.generate(prompt, **wanted)
    assert found.stats.mat > 2, "the text it has seen is drafted"
    assert device.runs - runs == 1 + found.stats.steps, "one call for the prompt, one per step"
    assert device.launches - launches >= found.stats.steps - 1, "recorded once, then launched"
    assert found.tokens == other.generate(prompt, **wanted).tokens


def test_no_position_past_the_capacity_is_used(fused: TrtSession, host: OrtSession) -> None:
    one, other = engines(fused, host)
    prompt = list(range(1, 31))
    wanted: Any = {"raw": True, "max_new_tokens": 30}
    for _ in range(2):
        assert one.generate(prompt, **wanted).tokens == other.generate(prompt, **wanted).tokens
    assert int(fused.lengths[0]) <= fused.capacity


@pytest.mark.parametrize("recordable", [True, False])
def test_steps_of_the_host_and_fused_ones_take_turns(
    fused: TrtSession, host: OrtSession, recordable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Costs are measured by steps of the host, as chains; both kinds share a context."""
    monkeypatch.setattr(fused._device, "recordable", recordable)
    fused.reset(2)
    fused.score(np.zeros((2, 6), np.int64))  # nothing is recorded for one sequence now
    one, other = engines(fused, host)
    wanted: Any = {"raw": True, "max_new_tokens": 12}
    tokens = np.arange(6)[None]
    for _ in range(2):
        for session in (fused, host):
            session.reset(1)
            session.prefill([np.arange(20)])
        same([s.score(tokens).logits for s in (fused, host)])
        for session in (fused, host):
            session.commit([(0, 1)])
        same([s.score(tokens[:, :1]).logits for s in (fused, host)])
        found = one.generate(PROMPTS[0], **wanted).tokens
        assert found == other.generate(PROMPTS[0], **wanted).tokens


def test_a_sequence_that_is_not_asked_stays_and_room_bounds_a_step(
    fused: TrtSession, host: OrtSession
) -> None:
    one, _ = engines(fused, host)
    text = one.generate(PROMPTS[2], raw=True, max_new_tokens=30).tokens  # the table knows it now
    root, start = text[0], len(PROMPTS[2])
    step = TrtFusedStep(fused)
    fused.reset(2)
    step.reset(tree())
    fused.prefill([np.asarray(PROMPTS[2])] * 2)
    for row in range(2):
        step.seat(row, Start(root, 1, 0, Sampling()))
    assert step.step(0, 1) == text[1:2], "of one row, only what follows it"
    whole = step.step(1, 40)
    assert len(whole) > 1
    assert whole == text[1 : 1 + len(whole)]
    lengths = [start + 1, start + len(whole)]
    assert fused.lengths.tolist() == lengths
    found = step.step(0, 40)
    assert found == text[2 : 2 + len(found)]
    for _ in range(2):  # nobody fetches the answers of sequence 1 any more
        moved = fused.lengths.tolist()
        step.step(0, 40)
    assert fused.lengths[0] > moved[0]
    assert fused.lengths[1] == moved[1]


def test_what_was_not_built_is_refused(fused: TrtSession, tmp_path: Path) -> None:
    step = TrtFusedStep(fused)
    with pytest.raises(BackendError, match=r"a tree of 5 rows, and steps of 4, .* --engine rows=5"):
        step.reset(chain(5))
    step.reset(chain(4))
    wide: Any = chain(4)
    object.__setattr__(wide, "ranks", np.asarray([0, 0, 8, 0]))
    with pytest.raises(BackendError, match="candidate 8 of a token; this step keeps 8, counted"):
        step.reset(wide)
