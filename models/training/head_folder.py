"""The folder of a trained head: its weights and config as published heads have them, and a card."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from graftline.errors import GraftlineError
from graftline.models.training.folder import CARD, machine, mark, put, versions
from graftline.models.training.student import Acceptance, Published
from graftline.models.training.tensor_file import Array


@dataclass(frozen=True)
class Story:
    """What a card says of a head. `run` names the training; `data` is in words; `found` is the
    held-out acceptance, None where nobody has looked yet; `crew` what computed, besides one process
    on the CPU."""

    run: str
    host: str
    command: str
    data: str
    seed: int
    steps: int
    ended: str
    minutes: float
    found: Acceptance | None
    crew: str = ""


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
    put(out, files)
    return len(weights)


def _stored(tensor: torch.Tensor) -> Array:
    """Numbers in fp16, ids and marks as they are."""
    narrow = tensor.detach().half() if tensor.is_floating_point() else tensor.detach()
    return narrow.cpu().numpy()


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
        f"| machine | {machine()}{story.crew} |",
        f"| versions | {versions()} |",
        "| licence | not stated by the tool: choose one that the host's and the prompts' licences "
        "allow |", "",
        *_table(story.found), "",
        f"Use: `graftline optimize {story.host} -o out.graft --head {name}`", "",
        mark(story.run), "",
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
