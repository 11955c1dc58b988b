"""All mutants, and those that no stated law can see."""

from __future__ import annotations

from faults.accelerators import ACCELERATORS
from faults.adapters import ADAPTERS
from faults.biases import BIASES
from faults.caches import CACHES
from faults.canvases import CANVASES
from faults.chunks import CHUNKS
from faults.contexts import CONTEXTS
from faults.corrections import CORRECTIONS
from faults.draft_blocks import DRAFT_BLOCKS
from faults.draft_heads import DRAFT_HEADS
from faults.ends import ENDS
from faults.engines import ENGINES
from faults.exits import EXITS
from faults.fields import FIELDS
from faults.fused import FUSED
from faults.gates import GATES
from faults.heads import HEADS
from faults.loader import LOADER
from faults.norms import NORMS
from faults.outputs import OUTPUTS
from faults.paths import PATHS
from faults.placeholders import PLACEHOLDERS
from faults.projections import PROJECTIONS
from faults.quantizer import QUANTIZER
from faults.queries import QUERIES
from faults.rotary import ROTARY
from faults.routers import ROUTING
from faults.routes import ROUTES
from faults.samplers import SAMPLERS
from faults.stamping import STAMPING
from faults.transfers import TRANSFERS
from faults.trees import TREES
from faults.windows import WINDOWS

MUTANTS = [
    *WINDOWS, *BIASES, *TREES, *NORMS, *ROTARY, *HEADS, *PROJECTIONS,
    *CACHES, *ENDS, *OUTPUTS, *DRAFT_HEADS, *DRAFT_BLOCKS, *PLACEHOLDERS, *TRANSFERS, *ROUTES,
    *GATES, *EXITS, *ADAPTERS, *ACCELERATORS, *CORRECTIONS, *ROUTING, *FUSED, *QUANTIZER, *LOADER,
    *STAMPING, *SAMPLERS, *FIELDS, *CONTEXTS, *CHUNKS, *PATHS, *CANVASES, *QUERIES, *ENGINES,
]  # fmt: skip

BEYOND: dict[str, str] = {
    "accuracy-level-1": "more exact than was asked for, and only slower: no law sees cost",
}
"""mutant -> why no stated law can see it"""
