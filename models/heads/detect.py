"""What kind of draft head lies at a path, and the head itself."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from graftline.errors import CheckpointError
from graftline.models.heads.dflash import open_dflash
from graftline.models.heads.eagle import open_eagle
from graftline.models.heads.eagle3 import open_eagle3
from graftline.models.heads.files import HeadFiles, read_files
from graftline.models.heads.fspad import SAMPLED, open_fspad
from graftline.models.heads.head import Head, Tap
from graftline.models.heads.hidden_transfer import SIGN, open_hidden_transfer
from graftline.models.heads.hydra import open_hydra
from graftline.models.heads.kangaroo import is_kangaroo, open_kangaroo
from graftline.models.heads.lora_drop import ADAPTED, open_lora_drop
from graftline.models.heads.m2r2 import SIGN as ACCELERATED
from graftline.models.heads.m2r2 import open_m2r2
from graftline.models.heads.medusa import LINEAR, open_medusa
from graftline.models.heads.mtp import open_mtp
from graftline.models.heads.names import canonical
from graftline.models.heads.ppd import EMBEDDINGS, open_ppd
from graftline.models.heads.router import ROUTER, open_router
from graftline.models.heads.speculators import KIND, open_speculators


@dataclass(frozen=True)
class Form:
    """A form that heads are published in: what shows it ("" where nothing does), who reads it."""

    what: str
    sign: Callable[[HeadFiles], str]
    read: Callable[[HeadFiles], Head]


def open_head(path: str | Path, taps: Sequence[Tap] | None = None) -> Head:
    """The draft head at `path`, a folder or its weights; `taps` replace those that the file names.

    Nothing is read but headers, configs and tables of ids. Raises CheckpointError for a form that
    is not hosted, and for a key or tensor too many, missing or misshapen.
    """
    files = read_files(Path(path).expanduser())
    _refuse_unhosted(files)
    files = replace(files, taps=None if taps is None else tuple(taps))
    for form in FORMS:
        if sign := form.sign(files):
            head = form.read(files)
            lines = [f"{form.what}, by {sign}", *(f"{name} is not read" for name in files.unread)]
            return replace(head, decided=(*lines, *head.decided))
    keys = sorted(files.weights.stored)
    raise CheckpointError(
        f"{path}: not a draft head that graftline knows (config.json has no key of one, tensors "
        f"are {', '.join(keys[:3])} ...); known: {', '.join(dict.fromkeys(f.what for f in FORMS))}"
    )


def _key(name: str) -> Callable[[HeadFiles], str]:
    """A sign: a key of config.json."""
    return lambda files: f"{name} in config.json" if files.config.get(name) is not None else ""


def _tensor(pattern: str) -> Callable[[HeadFiles], str]:
    """A sign: a tensor whose whole name matches."""

    def sign(files: HeadFiles) -> str:
        matches = files.matching(pattern)
        return f"tensor '{matches[0][0]}'" if matches else ""

    return sign


def _dflash(files: HeadFiles) -> str:
    for key in ("dflash_config", "dspark_config", "jetspec_config"):
        if isinstance(files.config.get(key), dict):
            return f"{key} in config.json"
    for name in _architectures(files):
        if re.match(r"(DFlash|DSpark|Domino|JetSpec)", name):
            return f"architectures {name}"
    return ""


def _eagle3(files: HeadFiles) -> str:
    """EAGLE-3: a layer that reads two inputs, or offsets of a vocabulary. `architectures` is often
    that of another model, and is not asked."""
    if files.has("d2t"):
        return "tensor 'd2t'"
    for name in ("midlayer.hidden_norm.weight", "layers.0.hidden_norm.weight"):
        if files.has(name):
            return f"tensor '{name}'"
    renamed = {canonical(key): key for key in files.weights.stored}
    width = _width(files, renamed.get("layers.0.self_attn.q_proj.weight", ""))
    hidden = files.config.get("hidden_size")
    if files.has("fc.weight") and isinstance(hidden, int) and width == 2 * hidden:
        return f"the first layer's queries, which are made of {width} numbers"
    return ""


def _eagle(files: HeadFiles) -> str:
    """EAGLE-1/2: fc of twice the hidden size, and no norm before the first layer."""
    hidden, names = files.config.get("hidden_size"), {canonical(k) for k in files.weights.stored}
    if not isinstance(hidden, int) or _width(files, "fc.weight") != 2 * hidden:
        return ""
    if "layers.0.self_attn.q_proj.weight" not in names or NORM in names:
        return ""
    return f"tensor 'fc.weight' of width {2 * hidden}, and no '{NORM}'"


NORM = "layers.0.input_layernorm.weight"


def _width(files: HeadFiles, key: str) -> int:
    """The columns of a matrix, 0 where there is none."""
    stored = files.weights.stored.get(key)
    return stored.shape[1] if stored is not None and len(stored.shape) == 2 else 0


def _mtp(files: HeadFiles) -> str:
    return _tensor(r"mtp\..*|model\.layers\.\d+\.eh_proj\.weight")(files)


FORMS = (
    Form("a head in the speculators format", _key(KIND), open_speculators),
    Form("Hydra heads", _key("hydra_head_arch"), open_hydra),
    Form("Medusa heads", _key("medusa_num_heads"), open_medusa),
    Form("a DFlash head", _dflash, open_dflash),
    Form("an EAGLE-3 head", _eagle3, open_eagle3),
    Form("an EAGLE-1/2 head", _eagle, open_eagle),
    Form("an FSPAD head", _tensor(SAMPLED), open_fspad),
    Form("an MTP head", _mtp, open_mtp),
    Form("Medusa heads", _tensor(LINEAR), open_medusa),
    Form("Kangaroo's adapter", is_kangaroo, open_kangaroo),
    Form("LoRA-Drop's corrections", _tensor(ADAPTED), open_lora_drop),
    Form("accelerators of blocks", _tensor(ACCELERATED), open_m2r2),
    Form("Hidden Transfer's matrices", _tensor(SIGN), open_hidden_transfer),
    Form("routers of blocks", _tensor(ROUTER), open_router),
    Form("PPD's prompt tokens", _tensor(EMBEDDINGS), open_ppd),
)
"""In the order in which they are asked: keys of a config before names of tensors."""


def _architectures(files: HeadFiles) -> list[str]:
    names = files.config.get("architectures")
    return [str(n) for n in names] if isinstance(names, list) else []


EAGLE4 = (
    "the code of EAGLE-4 (eagle-harness) is under a licence that bars competing use, so it was not "
    "read and its heads are not hosted"
)
UNHOSTED_NAMES = (
    (r"Eagle4", EAGLE4),
    (r"Eagle.*(Deepseek|Kimi)|(Deepseek|Kimi).*Eagle",
     "heads with latent attention (Kimi's MLA) are not hosted"),
    (r"MLPSpeculator", "MLP speculators are not hosted"),
    (r"Gemma4.*Assistant", "Gemma-4's assistants, which read their host's cache, are not hosted"),
    (r"Assistant", "assistants in transformers' own form are not hosted"),
)  # fmt: skip
"""Architectures of heads that are not hosted. A whole model's are asked for its MTP layers only."""
UNHOSTED_KEYS = (
    ("model_type", "gemma4_assistant", "Gemma-4's assistants are not hosted"),
    (KIND, "xpress", "XPress heads are not hosted"),
    (KIND, "lilicorr", "LiLiCorr heads are not hosted"),
    ("projector_type", "xpress", "XPress heads are not hosted"),
    ("projector_type", "lilicorr", "LiLiCorr heads are not hosted"),
)
UNHOSTED_TENSORS = (
    (r"clover_head_mlp_rnn\..*",
     "Clover-2 heads, which draft on by a recurrent step behind their layers, are not "
     "hosted"),
    (r"lstm\.weight_ih_l0",
     "Falcon heads are not hosted: in the code that they were published with, layers read an "
     "LSTM's answer and state as one, which fails, so that what such a head computes is not known"),
    (r".*kv_a_proj_with_mqa.*", "heads with latent attention (MLA) are not hosted"),
)  # fmt: skip
"""Names of tensors that only such heads have."""


def _refuse_unhosted(files: HeadFiles) -> None:
    """Raise CheckpointError for a head of a kind that is known and not hosted, by its name."""
    inner = files.config.get("dflash_config")
    places = [files.config, *([inner] if isinstance(inner, dict) else [])]
    for key, value, why in UNHOSTED_KEYS:
        if any(str(place.get(key)).lower() == str(value) for place in places):
            raise CheckpointError(f"{files.path}: config.json: {key}={value}: {why}")
    if _mtp(files):
        return
    for name in _architectures(files):
        for pattern, why in UNHOSTED_NAMES:
            if re.search(pattern, name):
                raise CheckpointError(f"{files.path}: config.json: architectures {name}: {why}")
    for pattern, why in UNHOSTED_TENSORS:
        if matches := files.matching(pattern):
            raise CheckpointError(f"{files.path}: tensor '{matches[0][0]}': {why}")
    if files.config.get("pard_token") is not None:
        raise CheckpointError(
            f"{files.path}: a PARD draft is a whole model; give it as --draft with --recipe pard"
        )
