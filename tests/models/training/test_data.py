"""Answers and hidden states on disk: each made once, damaged ones refused, a full disk survived."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from graftline.errors import CheckpointError, GraftlineError
from graftline.models.training.answers import (
    CHUNK,
    AnswerFile,
    Asked,
    Conversation,
    Reply,
    Sampling,
    Text,
    collect,
    plain_texts,
)
from graftline.models.training.clock import Clock
from graftline.models.training.frozen import FrozenHost, checkpoint_folder
from graftline.models.training.rows import Row, read_rows, write_rows
from graftline.models.training.run import _parted, train  # type: ignore[attr-defined]
from graftline.models.training.tensor_file import read_tensors, write_tensors
from tests.models.training.conftest import MakeJob
from tests.models.training.predictable import Known, conversations, write_host

SAMPLING = Sampling(seed=3)


def silent(line: str) -> None:
    """Nobody reads."""


def asked(
    path: Path, answerer: Any, count: int = 40, clock: Clock | None = None, until: float = 1.0
) -> list[Text]:
    clock = clock or Clock(path.with_name("clock.json"), None)
    file = AnswerFile.open(path)
    return collect(conversations(count), lambda: answerer, file, SAMPLING, clock, until, silent)


def test_every_prompt_is_answered_once(tmp_path: Path) -> None:
    known = Known()
    first = asked(tmp_path / "a.jsonl", known)
    assert len(first) == len(known.asked) == 40
    assert asked(tmp_path / "a.jsonl", None) == first, "the file has them all"
    more = Known()
    assert asked(tmp_path / "a.jsonl", more, count=44)[:40] == first
    assert len(more.asked) == 4


def test_three_in_ten_are_sampled_by_their_content(tmp_path: Path) -> None:
    known = Known()
    texts = asked(tmp_path / "a.jsonl", known, count=400)
    sampled = [one for one in known.asked if one.temperature]
    assert {one.temperature for one in known.asked} == {0.0, 0.8}
    assert 90 < len(sampled) < 150, "3 in 10, within four standard deviations"
    assert len({one.seed for one in sampled}) == len(sampled)
    assert [not t.greedy for t in texts] == [bool(a.temperature) for a in known.asked]


class Interrupted(Known):
    """Ctrl-C while the second chunk is answered."""

    def __call__(self, asked: Sequence[Asked]) -> Sequence[Reply | None]:
        if self.asked:
            raise KeyboardInterrupt
        return super().__call__(asked)


def test_interrupted_answers_go_on_in_the_same_batches(tmp_path: Path) -> None:
    whole = asked(tmp_path / "whole.jsonl", Known(), count=80)
    path = tmp_path / "parts.jsonl"
    with pytest.raises(KeyboardInterrupt):
        asked(path, Interrupted(), count=80)
    rest = Known()
    assert asked(path, rest, count=80) == whole
    assert len(rest.asked) == 80 - CHUNK
    assert path.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_turns_follow_one_another_and_a_full_one_ends_its_conversation(tmp_path: Path) -> None:
    class Small(Known):
        def __call__(self, asked: Sequence[Asked]) -> Sequence[Reply | None]:
            said = super().__call__(asked)
            return [None if len(a.messages) > 4 else r for a, r in zip(asked, said, strict=True)]

    small, told = Small(), list[str]()
    ones = [Conversation(("a", "b", "c", "d"), "be brief"), Conversation(("x",))]
    file = AnswerFile.open(tmp_path / "a.jsonl")
    clock = Clock(tmp_path / "clock.json", None)
    texts = collect(ones, lambda: small, file, SAMPLING, clock, 1.0, told.append)
    roles = [[role for role, _ in one.messages] for one in small.asked]
    assert roles == [
        ["system", "user"], ["user"], ["system", "user", "assistant", "user"],
        ["system", "user", "assistant", "user", "assistant", "user"],
    ]  # fmt: skip
    assert small.asked[2].messages[2] == ("assistant", f"answer {ord('a')}")
    assert len(texts) == 3
    assert told[-1] == "left out: 1 prompts that leave no room for an answer"


def test_when_the_time_is_over_what_is_known_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    over = Clock(tmp_path / "clock.json", 0.001)
    known = Known()
    assert len(asked(path, known, count=100, clock=over, until=0.5)) == CHUNK, "one chunk at least"
    assert len(known.asked) == CHUNK
    asked(path, Known(), count=100)
    assert len(asked(path, None, count=100, clock=over, until=0.5)) == 100


def test_a_line_that_was_interrupted_is_dropped_and_a_damaged_one_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    texts = asked(path, Known())
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    again = Known()
    assert asked(path, again) == texts
    assert len(again.asked) == 1
    assert asked(path, None) == texts
    path.write_bytes(whole[:300] + bytes([whole[300] ^ 1]) + whole[301:])
    with pytest.raises(CheckpointError, match=r"a\.jsonl: damaged \(line \d+ is not what was"):
        asked(path, Known())


def full(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """A disk that is full from the so-many-th file on."""
    real, count = os.fsync, [after]

    def fsync(handle: int) -> None:
        count[0] -= 1
        if count[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize("after", [0, 1, 4, 6, 8, 12])
def test_a_full_disk_is_one_line_and_loses_nothing(
    job: MakeJob, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    whole = job(out="whole", steps=6)
    train(replace(whole, data=replace(whole.data, engine="other")), silent)
    parts = job(out="parts", steps=6, bf16=False)
    with monkeypatch.context() as patch:
        full(patch, after)
        with pytest.raises(GraftlineError, match="the disk is full; what was finished") as caught:
            train(parts, silent)
        assert "\n" not in str(caught.value)
    assert not [p for p in parts.out.parent.rglob(".*")], "no half-written file"
    train(parts, silent)
    names = ("medusa_lm_head.safetensors", "config.json")
    for name in names:
        assert (parts.out / name).read_bytes() == (whole.out / name).read_bytes()


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_too_little_room_is_said_before_anything_is_written(
    host_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, told = FrozenHost(host_folder), list[str]()
    clock = Clock(tmp_path / "clock.json", None)
    texts = [Text((1, 2, 3, 4), 2, 0)] * 100
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(100, 90, 10))
    with pytest.raises(GraftlineError, match=r"hidden states need 0\.1 MB in .* has 0\.0 MB"):
        write_rows(tmp_path / "states", texts, host, clock, 1.0, told.append)
    assert told == [f"hidden states of 400 positions: 0.1 MB in {tmp_path / 'states'}"]
    assert not list((tmp_path / "states").iterdir())


def test_states_are_what_the_model_computes(host_folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    ids = [5, 17, 0, 99, 3, 4, 5]
    states = FrozenHost(host_folder).states(ids)
    model = AutoModelForCausalLM.from_pretrained(host_folder)
    with torch.no_grad():
        out = model(torch.tensor([ids]), output_hidden_states=True)
    logs = out.logits[0].log_softmax(-1)
    assert (states.best[:, 0] == out.logits[0].argmax(-1).numpy()).all()
    # fp16 has 11 bits
    np.testing.assert_allclose(states.taps, out.hidden_states[-1][0], rtol=2**-10, atol=1e-6)
    wanted = logs.gather(-1, torch.from_numpy(states.best).long())
    np.testing.assert_allclose(states.scores, wanted, rtol=2**-10, atol=1e-4)
    assert states.best.shape == (7, 32)


def test_rows_are_the_texts_and_their_states_and_read_once(
    host_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, clock = FrozenHost(host_folder), Clock(tmp_path / "clock.json", None)
    texts = [Text(tuple(range(n, n + 5 + n % 3)), 2, n, n % 2 == 0) for n in range(70)]
    paths = write_rows(tmp_path, texts, host, clock, 1.0, silent)
    assert len(paths) == 3
    rows = read_rows(paths)
    assert [(tuple(r.ids.tolist()), r.start, r.group, r.greedy) for r in rows] == [
        (t.ids, t.start, t.group, t.greedy) for t in texts
    ]
    np.testing.assert_array_equal(rows[41].states.taps, host.states(texts[41].ids).taps)
    monkeypatch.setattr(host, "states", None)
    assert write_rows(tmp_path, texts, host, clock, 1.0, silent) == paths
    data = bytearray(paths[1].read_bytes())
    data[-1] ^= 1
    paths[1].write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match="not those that were written"):
        read_rows(paths)
    paths[1].unlink()
    with pytest.raises(CheckpointError, match="it is missing"):
        read_rows(paths)


def test_tensors_of_every_type_come_back(tmp_path: Path) -> None:
    given = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.float32(3).reshape(()),
        "c": np.arange(3, dtype=np.int64), "d": np.zeros((0, 4), np.float16),
        "e": np.asarray([7], np.uint8), "f": np.asarray([[1]], np.int32),
    }  # fmt: skip
    write_tensors(tmp_path / "t.safetensors", given, {"words": "é"})
    found, notes = read_tensors(tmp_path / "t.safetensors")
    assert notes == {"words": "é"}
    for name, value in given.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_array_equal(found[name], value)
        assert found[name].shape == value.shape
    (tmp_path / "t.safetensors").write_bytes(b"\x00" * 40)
    with pytest.raises(CheckpointError, match=r"t\.safetensors: damaged"):
        read_tensors(tmp_path / "t.safetensors")


def test_a_host_of_bf16_reads_as_its_numbers_say(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = write_host(tmp_path / "bf16")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    host = FrozenHost(folder)
    assert host.lm_head.dtype == torch.float32
    with torch.no_grad():
        logits = model.float()(torch.tensor([[3, 4, 5]])).logits[0]
    assert (host.states([3, 4, 5]).best[:, 0] == logits.argmax(-1).numpy()).all()


@pytest.mark.parametrize("name", ["lm_head", "model.norm", "model.embed_tokens"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_host_whose_numbers_are_not_finite_is_refused(
    tmp_path: Path, name: str, bad: float
) -> None:
    from safetensors.torch import load_file, save_file

    folder = write_host(tmp_path / "host")
    tensors = load_file(folder / "model.safetensors")
    tensor = tensors[f"{name}.weight"]
    tensor.view(-1)[4 * 32 + 1 if tensor.ndim == 2 else 1] = bad
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"not finite .* over a text of 3 tokens"):
        FrozenHost(folder).states([3, 4, 5])


def test_hosts_that_cannot_be_read_are_refused_in_a_line(tmp_path: Path) -> None:
    folder = write_host(tmp_path / "large")
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.model.norm.weight.fill_(1e6)
    model.save_pretrained(folder)
    with pytest.raises(CheckpointError, match="do not fit fp16"):
        FrozenHost(folder).states([1, 2, 3])
    (tmp_path / "graph.onnx").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"graph\.onnx: an exported graph"):
        checkpoint_folder(tmp_path / "graph.onnx", silent)


def test_logits_that_lm_head_does_not_give_are_refused(
    host_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = FrozenHost(host_folder)
    host.lm_head = host.lm_head.roll(1, 0)
    with pytest.raises(CheckpointError, match="are not those of its lm_head"):
        host.states([1, 2, 3])


def test_the_clock_goes_on_where_it_stopped(tmp_path: Path) -> None:
    path = tmp_path / "clock.json"
    clock = Clock(path, 60.0, before=40.0)
    clock.keep()
    again = Clock.open(path, 60.0)
    assert 40.0 <= again.spent < 41.0
    assert again.past(0.6)
    assert not again.past(0.9)
    path.write_text("{}")
    with pytest.raises(CheckpointError, match=r"clock\.json: damaged"):
        Clock.open(path, 60.0)


def test_further_answers_are_sampled_and_held_out_with_the_first(tmp_path: Path) -> None:
    ones = [replace(one, take=take) for take in range(3) for one in conversations(20)]
    known, file = Known(), AnswerFile.open(tmp_path / "a.jsonl")
    clock = Clock(tmp_path / "clock.json", None)
    texts = collect(ones, lambda: known, file, SAMPLING, clock, 1.0, silent)
    assert len(texts) == len(known.asked) == 60
    assert all(one.temperature for one in known.asked[20:])
    assert len({one.seed for one in known.asked}) == 60
    assert [t.group for t in texts[:20]] == [t.group for t in texts[40:]]
    states: Any = None
    rows = [Row(np.asarray(t.ids), states, t.start, t.group, t.greedy) for t in texts]
    for seed in range(8):
        learned, held_out = _parted(rows, seed)
        assert not {row.group for row in learned} & {row.group for row in held_out}
        assert len(held_out) == 1, "5 in 100 of the groups, the greedy answer alone"
        assert held_out[0].greedy
        assert len(learned) == 57
    with pytest.raises(GraftlineError, match="all texts answer one prompt"):
        _parted([row for row in rows if row.group == rows[0].group], 0)


def test_plain_texts_are_cut_into_pieces() -> None:
    assert plain_texts([range(13), range(2), range(3)], 5) == [
        Text((0, 1, 2, 3, 4), 1, 0), Text((5, 6, 7, 8, 9), 1, 1), Text((10, 11, 12), 1, 2),
        Text((0, 1, 2), 1, 4),
    ]  # fmt: skip
