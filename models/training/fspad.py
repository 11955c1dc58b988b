"""FSPAD heads in training (arXiv 2408.15562): EAGLE's roll-outs, in which the layer reads the
features that it foretells. What is scored learns from the host's distribution; the feature from
the roll-outs behind it, in place of the paper's distance to the host's own."""

from __future__ import annotations

import torch

from graftline.models.export.eagle_module import EagleShape
from graftline.models.heads.block import MLP
from graftline.models.heads.eagle_shapes import fspad_shape
from graftline.models.training.eagle import Eagle, llama_block, published_layer
from graftline.models.training.frozen import FrozenHost
from graftline.models.training.student import Published

DOWN, FEATURE = "layers.0.mlp.down_proj.weight", "layers.0.mlp.feature_down.weight"


class Fspad(Eagle):
    """An FSPAD head over a frozen host, whose embedding and lm_head it shares."""

    def published(self) -> Published:
        """model.safetensors under the names of FSPAD's own, and a Llama config of one layer."""
        sampling = self.module.sampling
        tensors = {f"fc.fc.{key}": value for key, value in self.module.fc.named_parameters()}
        tensors["fc.post_attention_layernorm.weight"] = sampling.norm.weight
        for theirs, ours in MLP.items():
            tensors[f"fc.mlp.{theirs}.weight"] = sampling.get_parameter(f"{ours}.weight")
        tensors |= published_layer(self.module)
        tensors[DOWN] = torch.cat([tensors[DOWN], tensors.pop(FEATURE)])
        return Published("FSPAD", "model.safetensors", self._llama(), tensors)

    def _shape(self, host: FrozenHost) -> EagleShape:
        return fspad_shape(llama_block(host), host.vocabulary)
