"""GGUF files: de-quantized by transformers into a cached Hugging Face folder, once per file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftline.errors import CheckpointError
from graftline.models.cache import cached, fingerprint
from graftline.models.converted import write_state
from graftline.models.hf import HfCheckpoint
from graftline.models.host import Host, Watch, silent


@dataclass(frozen=True)
class GgufCheckpoint:
    """One .gguf file, of any quantization and architecture that transformers can read."""

    path: Path

    def host(self, full_export: bool = False, watch: Watch | None = None) -> Host:
        """Convert to a cached folder (tens of seconds, the first time), then as a folder."""
        tell = watch or silent
        return HfCheckpoint(self.folder(tell), self.path.name).host(full_export, tell)

    def folder(self, watch: Watch = silent) -> Path:
        """The cached Hugging Face folder with this file's weights in fp32."""
        check(self.path)
        return cached("gguf", fingerprint([self.path]), lambda to: _convert(self.path, to, watch))


def check(file: Path) -> None:
    """Raise CheckpointError unless the file's header and every tensor's extent are sound."""
    from gguf import GGUFReader

    try:
        reader = GGUFReader(file)
        end = max((int(t.data_offset) + int(t.n_bytes) for t in reader.tensors), default=0)
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(
            f"{file}: truncated or damaged GGUF ({reason[0]}); download it again"
        ) from error
    if not reader.tensors or end > file.stat().st_size:
        raise CheckpointError(f"{file}: GGUF without all of its tensors; download it again")


def mask_token_id(file: Path) -> int | None:
    """The mask token's id, which transformers does not read; None where the file names none."""
    from gguf import GGUFReader, Keys

    field = GGUFReader(file).get_field(Keys.Tokenizer.MASK_ID)
    return None if field is None else int(field.contents())


def _convert(file: Path, folder: Path, tell: Watch) -> None:
    import torch
    import transformers

    tell(f"converting {file.name} (once)")
    options: dict[str, Any] = {"gguf_file": file.name}
    try:
        family: Any = transformers.AutoModelForCausalLM
        model, info = family.from_pretrained(
            file.parent, dtype=torch.float32, output_loading_info=True, **options
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, **options)
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(f"{file}: transformers cannot read it ({reason[0]})") from error
    if info["missing_keys"]:
        first = sorted(info["missing_keys"])[0]
        raise CheckpointError(f"{file}: tensor '{first}' is missing; download it again")
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    if (mask := mask_token_id(file)) is not None:
        model.config.mask_token_id = mask
    tell("writing the converted weights")
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_state(model, folder / "model.safetensors")
