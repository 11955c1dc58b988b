"""The compiler: grafts, pipeline, laws, anchors, canonical forms and lowering per backend."""

from __future__ import annotations

from graftline.passes.anchors.anchors import Anchors
from graftline.passes.canonical.canonicalize import Canonicalize
from graftline.passes.canonical.one_pass import CanonicalizeOnePass
from graftline.passes.grafts.accelerated_exit import AcceleratedExit
from graftline.passes.grafts.adapter_cache import AdapterCache
from graftline.passes.grafts.adapter_exit import AdapterExit
from graftline.passes.grafts.best_path import BestPath
from graftline.passes.grafts.block_mask import BlockMask
from graftline.passes.grafts.canvas_cache import CanvasCache
from graftline.passes.grafts.carry_chunk import CarryChunk
from graftline.passes.grafts.carry_context import CarryContext
from graftline.passes.grafts.collapse_loop import CollapseLoop
from graftline.passes.grafts.cut_depth import CutDepth
from graftline.passes.grafts.denoise_latents import DenoiseLatents
from graftline.passes.grafts.depth_rest import DepthRest
from graftline.passes.grafts.draft_heads import DraftHeads
from graftline.passes.grafts.draft_vocabulary import DraftVocabulary
from graftline.passes.grafts.encoder_reuse import EncoderReuse
from graftline.passes.grafts.features import Features
from graftline.passes.grafts.fold_guidance import FoldGuidance
from graftline.passes.grafts.fold_stored import FoldStored
from graftline.passes.grafts.fold_time import FoldTime
from graftline.passes.grafts.fuse_block import FuseBlock
from graftline.passes.grafts.fuse_draft import FuseDraft
from graftline.passes.grafts.fuse_heads import FuseHeads
from graftline.passes.grafts.fuse_verify import FuseVerify
from graftline.passes.grafts.gate_mlp import GateMlp
from graftline.passes.grafts.head_features import HeadFeatures
from graftline.passes.grafts.head_prefix import HeadPrefix
from graftline.passes.grafts.hidden_transfer import HiddenTransfer
from graftline.passes.grafts.join import Join
from graftline.passes.grafts.kv_cache import KvCache
from graftline.passes.grafts.layer_skip import LayerSkip
from graftline.passes.grafts.markov import Markov
from graftline.passes.grafts.multi_scale import MultiScale
from graftline.passes.grafts.next_feature import NextFeature
from graftline.passes.grafts.overlap_smoothing import OverlapSmoothing
from graftline.passes.grafts.pad_positions import PadPositions
from graftline.passes.grafts.placeholders import Placeholders
from graftline.passes.grafts.prune_branch import PruneBranch
from graftline.passes.grafts.reduce_classes import ReduceClasses
from graftline.passes.grafts.reduce_logits import ReduceLogits
from graftline.passes.grafts.refresh_state import RefreshState
from graftline.passes.grafts.routers import Routers
from graftline.passes.grafts.select_rows import SelectRows
from graftline.passes.grafts.skip_substitute import SkipSubstitute
from graftline.passes.grafts.swap_subgraph import SwapSubgraph
from graftline.passes.grafts.tap import Tap
from graftline.passes.grafts.tree_mask import TreeMask
from graftline.passes.grafts.window import Window
from graftline.passes.lower.ort.lower import LowerOrt
from graftline.passes.lower.ort.pack_rows import PackRows
from graftline.passes.lower.pack_projections import PackProjections
from graftline.passes.lower.quantize.quantize import Quantize
from graftline.passes.lower.select_mlp_rows import SelectMlpRows
from graftline.passes.lower.tensorrt.lower import LowerTensorrt
from graftline.passes.pipeline.graft import Graft
from graftline.passes.pipeline.pipeline import Pipeline, names

GRAFTS: dict[str, type[Graft]] = names(
    [
        Canonicalize,
        CanonicalizeOnePass,
        Anchors,
        KvCache,
        TreeMask,
        BlockMask,
        SelectRows,
        Tap,
        NextFeature,
        Placeholders,
        HiddenTransfer,
        CutDepth,
        DepthRest,
        AdapterCache,
        AdapterExit,
        AcceleratedExit,
        LayerSkip,
        Routers,
        RefreshState,
        SkipSubstitute,
        GateMlp,
        DraftHeads,
        HeadFeatures,
        HeadPrefix,
        Markov,
        ReduceLogits,
        DraftVocabulary,
        Features,
        BestPath,
        PadPositions,
        PruneBranch,
        FoldStored,
        ReduceClasses,
        SwapSubgraph,
        CarryChunk,
        FoldTime,
        FoldGuidance,
        CollapseLoop,
        EncoderReuse,
        MultiScale,
        DenoiseLatents,
        Join,
        FuseVerify,
        FuseDraft,
        FuseHeads,
        FuseBlock,
        Window,
        OverlapSmoothing,
        CarryContext,
        CanvasCache,
        PackProjections,
        Quantize,
        LowerOrt,
        LowerTensorrt,
        PackRows,
        SelectMlpRows,
    ]
)

__all__ = ["GRAFTS", "Graft", "Pipeline"]
