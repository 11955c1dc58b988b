"""The kinds of host that run once, by the structure that tells each."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir

from graftline.passes.anchors.canvas.find import find_canvas
from graftline.passes.anchors.dag_recogniser import find_dag_recogniser
from graftline.passes.anchors.denoiser import find_denoiser
from graftline.passes.anchors.latent_decoder import find_latent_decoder
from graftline.passes.anchors.query_decoder import find_query_decoder
from graftline.passes.anchors.recogniser import find_recogniser
from graftline.passes.anchors.roles import OnePass
from graftline.passes.graph.mismatch import Mismatch

ONE_PASS: Mapping[str, Callable[[ir.Graph], OnePass | Mismatch]] = {
    "query-decoder": find_query_decoder, "denoiser": find_denoiser,
    "latent-decoder": find_latent_decoder, "recogniser": find_recogniser,
    "dag-recogniser": find_dag_recogniser, "canvas": find_canvas,
}  # fmt: skip
"""By the kind's name; the first that is not a Mismatch is the kind of a graph without a config. A
decoder of queries, told by what makes its output, comes before those told by types and shapes."""
