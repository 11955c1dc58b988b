"""Checkpoints of tiny decoders with a tokenizer of bytes, which `optimize` opens by their paths."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from graftline.facts import decoder_facts, write_facts
from graftline.models.decoder import TinyDecoder
from graftline.models.host import Host

END = "<|end|>"
TINY = TinyDecoder(vocabulary=260, hidden=16, head_size=8, positions=512)
WIDE = TinyDecoder(vocabulary=260, hidden=32, head_size=16, mlp=64, positions=512)
"""Products of sizes that the blocks of int4 and int8 divide."""


@dataclass
class TinyCheckpoint:
    """Stands where `open_checkpoint` would find a file."""

    path: Path
    decoder: TinyDecoder = TINY
    mask_token: int | None = None
    generation: dict[str, Any] = field(default_factory=dict[str, Any])

    def host(self, full_export: bool = False, watch: Any = None) -> Host:
        model = self.decoder.build()
        facts = replace(decoder_facts(model), mask_token=self.mask_token)
        write_facts(model, facts)
        return Host(model, facts, write_tokenizer(self.path), dict(self.generation))


def write_tokenizer(folder: Path) -> list[Path]:
    """Every byte is a token; 256 ends a text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    made.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    made.add_special_tokens([END])
    folder.mkdir(exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
    config = {"eos_token": END, "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return [folder / "tokenizer.json", folder / "tokenizer_config.json"]
