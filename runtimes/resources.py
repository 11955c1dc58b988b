"""What a drafter or a rule may need besides its options, and what is said when it is not there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from graftline.errors import GraftlineError
from graftline.runtimes.draft_engine import DraftEngine
from graftline.runtimes.exits import Exit
from graftline.runtimes.feature_engine import FeatureEngine
from graftline.runtimes.head_reader import Heads
from graftline.runtimes.ort.session import OrtSession
from graftline.runtimes.session import Floats, Ints

REMEDIES = {
    "draft": "build the bundle with a draft engine: graftline optimize CHECKPOINT --draft int8",
    "depths": "build the bundle with sub-models of its draft engine: graftline optimize CHECKPOINT "
    "--draft int8 --draft-depths 12,20",
    "route": "build the bundle with a route: graftline optimize CHECKPOINT --skip 10-20",
    "routes": "build the bundle for it: graftline optimize CHECKPOINT --recipe unified-layer-skip "
    "--speedup 1.5",
    "exit": "build the bundle with it: graftline optimize CHECKPOINT --exit 8",
    "exits": "build the bundle with several: graftline optimize CHECKPOINT --exit 6,12,18",
    "adapter": "build the bundle with one that was trained behind an exit, as Kangaroo's: "
    "graftline optimize CHECKPOINT --head PATH --exit 2",
    "head": "build the bundle with a draft head of its model: graftline optimize CHECKPOINT --head "
    "PATH",
    "placeholder": "build the bundle with a head that its model reads in its own pass, as PPD's or "
    "Hidden Transfer's: graftline optimize CHECKPOINT --head PATH; or of a model that was trained "
    "to fill its own mask token: --recipe lud",
    "answer prefix": "build the bundle with the latent tokens that its answers begin with: "
    "graftline optimize CHECKPOINT --answer-prefix TEXT",
    "mask token": "build the bundle with a draft (lud: a model) that is trained to fill masks and "
    "names the token in its config or tokenizer: graftline optimize CHECKPOINT --draft PATH; or "
    "name its id: the recipe's option mask",
    "corpus": "give texts to retrieve from: --corpus FILE_OR_FOLDER (load(..., corpus=...))",
    "tokenizer": "rebuild the bundle from a checkpoint that has a tokenizer",
    "embedding": "this bundle's token embedding was not found; use the bundle that it was packed "
    "from, or rebuild it from its checkpoint",
    "judge head": "learn one: graftline tune BUNDLE --recipes judge-decoding --prompts FILE.jsonl, "
    "or name a file written by JudgeHead.save in the recipe: rule_options head=FILE",
    "tuned": "tune on this machine with your prompts first: graftline tune BUNDLE --prompts "
    "FILE.jsonl",
}
"""What can be needed (a recipe's `needs`), and what to do when it is missing."""


@dataclass(frozen=True)
class Resources:
    """Everything around a session that drafters and rules may use. Absent values are None.

    `draft` opens the bundle's draft engine, for all sequences (the same one at each call); `depths`
    its sub-models likewise, shallowest first and the whole last, over one set of caches; `route`
    the target without the blocks that its route skips, on the target's caches; `routes` opens those
    of a schedule likewise, the whole target first (None: the bundle has none of it); `exits` its
    exits, the first one first; `head`
    opens its draft heads, the same at each call; `corpus`: the user's documents as token ids;
    `embedding` [V, H]: the target's token embedding; `tuned`: what `graftline tune` stored in the
    bundle, by key; `placeholders`: ids behind the `vocabulary` of the target that its graph reads
    and never scores; `answer_prefix`: how answers begin, "" where nothing says; `decode` turns
    token ids into text; `encode` turns text into token ids, adding none.
    """

    draft: Callable[[], DraftEngine] | None = None
    depths: Callable[[], Sequence[DraftEngine]] | None = None
    route: Callable[[], DraftEngine] | None = None
    routes: Callable[[str], Sequence[OrtSession] | None] | None = None
    exits: Callable[[], Sequence[Exit]] | None = None
    head: Callable[[], Heads | FeatureEngine] | None = None
    corpus: tuple[Ints, ...] | None = None
    embedding: Callable[[], Floats] | None = None
    tuned: Mapping[str, Any] | None = None
    decode: Callable[[Sequence[int]], str] | None = None
    encode: Callable[[str], list[int]] | None = None
    vocabulary: int = 0
    placeholders: int = 0
    answer_prefix: str = ""
    ends: frozenset[int] = field(default_factory=frozenset[int])


def missing(who: str, need: str) -> GraftlineError:
    """The error for a recipe, drafter or rule whose need is not met."""
    article = {"depths": "", "routes": "", "exits": "", "exit": "an ", "adapter": "an ",
               "answer prefix": "an "}  # fmt: skip
    return GraftlineError(f"{who} needs {article.get(need, 'a ')}{need} here; {REMEDIES[need]}")
