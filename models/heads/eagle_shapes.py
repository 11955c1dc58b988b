"""What the torch module of a draft head is made of, and its tensors under the module's own names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NoReturn

import numpy as np
import onnx_ir as ir

from graftline.errors import CheckpointError
from graftline.models.export.eagle_module import EagleShape
from graftline.models.heads.block import Block, read_block
from graftline.models.heads.config import Config
from graftline.models.heads.eagle import EagleSettings
from graftline.models.heads.eagle3 import Eagle3Settings
from graftline.models.heads.experts import Experts
from graftline.models.heads.fspad import FspadSettings
from graftline.models.heads.head import Head
from graftline.models.heads.hydra import LAYERS, STEPPED, HydraSettings
from graftline.models.heads.latent import Latent
from graftline.models.heads.mtp import MtpSettings
from graftline.tensors import numbers

DYNAMIC = "dynamic"
_PREFIX = re.compile(r"^layer\.")
Tensors = Mapping[str, ir.TensorProtocol]
_PARTS = {
    "attention.q_proj": "query", "attention.k_proj": "key", "attention.v_proj": "value",
    "attention.o_proj": "output", "attention.q_norm": "query_norm",
    "attention.k_norm": "key_norm", "mlp.gate_proj": "gate", "mlp.up_proj": "up",
    "mlp.down_proj": "down", "shared.gate_proj": "shared.gate", "shared.up_proj": "shared.up",
    "shared.down_proj": "shared.down", "attention.": "", "mlp.": "",
}  # fmt: skip
_PART = re.compile("|".join(re.escape(name) for name in _PARTS))


def our_name(parameter: str) -> str:
    """What a parameter of the module is called among a head's tensors."""
    inner = parameter.replace("mlp.shared.", "shared.")
    return _PART.sub(lambda found: _PARTS[found[0]], inner)


def eagle_shape(head: Head, host: Mapping[str, Any] | None = None) -> EagleShape:
    """What the module of a head is made of; `host` is its host's config, by transformers' names.
    Raises CheckpointError for what it does not host."""
    shape = _shape(head, host or {})
    if shape.rope.kind == DYNAMIC:
        _refuse(
            head, "rotary frequencies that change with the length of a text (rope_type=dynamic)",
            "give a head whose frequencies stay",
        )  # fmt: skip
    return shape


def _shape(head: Head, host: Mapping[str, Any]) -> EagleShape:
    settings = head.settings
    if isinstance(settings, HydraSettings) and settings.architecture in LAYERS:
        return _stepped(head, settings, host)
    if isinstance(settings, Eagle3Settings):
        return _eagle3(head, settings)
    if isinstance(settings, FspadSettings):
        return fspad_shape(settings.block, settings.vocabulary, _output_bias(head))
    if not isinstance(settings, EagleSettings | MtpSettings):
        raise CheckpointError(
            f"{head.source}: a head of the family '{head.family}', which this version reads and "
            "does not build yet; give a Medusa, an EAGLE or an MTP head"
        )
    if isinstance(settings, MtpSettings):
        return _mtp(head, settings)
    return EagleShape(
        settings.block, settings.layers, settings.vocabulary, settings.vocabulary, fused=True,
        fc_bias=settings.fc_bias, normed=False, output_bias=_output_bias(head),
    )  # fmt: skip


def fspad_shape(block: Block, vocabulary: int, output_bias: bool = False) -> EagleShape:
    """EAGLE's layer behind a sampled feature, with an end of its own for the next one."""
    return EagleShape(
        block, 1, vocabulary, vocabulary, fused=True, fc_bias=True, normed=False, sampled=True,
        output_bias=output_bias,
    )  # fmt: skip


def _eagle3(head: Head, settings: Eagle3Settings) -> EagleShape:
    odd = {
        "further parallel heads": settings.parallel is not None,
    }
    if found := [what for what, there in odd.items() if there]:
        _refuse(head, f"a head with {found[0]}", "give a plain EAGLE-3 head")
    return EagleShape(
        settings.block, settings.layers, settings.vocabulary, settings.draft_vocabulary,
        fused=False, residual_normed=settings.residual_normed, norm_output=settings.norm_output,
        output_bias=_output_bias(head), windows=settings.windows,
        masked=settings.mask_token is not None,
    )  # fmt: skip


def _mtp(head: Head, settings: MtpSettings) -> EagleShape:
    (depth,) = settings.depths  # a graph is of one layer: see `by_depth`
    latent = depth.attention if isinstance(depth.attention, Latent) else None
    experts = depth.mlp if isinstance(depth.mlp, Experts) else None
    mlp = depth.mlp.mlp if isinstance(depth.mlp, Experts) else depth.mlp
    return EagleShape(
        _mtp_block(settings, depth.attention, mlp), 1, settings.vocabulary, settings.vocabulary,
        fused=True, norm_output=settings.feedback_normed, entry_normed=True, first_normed=True,
        output_bias=_output_bias(head, "depths.0"), latent=latent, experts=experts,
    )  # fmt: skip


