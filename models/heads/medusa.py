"""Medusa heads (arXiv 2401.10774), as `medusa_lm_head.pt` or .safetensors, or in a whole model.

V1, L layers a head: `{i}.{j}.linear.weight` [H, H] and `.bias` for j < L, and the head's own matrix
`{i}.{L}.weight` [V, H]. V2, one layer: no `{i}.1.weight`, the host's lm_head scores its state. Both
may stand behind `medusa_head.`, where the fine-tuned host lies in the same files (Medusa-2).

Beside them may lie a bigram matrix of DSpark's form: `markov_head.markov_w1.weight` [V, r] and
`markov_head.markov_w2.weight` [V, r], with `markov_rank` in config.json.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from graftline.errors import CheckpointError
from graftline.head_notes import MARKOV
from graftline.models.heads.files import HeadFiles, Taken
from graftline.models.heads.head import Head, HostSize, Tap

BIGRAMS = ("markov_head.markov_w1.weight", "markov_head.markov_w2.weight")
LINEAR = r"(medusa_head\.|)(\d+)\.(\d+)\.linear\.weight"
HOST = {
    r"(model|transformer|lm_head)\..*": "the fine-tuned host's, which is opened as the checkpoint"
}
"""Tensors beside the heads of a whole model."""


@dataclass(frozen=True)
class MedusaSettings:
    """`heads` heads of `layers` layers over a state of `hidden`. `vocabulary` is what each scores
    by a matrix of its own; `shared`: by the host's lm_head, of the host's vocabulary, here 0.
    `markov`: the rank of a bigram matrix, 0 without one."""

    heads: int
    layers: int
    hidden: int
    vocabulary: int
    shared: bool
    markov: int = 0


def open_medusa(files: HeadFiles) -> Head:
    """The heads in `files`: how many, and of how many layers, the tensors say. Raises
    CheckpointError for a tensor that is missing, misshapen or has no place.

    Tensors: head.{i}.layer.{j}.weight and .bias, head.{i}.lm_head.weight, markov.w1 and markov.w2.
    """
    prefix, heads, found = _counted(files)
    own = files.matching(re.escape(prefix) + r"0\.(\d+)\.weight")
    shared = not own
    layers = found if shared else int(own[0][1])
    decided = [
        f"{'V2' if shared else 'V1'}: {heads} heads, scored by "
        + ("the host's lm_head, for the files hold no" if shared else "their own")
        + f" '{prefix}0.{layers}.weight'",
        *_beside_config(files, heads, layers, shared),
    ]
    hidden = files.shape(f"{prefix}0.0.linear.weight")[0]
    taken, tied = Taken(files), False
    for head in range(heads):
        for layer in range(layers):
            key = f"{prefix}{head}.{layer}.linear"
            if layer and not files.has(f"{key}.weight"):  # one module, which was saved once
                key, tied = f"{prefix}{head}.0.linear", True
            name = f"head.{head}.layer.{layer}"
            taken.take(f"{key}.weight", f"{name}.weight", (hidden, hidden))
            taken.take(f"{key}.bias", f"{name}.bias", (hidden,))
    vocabulary = 0 if shared else files.shape(f"{prefix}0.{layers}.weight")[0]
    for head in range(0 if shared else heads):
        name = f"head.{head}.lm_head.weight"
        taken.take(f"{prefix}{head}.{layers}.weight", name, (vocabulary, hidden))
    if tied:
        decided.append(f"all {layers} layers of a head are its first: the files hold only that one")
    sizes = [HostSize(f"tensor '{prefix}0.0.linear.weight'", hidden, "hidden")]
    if not shared:
        sizes.append(HostSize(f"tensor '{prefix}0.{layers}.weight'", vocabulary, "vocabulary"))
    rank = _bigrams(files, taken, sizes, decided)
    settings = MedusaSettings(heads, layers, hidden, vocabulary, shared, rank)
    tensors = taken.rest(HOST if prefix else {})
    taps = (Tap(-1, normed=True),)
    return Head("medusa", files.path, settings, taps, tensors, tuple(sizes), tuple(decided))


def _bigrams(
    files: HeadFiles, taken: Taken, sizes: list[HostSize], decided: list[str]
) -> int:
    """Take the bigram matrix, where there is one: its rank. Raises CheckpointError."""
    said = files.config.get("markov_rank")
    if not any(map(files.has, BIGRAMS)) and said is None:
        return 0
    kind = files.config.get("markov_head_type", "vanilla")
    if kind != "vanilla":
        raise CheckpointError(
            f"{files.path}: config.json: markov_head_type={kind!r} reads states of a block, which "
            "parallel heads have none of; vanilla is hosted"
        )
    vocabulary, rank = files.matrix(BIGRAMS[0])
    if said is not None and said != rank:
        raise CheckpointError(
            f"{files.path}: config.json: markov_rank={said!r}, and '{BIGRAMS[0]}' is of rank {rank}"
        )
    for name, own in zip(BIGRAMS, ("w1", "w2"), strict=True):
        taken.take(name, f"{MARKOV}{own}", (vocabulary, rank))
    sizes.append(HostSize(f"tensor '{BIGRAMS[0]}'", vocabulary, "vocabulary"))
    decided.append(f"bigrams of rank {rank}: a head is scored by the best token before it too")
    return rank


def _counted(files: HeadFiles) -> tuple[str, int, int]:
    """What stands before the heads' names, how many heads there are, and of how many layers a head
    has products."""
    found = files.matching(LINEAR)
    if not found:
        raise CheckpointError(
            f"{files.path}: no tensor '0.0.linear.weight', as every Medusa head has one; give the "
            "folder with medusa_lm_head.pt or .safetensors"
        )
    prefix = found[0][1]
    heads = {int(match[2]) for match in found}
    if missing := sorted(set(range(max(heads) + 1)) - heads):
        raise CheckpointError(
            f"{files.path}: tensor '{prefix}{missing[0]}.0.linear.weight' is missing, of "
            f"{max(heads) + 1} heads; download the head again"
        )
    return prefix, len(heads), 1 + max(int(match[3]) for match in found)


def _beside_config(files: HeadFiles, heads: int, layers: int, shared: bool) -> Iterator[str]:
    """What config.json says otherwise. Raises CheckpointError for layers that V2 cannot have."""
    said = files.config.get("medusa_num_layers", layers)
    if shared and (layers, said) != (1, 1):
        raise CheckpointError(
            f"{files.path}: {max(layers, said)} layers and no matrix of the heads' own; heads that "
            "share the host's lm_head have one layer; give the file that has both"
        )
    if said != layers:
        yield f"layers of a head: {layers}, as the tensors say; config.json says {said}"
    if (said := files.config.get("medusa_num_heads", heads)) != heads:
        yield f"{heads} heads, as the tensors say; config.json says {said}"
