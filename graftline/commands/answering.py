"""The host's own engine, which answers the prompts that a head is trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftline.bundle.manifest import MANIFEST
from graftline.bundle.reader import Bundle
from graftline.commands.opening import open_engine
from graftline.errors import BundleError, GraftlineError

if TYPE_CHECKING:
    from graftline.bundle.writer import Watch
    from graftline.models.training.answers import Asked, Reply
    from graftline.runtimes.engine import Engine

BATCH = 16
"""Prompts that are answered in the same steps."""


@dataclass(frozen=True)
class Source:
    """The host of a training: its checkpoint, and the bundle of it that answers (None: one is
    built)."""

    checkpoint: str
    bundle: Path | None


def source_of(given: str) -> Source:
    """What a path is. Raises BundleError for a bundle whose checkpoint is gone."""
    path = Path(given).expanduser()
    if not (path / MANIFEST).is_file():
        return Source(given, None)
    said = Bundle.open(path, verify=False).manifest.rebuild
    checkpoint = said.removeprefix("graftline optimize ").partition(" -o ")[0]
    if not Path(checkpoint).expanduser().exists():
        raise BundleError(
            f"{path}: it was built from {checkpoint}, which is not there; a head is trained beside "
            "the model's own weights: give the checkpoint in place of the bundle"
        )
    return Source(checkpoint, path)


def built(source: Source, name: str, dtype: str, folder: Path, say: Watch) -> Path:
    """The bundle that answers: the given one, or one built in `folder` for the weights `name`."""
    if source.bundle is not None:
        return source.bundle
    out = folder / f"{name}-{dtype}.graft"
    try:
        return Bundle.open(out, verify=False).path
    except BundleError:
        from graftline.build.optimize import optimize

        say(f"building the engine that answers, in {dtype} (once)")
        folder.mkdir(parents=True, exist_ok=True)
        return optimize(source.checkpoint, out, recipe="plain", dtype=dtype, watch=say).path


def engine_name(source: Source, name: str, dtype: str, most: int) -> str:
    """What tells the answers of an engine from all others: weights, precision, their length."""
    which = dtype if source.bundle is None else Bundle.open(source.bundle, verify=False).digest
    return hashlib.sha256(f"{name} {which} {most}".encode()).hexdigest()[:32]


class EngineAnswerer:
    """Answers of at most `most` tokens, where prompt and answer fit `positions`."""

    def __init__(self, bundle: Path, threads: int | None, most: int, positions: int, say: Watch):
        """Raises GraftlineError for a bundle without a tokenizer."""
        self.engine: Engine = open_engine(
            bundle, say, recipe="plain", threads=threads, verify=False, prefix_cache=0,
            defaults=False, step="host", max_batch=BATCH, costs=False,
        )  # fmt: skip
        if self.engine.tokenizer is None:
            raise GraftlineError(f"{bundle}: it has no tokenizer, so it cannot read prompts")
        self.most = most
        self.positions = min(positions, self.engine.session.capacity)

    def __call__(self, asked: Sequence[Asked]) -> Sequence[Reply | None]:
        """The replies, in the order of the prompts."""
        from graftline.models.training.answers import Reply

        prompts = [tuple(self.engine.encode(self._prompt(one)).tolist()) for one in asked]
        able = [i for i, ids in enumerate(prompts) if len(ids) + self.most <= self.positions]
        found: list[Reply | None] = [None] * len(asked)
        if not able:
            return found
        options: list[Any] = [
            {"temperature": asked[i].temperature, "seed": asked[i].seed} for i in able
        ]
        ids: Any = [prompts[i] for i in able]
        results: Any = self.engine.generate(ids, options, max_new_tokens=self.most)
        for i, result in zip(able, results, strict=True):
            found[i] = Reply(prompts[i], tuple(result.tokens), result.text)
        return found

    def _prompt(self, one: Asked) -> Any:
        """The messages; without a chat template, what the user says last."""
        assert self.engine.tokenizer is not None
        if not self.engine.tokenizer.has_chat_template:
            return one.messages[-1][1]
        return [{"role": role, "content": content} for role, content in one.messages]
