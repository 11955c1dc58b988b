"""The compiler: grafts, pipeline, laws, anchors, canonical forms and lowering per backend."""

from __future__ import annotations

from graftline.passes.anchors import Anchors
from graftline.passes.canonicalize import Canonicalize
from graftline.passes.cut_depth import CutDepth
from graftline.passes.fuse_draft import FuseDraft
from graftline.passes.fuse_verify import FuseVerify
from graftline.passes.graft import Graft
from graftline.passes.kv_cache import KvCache
from graftline.passes.lower_ort import LowerOrt
from graftline.passes.lower_tensorrt import LowerTensorrt
from graftline.passes.pack_projections import PackProjections
from graftline.passes.pipeline import Pipeline, names
from graftline.passes.quantize import Quantize
from graftline.passes.reduce_logits import ReduceLogits
from graftline.passes.select_rows import SelectRows
from graftline.passes.tap import Tap
from graftline.passes.tree_mask import TreeMask

GRAFTS: dict[str, type[Graft]] = names(
    [
        Canonicalize,
        Anchors,
        KvCache,
        TreeMask,
        SelectRows,
        Tap,
        CutDepth,
        ReduceLogits,
        FuseVerify,
        FuseDraft,
        PackProjections,
        Quantize,
        LowerOrt,
        LowerTensorrt,
    ]
)

__all__ = ["GRAFTS", "Graft", "Pipeline"]