def _mtp_block(settings: MtpSettings, attention: Block | Latent, mlp: int) -> Block:
    """The sizes of an MTP layer, whatever its attention."""
    if isinstance(attention, Block):
        return attention
    size = attention.plain + attention.rope.size
    return Block(
        settings.hidden, attention.heads, attention.heads, size, mlp, settings.epsilon,
        attention.rope, settings.norm_offset,
    )  # fmt: skip


def _stepped(head: Head, settings: HydraSettings, host: Mapping[str, Any]) -> EagleShape:
    """A layer of its host's own kind: Hydra's eagle-attn over fc of embedding and state, or
    cross-attn, whose rotary positions have a base of their own."""
    if not host:
        raise CheckpointError(
            f"{head.source}: the head's layer has its host's rotary base and epsilon, and the "
            "host's checkpoint has no config.json that says them; give the checkpoint as a folder "
            "of transformers'"
        )
    assert settings.mlp is not None, "such a head has an MLP"
    block = replace(read_block(Config(str(head.source), host, "its host's config.json")),
                    mlp=settings.mlp)  # fmt: skip
    vocabulary = Config(str(head.source), host, "its host's config.json").whole("vocab_size")
    if settings.architecture == STEPPED:
        return EagleShape(
            block, 1, vocabulary, vocabulary, fused=True, fc_bias=True, normed=False,
            first_normed=True,
        )  # fmt: skip
    if block.rope.kind not in ("default", "linear", DYNAMIC):
        _refuse(
            head, f"rotary scaling of its host's kind (rope_type={block.rope.kind}) in a layer of "
            "cross-attn, whose code has none", "give a head of another kind",
        )  # fmt: skip
    assert settings.rope_theta is not None, "such a layer has its own"
    block = replace(block, rope=replace(block.rope, theta=settings.rope_theta))
    return EagleShape(
        block, 1, vocabulary, vocabulary, fused=False, crossed=True, normed=False,
        first_normed=True,
    )  # fmt: skip


def _output_bias(head: Head, layer: str = "layers.0") -> bool:
    return f"{layer}.output.bias" in head.tensors


def _refuse(head: Head, what: str, advice: str) -> NoReturn:
    raise CheckpointError(
        f"{head.source}: {what}, which this version reads and does not build yet; {advice}"
    )


def module_tensors(head: Head, shape: EagleShape) -> dict[str, ir.TensorProtocol]:
    """A head's tensors as the module has them: those of an MTP layer as a layer's, and of experts
    one tensor for all."""
    settings, tensors = head.settings, dict(head.tensors)
    if isinstance(settings, MtpSettings):
        tensors = {_of_layer(name): tensor for name, tensor in tensors.items()}
    if isinstance(settings, HydraSettings):
        tensors = {_PREFIX.sub("layers.0.", name): tensor for name, tensor in tensors.items()}
    if shape.experts is not None:
        tensors |= _joined(tensors, "layers.0", shape.experts)
    return tensors


_AROUND = ("fc.", "embedding_norm.", "hidden_norm.")


def _of_layer(name: str) -> str:
    """The name of a tensor of an MTP depth in a decoder of one layer."""
    _, found, rest = name.partition("depths.0.")
    if not found:
        return name
    if rest.startswith("final_norm."):
        return rest.removeprefix("final_")
    return rest if rest.startswith(_AROUND) else f"layers.0.{rest}"


def _joined(tensors: Tensors, layer: str, experts: Experts) -> dict[str, ir.TensorProtocol]:
    """gate_up [count, 2 x mlp, H] and down [count, H, mlp] of all experts, unread."""

    def stacked(name: str, parts: tuple[str, ...]) -> ir.LazyTensor:
        rows = [
            [tensors[f"{layer}.experts.{n}.{part}.weight"] for part in parts]
            for n in range(experts.count)
        ]
        height, width = (int(size) for size in rows[0][0].shape.numpy())

        def read() -> ir.TensorProtocol:
            arrays = [np.concatenate([numbers(part) for part in row]) for row in rows]
            return ir.tensor(np.stack(arrays), name=f"{layer}.{name}")

        shape = ir.Shape([experts.count, height * len(parts), width])
        return ir.LazyTensor(read, dtype=rows[0][0].dtype, shape=shape, name=f"{layer}.{name}")

    joined = {"gate_up": ("gate", "up"), "down": ("down",)}
    return {f"{layer}.{name}": stacked(name, parts) for name, parts in joined.items()}
