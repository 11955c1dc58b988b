"""The speculators format (vLLM): the same heads in a config of its own, translated to theirs.

Its numbers of layers name the layer that is entered (the index in transformers' `hidden_states`),
one more than the layer whose output is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from graftline.models.heads.config import Config
from graftline.models.heads.dflash import open_dflash
from graftline.models.heads.eagle3 import open_eagle3
from graftline.models.heads.files import HeadFiles
from graftline.models.heads.head import Head
from graftline.models.heads.mtp import open_qwen_mtp, placed
from graftline.models.heads.taps import IDS

KIND = "speculators_model_type"
ABOUT = (KIND, "speculators_version", "speculators_config", "has_no_defaults_at_init")
"""Keys that say what the file is and how it was used in tests."""
PLAN = ("base_model_ep_plan", "base_model_tp_plan", "base_model_pp_plan")


def open_speculators(files: HeadFiles) -> Head:
    """The head of such files. Raises CheckpointError, also for a kind that is not hosted."""
    config = Config(str(files.path), files.config)
    head = KINDS[config.choice(KIND, "", KINDS)](files, config)
    return replace(head, decided=(*config.decided, *head.decided))


def _translated(
    files: HeadFiles, config: Config, changes: Mapping[str, Any], entered: str = ""
) -> HeadFiles:
    """The files with the layer's own config and the head's keys on one level."""
    layer = config.inner("transformer_layer_config").raw
    own = {k: v for k, v in config.raw.items() if k not in (*ABOUT, *PLAN, entered, LAYER)}
    merged = {k: v for k, v in layer.items() if k not in PLAN}
    for key, value in own.items():
        inner = merged.get(key)
        if inner is not None and value not in (None, inner) and key not in ABOUT_EITHER:
            config.refuse(f"{key}={value!r}, but {LAYER} says {inner!r}; correct one of the two")
        merged[key] = inner if value is None else value
    return replace(files, config={**merged, **changes})


LAYER = "transformer_layer_config"
PROJECTOR = "projector_type"
DOMINO = ("pure_draft_prefix_len", "emb_dim", "gru_hidden_dim", "shift_label")
"""Keys of Domino's correction, which every dflash config of this format has with some value."""
ABOUT_EITHER = (
    "architectures", "model_type", "dtype", "torch_dtype", "transformers_version",
    "_name_or_path", "tie_word_embeddings",
)  # fmt: skip
"""Keys that the two levels may say differently: each is about its own level."""


def _outputs(config: Config, key: str) -> list[int] | None:
    """The layers whose output is read, of those that are entered."""
    ids = config.ids(key)
    if ids is None:
        return None
    read = [i - 1 for i in ids]
    config.decide(
        f"the speculators format counts layers as they are entered: {list(ids)} are the outputs of "
        f"{', '.join(str(i) for i in read)}"
    )
    return read


def _eagle3(files: HeadFiles, config: Config) -> Head:
    family = config.raw[KIND]
    ids = _outputs(config, IDS)
    changes: dict[str, Any] = {} if ids is None else {"eagle_config": {IDS: ids}}
    return open_eagle3(_translated(files, config, changes, IDS), str(family), square_fc=True)


def _dflash(files: HeadFiles, config: Config) -> Head:
    key = "aux_hidden_state_layer_ids"
    ids = _outputs(config, key)
    spark = config.raw[KIND] == "dspark"
    projector = "dspark" if spark else config.choice(PROJECTOR, "dflash", ("dflash", "domino"))
    own: dict[str, Any] = {PROJECTOR: projector}
    if projector == "domino":
        own |= {name: config.raw.get(name) for name in DOMINO}
    else:
        config.must("shift_label", False, "labels of another place without Domino's correction")
    changes: dict[str, Any] = dict.fromkeys((PROJECTOR, *DOMINO))
    changes["dflash_config"] = own if ids is None else {**own, "target_layer_ids": ids}
    return open_dflash(_translated(files, config, changes, key))


def _mtp(files: HeadFiles, config: Config) -> Head:
    layer = Config(str(files.path), config.inner(LAYER).raw, f"config.json: {LAYER}")
    config.must("num_nextn_predict_layers", 1, "several MTP layers in this layout")
    config.read |= {LAYER, *ABOUT, *PLAN}
    config.done()
    return open_qwen_mtp(placed(files, MTP), layer, alone=True)


MTP = {
    "mtp_layers.0.input_proj.": "mtp.fc.", "mtp_layers.0.final_layernorm.": "mtp.norm.",
    "mtp_layers.0.hidden_layernorm.": "mtp.pre_fc_norm_hidden.",
    "mtp_layers.0.token_layernorm.": "mtp.pre_fc_norm_embedding.",
    "mtp_layers.0.": "mtp.layers.0.",
}  # fmt: skip
"""What stands before a tensor's name, and what a host's own checkpoint has there."""


KINDS: Mapping[str, Callable[[HeadFiles, Config], Head]] = {
    "eagle3": _eagle3, "peagle": _eagle3, "dflash": _dflash, "dspark": _dflash, "mtp": _mtp,
}  # fmt: skip
"""`speculators_model_type` and who reads it."""
