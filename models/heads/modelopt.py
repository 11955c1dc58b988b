"""ModelOpt's block `eagle_config`: switches that choose EAGLE-1, EAGLE-3 and forms between."""

from __future__ import annotations

from collections.abc import Mapping

from graftline.models.heads.config import Config

REPEATED = ("position_embedding_type", "eagle_decoder_type", "has_lm_head")
"""Keys that repeat what the files or config.json say."""
Switches = Mapping[str, tuple[object, str]]
"""The value that a key must have where it is there, and what another would make."""
EITHER: Switches = {
    "use_mtp_layernorm": (False, "norms of an MTP layer before fc"),
    "next_layer_regular": (True, "later layers that read the embedding again"),
}
WITH_TAPS: Switches = {
    "use_aux_hidden_state": (True, "an EAGLE-3 head without taps of middle layers"),
    "use_input_layernorm_in_first_layer": (True, "a first layer without norms"),
    "use_last_layernorm": (True, "no norm before lm_head"),
    **EITHER,
}
"""EAGLE-3."""
WITHOUT: Switches = {
    "use_aux_hidden_state": (False, "taps of middle layers in an EAGLE-1 head"),
    "use_input_layernorm_in_first_layer": (False, "a norm that the file does not hold"),
    "use_last_layernorm": (False, "a norm that the file does not hold"),
    "parallel_draft_step": (1, "parallel heads behind an EAGLE-1 layer"),
    **EITHER,
}
"""EAGLE-1."""


def check_switches(modelopt: Config, switches: Switches) -> None:
    """Raise CheckpointError for a switch that makes another head."""
    for key, (value, why) in switches.items():
        modelopt.must(key, value, why)
