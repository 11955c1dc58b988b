"""A draft head that `optimize` is given: read, checked against its host, and made a host."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir

from graftline.build.head_graph import head_graph
from graftline.bundle.manifest import EXPORT, stage_name
from graftline.errors import CheckpointError, GraftlineError
from graftline.facts import decoder_facts, read_facts
from graftline.files import file_state
from graftline.models.heads.detect import open_head
from graftline.models.heads.head import Head
from graftline.models.host import Host
from graftline.owners import HEAD
from graftline.passes.grafts.draft_heads import POSTNORM
from graftline.ports import by_role, read_ports
from graftline.tensors import Widened, file_of

Watch = Callable[[str], None]
EXPORTED = stage_name(HEAD, EXPORT)
"""The stage of a head as it was published."""
RECIPES: Mapping[str, str] = {"medusa": "medusa"}
"""The recipe of a family of heads, where none is chosen."""


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


def head_host(head: Head, canonical: ir.Model, say: Watch) -> Host:
    """The head as a host of its own, over tensors of its files and of its target. Raises
    CheckpointError where its sizes are not the target's, or its numbers not finite."""
    say("checking the draft head's sizes and numbers")
    head.check(decoder_facts(canonical))
    model = head_graph(head, canonical)
    tensors = (v.const_value for v in model.graph.initializers.values())
    stored = (t.narrow if isinstance(t, Widened) else t for t in tensors)
    files = {file_of(tensor) for tensor in stored if isinstance(tensor, ir.ExternalTensor)}
    states = {file: state for file in files if (state := file_state(file)) is not None}
    return Host(model, read_facts(model), states=states)


def check_tap(target: ir.Model) -> None:
    """Raise GraftlineError unless the target brings out what the head reads."""
    if not any(port.tap == POSTNORM for port in by_role(read_ports(target), "hidden", "out")):
        raise GraftlineError(
            "--head: these passes bring out no hidden state for the head to read; put "
            "tap{layers=norm} into --passes"
        )

