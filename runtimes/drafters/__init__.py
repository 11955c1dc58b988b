"""Drafters by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graftline.errors import GraftlineError, nearest
from graftline.runtimes.drafter import Drafter
from graftline.runtimes.drafters.aded import Aded
from graftline.runtimes.drafters.cascade import Cascade
from graftline.runtimes.drafters.datastore import Datastore
from graftline.runtimes.drafters.del_exits import Del
from graftline.runtimes.drafters.del_tree import DelTree
from graftline.runtimes.drafters.dflash import DFlash
from graftline.runtimes.drafters.draft_model import DraftModel
from graftline.runtimes.drafters.draft_paths import DraftPaths
from graftline.runtimes.drafters.draft_steps import DraftSteps
from graftline.runtimes.drafters.dspark import DSpark
from graftline.runtimes.drafters.eagle import Eagle
from graftline.runtimes.drafters.early_exit import EarlyExit
from graftline.runtimes.drafters.exit_tree import ExitTree
from graftline.runtimes.drafters.head_and_store import HeadAndStore
from graftline.runtimes.drafters.hierarchical_draft import HierarchicalDraft
from graftline.runtimes.drafters.hydra import Hydra
from graftline.runtimes.drafters.input_copy import InputCopy
from graftline.runtimes.drafters.jacobi import Jacobi
from graftline.runtimes.drafters.kangaroo import Kangaroo
from graftline.runtimes.drafters.lookahead import Lookahead
from graftline.runtimes.drafters.lud import Lud
from graftline.runtimes.drafters.medusa import Medusa
from graftline.runtimes.drafters.merged import Merged
from graftline.runtimes.drafters.nested_exits import NestedExits
from graftline.runtimes.drafters.nested_skip import NestedSkip
from graftline.runtimes.drafters.none import NoDrafts
from graftline.runtimes.drafters.p_eagle import PEagle
from graftline.runtimes.drafters.parallel_draft import ParallelDraft
from graftline.runtimes.drafters.pearl import Pearl
from graftline.runtimes.drafters.ppd import Ppd
from graftline.runtimes.drafters.prompt_lookup import PromptLookup
from graftline.runtimes.drafters.reflective import Reflective
from graftline.runtimes.drafters.self_skip import SelfSkip
from graftline.runtimes.drafters.sorted_draft import SortedDraft
from graftline.runtimes.drafters.speculative_jacobi import SpeculativeJacobi
from graftline.runtimes.drafters.stand import Stand
from graftline.runtimes.drafters.suffix import Suffix
from graftline.runtimes.drafters.token_recycling import TokenRecycling
from graftline.runtimes.options import check_options
from graftline.runtimes.resources import Resources

DRAFTERS: dict[str, type[Any]] = {
    "none": NoDrafts,
    "aded": Aded,
    "cascade": Cascade,
    "datastore": Datastore,
    "del": Del,
    "del-tree": DelTree,
    "dflash": DFlash,
    "draft-model": DraftModel,
    "draft-paths": DraftPaths,
    "draft-steps": DraftSteps,
    "dspark": DSpark,
    "eagle": Eagle,
    "early-exit": EarlyExit,
    "exit-tree": ExitTree,
    "head-and-store": HeadAndStore,
    "hierarchical-draft": HierarchicalDraft,
    "hydra": Hydra,
    "input-copy": InputCopy,
    "jacobi": Jacobi,
    "kangaroo": Kangaroo,
    "lookahead": Lookahead,
    "lud": Lud,
    "medusa": Medusa,
    "merged": Merged,
    "nested-exits": NestedExits,
    "nested-skip": NestedSkip,
    "p-eagle": PEagle,
    "parallel-draft": ParallelDraft,
    "pearl": Pearl,
    "ppd": Ppd,
    "prompt-lookup": PromptLookup,
    "reflective": Reflective,
    "self-skip": SelfSkip,
    "sorted-draft": SortedDraft,
    "speculative-jacobi": SpeculativeJacobi,
    "stand": Stand,
    "suffix": Suffix,
    "token-recycling": TokenRecycling,
}
"""Dataclasses that are `Drafter`s. One with a method `equip(resources)` is handed the resources."""


def configured(name: str, options: Mapping[str, object]) -> Any:
    """The named drafter with these options, which are checked; it has none of its resources yet."""
    if name not in DRAFTERS:
        raise GraftlineError(f"unknown drafter '{name}'{nearest(name, DRAFTERS)}")
    kind = DRAFTERS[name]
    check_options(name, kind, options)
    return kind(**options)


def make_drafter(
    name: str, options: Mapping[str, object], resources: Resources | None = None
) -> Drafter:
    """The named drafter with these options. Raises GraftlineError for an unknown name or option, a
    value of another type, or a resource that is needed and not there."""
    drafter = configured(name, options)
    if hasattr(drafter, "equip"):
        drafter.equip(resources or Resources())
    return drafter
