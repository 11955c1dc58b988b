"""PPD's prompt tokens (arXiv 2405.18628): a folder of PEFT's, adapter_config.json beside
adapter_model.safetensors or .bin, with one tensor `prompt_embeddings` [K, H].

Row i stands behind a text, in a chain, and foretells the token i + 2 places behind it.
"""

from __future__ import annotations

from dataclasses import dataclass

from graftline.head_notes import PLACEHOLDERS
from graftline.models.config_file import read_json
from graftline.models.heads.config import Config
from graftline.models.heads.files import HeadFiles, Taken
from graftline.models.heads.head import Head, HostSize

EMBEDDINGS = "prompt_embeddings"
ADAPTER = "adapter_config.json"
CHAINS = ("decoder", "ensemble")
"""What the prompt tokens see, `vt_attention_type`: with one row each both are those before them."""
UNHOSTED = (
    ("virtual_tokens_per_special_token", 1, "several rows for a token, whose logits are averaged"),
    ("use_custom_lm_head", False, "an lm_head of its own"),
    ("use_prefix_tuning", False, "prefixes of its own"),
    ("num_exits", 1, "states of several layers, averaged"),
)
"""Keys, what they must be, and what else they mean."""
HARMLESS = (
    "auto_mapping", "peft_type", "peft_version", "task_type", "inference_mode", "revision",
    "token_dim", "num_layers", "num_attention_heads", "num_transformer_submodules",
    "num_virtual_tokens", "prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_kwargs",
    "tokenizer_name_or_path", "prefix_virtual_tokens", "aggregation_type", "modules_to_save",
    "prompt_tuning_init_state_dict_path",
)  # fmt: skip
"""Keys of PEFT's own, and of training; how several rows are averaged, where each token has one."""


@dataclass(frozen=True)
class PpdSettings:
    """`count` embeddings of `hidden` numbers."""

    count: int
    hidden: int


def open_ppd(files: HeadFiles) -> Head:
    """The embeddings in `files`. Raises CheckpointError for a form that is not hosted: several rows
    for a token, exits, an lm_head or prefixes of its own.

    Tensor: placeholders [K, H].
    """
    folder = files.path if files.path.is_dir() else files.path.parent
    named = folder / ADAPTER
    config = Config(str(files.path), read_json(named) if named.is_file() else {}, ADAPTER)
    count, hidden = files.matrix(EMBEDDINGS)
    said = config.whole("num_special_tokens")  # a soft prompt for the text has the same tensor
    if said != count:
        config.refuse(f"num_special_tokens={said}, and '{EMBEDDINGS}' has {count} rows")
    for key, value, why in UNHOSTED:
        config.must(key, value, why)
    config.choice("vt_attention_type", CHAINS[0], CHAINS)
    config.done(HARMLESS)
    taken = Taken(files)
    taken.take(EMBEDDINGS, PLACEHOLDERS, (count, hidden))
    sizes = (HostSize(f"tensor '{EMBEDDINGS}'", hidden, "hidden"),)
    decided = (f"{count} prompt tokens, for the tokens 2 to {count + 1} places ahead",)
    settings = PpdSettings(count, hidden)
    return Head("ppd", files.path, settings, (), taken.rest({}), sizes, decided)
