"""The kinds of heads that can be trained, each as it begins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from graftline.errors import GraftlineError
from graftline.models.heads import open_head
from graftline.models.host import Watch
from graftline.models.training.crew import Crew
from graftline.models.training.dflash import BLOCK, DFlash
from graftline.models.training.dspark import DSpark
from graftline.models.training.eagle import Eagle
from graftline.models.training.eagle3 import Eagle3, eagle3_layers
from graftline.models.training.frozen import FrozenHost
from graftline.models.training.fspad import Fspad
from graftline.models.training.hidden_transfer import HiddenTransfer
from graftline.models.training.hydra import Hydra
from graftline.models.training.kangaroo import EXIT, Kangaroo, exit_layers
from graftline.models.training.lora_drop import RANK, LoraDrop
from graftline.models.training.m2r2 import M2r2, accelerated_layers
from graftline.models.training.markov import Markov
from graftline.models.training.medusa import Medusa
from graftline.models.training.ppd import Ppd
from graftline.models.training.router import SHARE, Routing
from graftline.models.training.rows import Row
from graftline.models.training.student import Student
from graftline.models.training.vocabulary import draft_vocabulary

KINDS = (
    "medusa", "hydra", "markov", "eagle", "eagle3", "fspad", "dflash", "dspark", "ppd",
    "hidden-transfer", "exit-adapter", "accelerator", "lora-drop", "router",
)  # fmt: skip
OVER_THREE = ("eagle3", "dflash", "dspark")
"""Kinds that read three layers, and draft a part of the vocabulary."""


@dataclass(frozen=True)
class Head:
    """The head to train: `kind` of KINDS; Medusa's `form`, how many `heads` Medusa and Hydra have,
    or prompt tokens PPD, or states to come Hidden Transfer and behind how many blocks they `enter`
    (None: half), after how many the `exit` of an adapter or of accelerators is, for which `layers`
    corrections stand in, the `rank` of these and of accelerators, which `share` of its blocks
    routers are to skip, of `layers`, for the heads in which folder (`of`) bigrams of which rank are
    made, how many rows a `block` has, and whether the host's rows of the drafted tokens, the
    `verifier_lm_head`, are left out of the file."""

    kind: str
    form: str = "v2"
    heads: int = 3
    exit: int = EXIT
    layers: str = ""
    rank: int = RANK
    enter: int | None = None
    share: float = SHARE
    of: str = ""
    block: int = BLOCK
    verifier_lm_head: bool = False

    @property
    def taps(self) -> Callable[[int], Sequence[int]] | None:
        """The layers that it reads, of a host of so many; None: what lm_head reads."""
        if self.kind == "exit-adapter":
            return exit_layers(self.exit)
        if self.kind == "accelerator":
            return accelerated_layers(self.exit)
        return eagle3_layers if self.kind in OVER_THREE else None


COPIES = 6
"""Of a learned weight: itself, its gradient, AdamW's two, the best so far, and what is written."""


@dataclass(frozen=True)
class Beginning:
    """What a head begins by: its host, texts to learn from and others held out, and a seed."""

    host: FrozenHost
    learned: Sequence[Row]
    held_out: Sequence[Row]
    seed: int
    say: Watch

    def student(self, head: Head, crew: Crew) -> Student:
        """The head on the crew's device. Raises GraftlineError where it cannot be beside this
        host."""
        if head.kind == "medusa" and head.form == "v1":
            _check_memory(head.heads, self.host, crew.free_memory())
        with crew.here(), crew.seeded(self.seed):
            return self._over_three(head) if head.kind in OVER_THREE else self._other(head)

    def _over_three(self, head: Head) -> Student:
        host, learned = self.host, self.learned
        words = draft_vocabulary(learned, self.held_out, host.vocabulary)
        self.say(f"draft vocabulary: {words}")
        if head.kind == "eagle3":
            student = Eagle3(host, words, learned[0].ids.tolist())
        elif head.kind == "dflash":
            student = DFlash(host, words, learned, head.block)
        else:
            student = DSpark(host, words, learned, head.block, head.rank)
        student.lm_head.written = not head.verifier_lm_head
        return student

    def _other(self, head: Head) -> Student:
        host, learned, kind = self.host, self.learned, head.kind
        if kind in ("eagle", "fspad"):
            return Eagle(host) if kind == "eagle" else Fspad(host)
        if kind == "ppd":
            return Ppd(host, head.heads)
        if kind == "hidden-transfer":
            return HiddenTransfer(host, head.heads, head.enter)
        if kind == "exit-adapter":
            return Kangaroo(host, learned[0].ids.tolist())
        if kind == "accelerator":
            return M2r2(host, head.rank, learned[0].ids.tolist())
        if kind == "lora-drop":
            return LoraDrop(host, head.layers, head.rank)
        if kind == "router":
            return Routing(host, head.layers, head.share, learned)
        if kind == "markov":
            return Markov(host, open_head(head.of), learned, head.rank, self.say)
        return Hydra(host, head.heads) if kind == "hydra" else Medusa(host, head.heads, head.form)


def _check_memory(heads: int, host: FrozenHost, free: int) -> None:
    """Raise GraftlineError where the memory does not hold a matrix of its own for each head."""
    own = heads * host.lm_head.nbytes
    if COPIES * own > free:
        raise GraftlineError(
            f"--form v1: {heads} matrices of {host.vocabulary} x {host.hidden} need "
            f"{COPIES * own / 1e9:.1f} GB to be learned, and {free / 1e9:.1f} GB are free; leave "
            "--form out (v2 shares the host's lm_head), or use fewer --heads"
        )
