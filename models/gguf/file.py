"""GGUF files: de-quantized by transformers into a cached Hugging Face folder, once per file."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftline.errors import CheckpointError
from graftline.models.cache import cached, fingerprint
from graftline.models.converted import write_state
from graftline.models.gguf.keys import settle_keys
from graftline.models.gguf.parts import check_parts, join, parts
from graftline.models.gguf.rope import TENSORS, settle_rope
from graftline.models.gguf.text import TOKENIZER, end_ids, settle_split, tell_unread
from graftline.models.hf import HfCheckpoint, hosted
from graftline.models.host import Host, Watch, silent
from graftline.optional import require, require_export

CONVERSION = 2
"""Raised whenever converting gives another folder, so that no older conversion is used again."""
ARCHITECTURE = "general.architecture"
IRRELEVANT = r"\.attn_rot_embd\.weight$"
"""Inverse frequencies that old converters wrote; llama.cpp computes them."""
BESIDE = r"\.nextn\."
"""Extra heads behind the decoder."""


@dataclass(frozen=True)
class GgufCheckpoint:
    """One .gguf file, or any part of one, of a quantization and architecture that transformers
    can read."""

    path: Path

    def host(self, full_export: bool = False, watch: Watch | None = None) -> Host:
        """Convert to a cached folder (tens of seconds, the first time), then as a folder."""
        tell = watch or silent
        return HfCheckpoint(self.folder(tell), self.path.name).host(full_export, tell)

    def folder(self, watch: Watch = silent) -> Path:
        """The cached Hugging Face folder with this file's weights in fp32."""
        files = parts(self.path)
        readers = [check(file) for file in files]
        check_parts(files, readers)
        key = f"{fingerprint(files)}-{CONVERSION}"
        return cached("gguf", key, lambda to: _convert(files, readers, to, watch))


def check(file: Path) -> Any:
    """gguf's reader of a file. Raises CheckpointError unless the file's header and every tensor's
    extent are sound."""
    gguf = require("gguf")
    try:
        reader = gguf.GGUFReader(file)
        end = max((int(t.data_offset) + int(t.n_bytes) for t in reader.tensors), default=0)
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(
            f"{file}: truncated or damaged GGUF ({reason[0]}); download it again"
        ) from error
    kind = reader.get_field("general.type")
    if kind is not None and kind.contents() not in ("model", ""):
        raise CheckpointError(
            f"{file}: general.type is '{kind.contents()}', not a whole model; give the model's GGUF"
        )
    if reader.get_field(ARCHITECTURE) is None:
        raise CheckpointError(f"{file}: no '{ARCHITECTURE}' in it; download it again")
    if not reader.tensors or end > file.stat().st_size:
        raise CheckpointError(f"{file}: GGUF without all of its tensors; download it again")
    return reader


def mask_token_id(file: Path) -> int | None:
    """The mask token's id, which transformers does not read; None where the file names none."""
    gguf = require("gguf")
    field = gguf.GGUFReader(file).get_field(gguf.Keys.Tokenizer.MASK_ID)
    return None if field is None else int(field.contents())


def _convert(files: Sequence[Path], readers: Sequence[Any], folder: Path, tell: Watch) -> None:
    """Convert alone in a folder of its own: transformers would read what lies beside the file."""
    require_export()
    tell(f"converting {files[0].name} (once)")
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".alone-") as place:
        alone = Path(place) / "model.gguf"
        if len(files) == 1:
            alone.symlink_to(files[0].resolve())
        else:
            join(readers, alone)
        _Conversion(alone, files[0], check(alone), tell).write(folder)


@dataclass
class _Conversion:
    """One whole GGUF file `alone`, called `source` in messages, on its way to a folder."""

    alone: Path
    source: Path
    reader: Any
    tell: Watch

    def write(self, folder: Path) -> None:
        """config.json, generation defaults, tokenizer and weights in fp32."""
        config = self.config()
        tokens = self.keys(TOKENIZER)
        tell_unread(tokens, self.tell)
        self.refuse_unread_tensors(hosted(config))
        model = self.model(config)
        tokenizer = self.loaded("AutoTokenizer")
        settle_split(tokenizer, tokens, self.tell)
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        if (mask := tokens.get("ggml.mask_token_id")) is not None:
            model.config.mask_token_id = int(mask)
        model.config.architectures = [type(model).__name__]
        if ends := end_ids(tokens):
            model.generation_config.eos_token_id = ends if len(ends) > 1 else ends[0]
        self.tell("writing the converted weights")
        model.config.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_state(model, folder / "model.safetensors")

    def keys(self, namespace: str) -> dict[str, Any]:
        """The metadata of a namespace ("llama."), without its name."""
        fields = self.reader.fields.values()
        return {
            f.name.removeprefix(namespace): f.contents()
            for f in fields
            if f.name.startswith(namespace)
        }

    @property
    def architecture(self) -> str:
        return str(self.reader.get_field(ARCHITECTURE).contents())

    def config(self) -> Any:
        """transformers' config of the file, brought in line with every key the file has."""
        config = self.loaded("AutoConfig")
        config.name_or_path = ""
        keys = self.keys(f"{self.architecture}.")
        table = require("transformers.modeling_gguf_pytorch_utils").GGUF_TO_TRANSFORMERS_MAPPING
        names = {self.architecture, config.model_type, self.architecture.replace("-", "_")}
        mapped = {k: v for name in names for k, v in table["config"].get(name, {}).items()}
        settle_keys(config, keys, mapped, str(self.source))
        factors = {t.name: t.data for t in self.reader.tensors if t.name in TENSORS}
        settle_rope(config, keys, factors, str(self.source))
        return config

    def model(self, config: Any) -> Any:
        """The model with the file's weights. Raises CheckpointError for any that is not there."""
        torch = require("torch")
        model, info = self.loaded(
            "AutoModelForCausalLM", config=config, dtype=torch.float32, output_loading_info=True
        )
        if info["missing_keys"]:
            first = sorted(info["missing_keys"])[0]
            raise CheckpointError(f"{self.source}: tensor '{first}' is missing; download it again")
        if info["unexpected_keys"]:
            first = sorted(info["unexpected_keys"])[0]
            raise CheckpointError(f"{self.source}: tensor '{first}' is read by nothing; refused")
        return model

    def loaded(self, kind: str, **options: Any) -> Any:
        """What transformers' `kind` reads from the file. Raises CheckpointError."""
        transformers = require("transformers")
        try:
            return getattr(transformers, kind).from_pretrained(
                self.alone.parent, gguf_file=self.alone.name, **options
            )
        except Exception as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise CheckpointError(
                f"{self.source}: transformers cannot read it ({reason[0]})"
            ) from error

    def refuse_unread_tensors(self, model: Any) -> None:
        """Raise CheckpointError for a tensor that transformers would leave out without a word."""
        reading = require("transformers.modeling_gguf_pytorch_utils")
        kind = reading.TENSOR_PROCESSORS.get(self.architecture, reading.TensorProcessor)
        read = reading.get_gguf_hf_weights_map(model, kind(config={}))
        beside: list[str] = []
        for name in (t.name for t in self.reader.tensors):
            if name in read or name.removesuffix(".weight") in read or name in TENSORS:
                continue
            if re.search(BESIDE, name):
                beside.append(name)
            elif not re.search(IRRELEVANT, name):
                raise CheckpointError(
                    f"{self.source}: tensor '{name}' has no place in transformers' "
                    f"{type(model).__name__}, so the model would compute something else; give its "
                    "Hugging Face folder"
                )
        if beside:
            self.tell(f"not read: {beside[0]} and {len(beside) - 1} more, of an extra head")
