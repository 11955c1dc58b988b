"""A draft head that `optimize` is given: read, checked against its host, and made a host."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import onnx_ir as ir

from graftline.build.head_graph import head_graphs
from graftline.build.head_plan import NEED, HeadPlan
from graftline.bundle.manifest import EXPORT, stage_name
from graftline.errors import CheckpointError, GraftlineError
from graftline.facts import DraftHeadFacts, decoder_facts, read_facts
from graftline.files import file_state
from graftline.models.heads.detect import open_head
from graftline.models.heads.head import Head
from graftline.models.host import Host
from graftline.owners import HEAD, head_owner
from graftline.passes.grafts.draft_heads import POSTNORM
from graftline.ports import by_role, read_ports
from graftline.recipe import Recipe
from graftline.tensors import Widened, file_of

Watch = Callable[[str], None]
RECIPES: Mapping[str, str] = {"hydra": "hydra", "medusa": "medusa"}
"""The recipe of a family of heads, where none is chosen."""
SEQUENTIAL = ("hydra",)
"""Families whose heads read the tokens that those before them drafted."""


def open_draft_head(path: str, say: Watch) -> Head:
    """The head at a path; `say` is told what was decided about its files. Raises CheckpointError.
    """
    say(f"reading the draft head {path}")
    head = open_head(path)
    for line in head.decided:
        say(line)
    if head.family not in RECIPES:
        raise CheckpointError(
            f"{path}: a head of the family '{head.family}', which is read and not yet built; "
            f"graftline builds {', '.join(RECIPES)}"
        )
    return head


def head_hosts(head: Head, canonical: ir.Model, say: Watch) -> dict[str, Host]:
    """The head as hosts of their own, by the names of their stages. Raises CheckpointError where
    its sizes are not the target's, or its numbers not finite."""
    say("checking the draft head's sizes and numbers")
    head.check(decoder_facts(canonical))
    models = head_graphs(head, canonical)
    return {stage_name(head_owner(n), EXPORT): _host(model) for n, model in enumerate(models)}


def _host(model: ir.Model) -> Host:
    tensors = (v.const_value for v in model.graph.initializers.values())
    stored = (t.narrow if isinstance(t, Widened) else t for t in tensors)
    files = {file_of(tensor) for tensor in stored if isinstance(tensor, ir.ExternalTensor)}
    states = {file: state for file in files if (state := file_state(file)) is not None}
    return Host(model, read_facts(model), states=states)


def parallel_heads(hosts: Mapping[str, Host]) -> ir.Model | None:
    """The graph of heads that read nothing but a state, which a pass may put on the target."""
    host = hosts.get(stage_name(HEAD, EXPORT))
    facts = None if host is None else host.facts
    sole = isinstance(facts, DraftHeadFacts) and not facts.tokens
    return host.model if host is not None and sole else None


def check_recipe(head: Head, chosen: Recipe) -> None:
    """Raise GraftlineError for a recipe that drafts with heads of another family."""
    if NEED in chosen.needs and chosen.drafter != head.family:
        raise GraftlineError(
            f"the recipe {chosen.name} drafts with {chosen.drafter} heads, and {head.source} holds "
            f"{head.family} heads; use --recipe {RECIPES[head.family]}"
        )


def planned(head: Head, plan: HeadPlan) -> HeadPlan:
    """The plan with the stages of that head: those that read one another's tokens are called one by
    one, and are each a stage."""
    sequential = head.family in SEQUENTIAL
    plan = plan if sequential else plan.check_layers(head.settings.layers)
    return replace(plan, count=head.settings.heads if sequential else 1)


def check_tap(target: ir.Model) -> None:
    """Raise GraftlineError unless the target brings out what the head reads."""
    if not any(port.tap == POSTNORM for port in by_role(read_ports(target), "hidden", "out")):
        raise GraftlineError(
            "--head: these passes bring out no hidden state for the head to read; put "
            "tap{layers=norm} into --passes"
        )

