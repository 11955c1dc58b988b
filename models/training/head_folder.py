"""The folder of a trained head: its weights and config as published heads have them, and a card."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

from graftline.errors import GraftlineError
from graftline.files import fsync
from graftline.interrupts import uninterrupted
from graftline.models.training.student import Acceptance, Published
from graftline.models.training.tensor_file import Array, room

CARD = "README.md"
MARK = "<!-- graftline train"
"""What the card of a head that we trained ends with, and the run it came of."""


@dataclass(frozen=True)
class Story:
    """What a card says of a head. `run` names the training; `data` is in words; `found` is the
    held-out acceptance, None where nobody has looked yet."""

    run: str
    host: str
    command: str
    data: str
    seed: int
    steps: int
    ended: str
    minutes: float
    found: Acceptance | None


def check_out(out: Path, run: str) -> None:
    """Raise GraftlineError where `out` holds something else than a head of this very run."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise GraftlineError(f"{out} is not a folder; choose another -o")
    if not out.is_dir() or not any(out.iterdir()):
        return
    card = out / CARD
    text = card.read_text("utf-8", "replace") if card.is_file() else ""
    if f"{MARK} {run} -->" not in text:
        raise GraftlineError(
            f"{out} holds something else than a head of this command; choose another -o or empty it"
        )


def write_head(out: Path, head: Published, story: Story) -> int:
    """Write the folder whole or not at all, in place of an earlier head of the same run; returns
    the bytes of its weights. Raises GraftlineError on a full disk, and for weights beyond fp16."""
    from safetensors.numpy import save

    arrays = {name: _stored(value) for name, value in head.tensors.items()}
    bad = [name for name, value in arrays.items() if not np.isfinite(value).all()]
    if bad:
        raise GraftlineError(
            f"tensor '{bad[0]}' of the trained head is not finite in fp16; train again with a "
            "lower --learning-rate"
        )
    weights = save(arrays, {"format": "pt"})
    count = sum(value.size for value in arrays.values())
    files = {
        head.file: weights,
        head.config_file: (json.dumps(dict(head.config), indent=2) + "\n").encode(),
        CARD: card(head, story, count, len(weights), out.name).encode(),
    }
    _put(out, files)
    return len(weights)


def _stored(tensor: torch.Tensor) -> Array:
    """Numbers in fp16, ids and marks as they are."""
    narrow = tensor.detach().half() if tensor.is_floating_point() else tensor
    return narrow.numpy()


def _put(out: Path, files: Mapping[str, bytes]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    rough, aside = (out.with_name(f".{out.name}.{kind}-{os.getpid()}") for kind in ("tmp", "old"))
    with room(out), uninterrupted():
        try:
            rough.mkdir()
            for name, data in files.items():
                (rough / name).write_bytes(data)
                fsync(rough / name)
            if out.exists():
                os.rename(out, aside)
            os.rename(rough, out)
            fsync(out.parent)
        finally:
            if aside.exists() and not out.exists():
                os.rename(aside, out)
            shutil.rmtree(rough, ignore_errors=True)
            shutil.rmtree(aside, ignore_errors=True)


def card(head: Published, story: Story, count: int, size: int, name: str) -> str:
    """The model card."""
    return "\n".join([
        "---", "library_name: graftline", f"base_model: {story.host}",
        "tags: [speculative-decoding, draft-head]", "---", "",
        f"# {name}: {head.family} draft head for {story.host}", "",
        f"Trained by self-distillation with `graftline train`: {story.host} answered the prompts, "
        "and the head learned to foresee its answers. The host itself is unchanged.", "",
        "| | |", "|---|---|",
        f"| host | {story.host} |",
        f"| form | {head.family}, {count:,} parameters, {size / 1e6:.1f} MB in fp16 |",
        *(f"| {name} | {note} |" for name, note in head.notes.items()),
        f"| data | {story.data} |",
        f"| command | `{story.command}` |",
        f"| seed | {story.seed} |",
        f"| training | {story.steps} steps, {story.minutes:.1f} minutes in all, data included; "
        f"ended: {story.ended} |",
        f"| machine | {_machine()} |",
        f"| versions | {_versions()} |",
        "| licence | not stated by the tool: choose one that the host's and the prompts' licences "
        "allow |", "",
        *_table(story.found), "",
        f"Use: `graftline optimize {story.host} -o out.graft --head {name}`", "",
        f"{MARK} {story.run} -->", "",
    ])  # fmt: skip


def _table(found: Acceptance | None) -> Sequence[str]:
    if found is None:
        return ["Not yet measured on held-out texts."]
    rows = zip(found.shares, found.reached, strict=True)
    return [
        "Held-out acceptance: the share of drafts that are the host's best token, all shallower "
        "ones being right.", "",
        "| depth | acceptance | drafts |", "|---|---|---|",
        *(f"| {d} | {share:.3f} | {reached:,} |" for d, (share, reached) in enumerate(rows, 1)),
        "", f"Expected tokens a step with one chain: {found.tokens:.2f}.",
    ]  # fmt: skip


def _machine() -> str:
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors"


def _versions() -> str:
    names = ("graftline", "torch", "transformers", "onnxruntime")
    found = (f"{name} {metadata.version(name)}" for name in names)
    return ", ".join([f"Python {platform.python_version()}", *found])
