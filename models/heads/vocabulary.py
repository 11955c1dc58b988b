"""The tokens that a head with a vocabulary of its own drafts: which ids of the host they are."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from graftline.errors import CheckpointError
from graftline.models.heads.config import Config
from graftline.models.heads.files import Taken

DRAFT_IDS = "draft_ids"
"""Our tensor [draft vocabulary] of int64: the host's id of each of the head's."""
VERIFIER_LM_HEAD = "verifier_lm_head"
"""The key of a config, ours, by which a head says that its lm_head is the host's rows of the tokens
it drafts, and that the file leaves them out."""
LM_HEAD = "lm_head.weight"


def take_lm_head(
    taken: Taken, config: Config, vocabulary: int, drafted: int, hidden: int
) -> bool:
    """`lm_head.weight` [draft vocabulary, H] where the file has one; whether it has.

    Without one the host's serves, whole for a head of the host's whole vocabulary, and of a part
    of it where the config says so. Raises CheckpointError where it is missing or one too many.
    """
    if not config.flag(VERIFIER_LM_HEAD, False):
        if drafted == vocabulary and not taken.files.has(LM_HEAD):
            config.decide("no lm_head in the file: the host's serves")
            return False
        taken.take(LM_HEAD, LM_HEAD, [drafted, hidden])
        return True
    if taken.files.has(LM_HEAD):
        config.refuse(f"{VERIFIER_LM_HEAD}=true, and a tensor '{LM_HEAD}' all the same")
    config.decide(f"{VERIFIER_LM_HEAD}: the host's lm_head rows of the {drafted} drafted tokens")
    return False


def drafted_rows(
    lm_head: ir.TensorProtocol, tensors: Mapping[str, ir.TensorProtocol]
) -> ir.TensorProtocol:
    """What scores a head's vocabulary: its own matrix, or the host's `lm_head` [V, H], of which the
    rows of a head's `draft_ids` where it has some."""
    if (own := tensors.get(LM_HEAD)) is not None:
        return own
    if (ids := tensors.get(DRAFT_IDS)) is None:
        return lm_head
    return ir.Tensor(lm_head.numpy()[ids.numpy()], dtype=lm_head.dtype, name=LM_HEAD)


def take_draft_ids(taken: Taken, vocabulary: int, drafted: int) -> bool:
    """`draft_ids` from `d2t`, which holds offsets (the host's id is d + d2t[d]); whether there is
    one. `t2d` must say the same.

    Raises CheckpointError where d2t is missing, leaves the vocabulary or names a token twice, or
    where t2d marks other tokens.
    """
    files = taken.files
    if not files.has("d2t") and not files.has("t2d") and drafted == vocabulary:
        return False
    offsets = _stored(taken, "d2t", (drafted,))
    ids = offsets.astype(np.int64) + np.arange(drafted)
    wrong = np.flatnonzero((ids < 0) | (ids >= vocabulary))
    if wrong.size:
        at = int(wrong[0])
        raise CheckpointError(
            f"{files.path}: tensor 'd2t': id {at} stands for {at} + {int(offsets[at])} = "
            f"{int(ids[at])}, outside the vocabulary of {vocabulary}; the file is damaged, or does "
            "not hold offsets"
        )
    _check_distinct(taken, ids)
    if files.has("t2d"):
        _check_marks(taken, ids, vocabulary)
    taken.tensors[DRAFT_IDS] = ir.Tensor(ids, name=DRAFT_IDS)
    return True


def _check_distinct(taken: Taken, ids: np.ndarray) -> None:
    order = np.argsort(ids, kind="stable")
    twice = np.flatnonzero(np.diff(ids[order]) == 0)
    if twice.size:
        one, other = (int(order[twice[0] + k]) for k in (0, 1))
        raise CheckpointError(
            f"{taken.files.path}: tensor 'd2t': ids {one} and {other} both stand for "
            f"{int(ids[one])}; the file is damaged, or does not hold offsets"
        )


def _check_marks(taken: Taken, ids: np.ndarray, vocabulary: int) -> None:
    marks = _stored(taken, "t2d", (vocabulary,)).astype(bool)
    named = np.zeros(vocabulary, bool)
    named[ids] = True
    wrong = np.flatnonzero(marks != named)
    if wrong.size:
        does = "marks" if marks[wrong[0]] else "does not mark"
        raise CheckpointError(
            f"{taken.files.path}: tensor 't2d' {does} token {int(wrong[0])}, 'd2t' says otherwise; "
            "the two do not belong together"
        )


def _stored(taken: Taken, key: str, shape: tuple[int, ...]) -> np.ndarray:
    """The integers or marks of a stored tensor, read now."""
    actual = taken.files.shape(key)
    stored = taken.files.weights.stored[key]
    if actual != shape or stored.dtype.is_floating_point():
        raise CheckpointError(
            f"{taken.files.path}: tensor '{key}' is {stored.dtype.name} {list(actual)} but must be "
            f"integers or marks of shape {list(shape)}"
        )
    taken.used.add(key)
    return stored.external(key).numpy()
