"""The passes that faults are put into, and the options of `optimize` under which they run."""

from __future__ import annotations

from graftline.passes import GRAFTS

CANONICALIZE = GRAFTS["canonicalize"]
KV = GRAFTS["kv-cache"]
TREE = GRAFTS["tree-mask"]
QUANTIZE = GRAFTS["quantize"]
LOWER = GRAFTS["lower-ort"]
MASK = "graftline.mask"
"""Where an attention's mask is described, in the metadata of its node."""
PLAIN = {"recipe": "plain"}
STEP = {"recipe": "token-recycling", "step": "fused"}
