"""A real bundle of a tiny decoder with a tokenizer of bytes, made by `optimize` itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from graftline.bundle.reader import Bundle
from graftline.facts import decoder_facts
from graftline.models.decoder import TinyDecoder
from graftline.models.host import Host

END = "<|end|>"


@dataclass
class TinyCheckpoint:
    """Stands where `open_checkpoint` would find a file."""

    path: Path

    def host(self, full_export: bool = False, watch: Any = None) -> Host:
        model = TinyDecoder(vocabulary=260, hidden=16, head_size=8, positions=512).build()
        files = write_tokenizer(self.path)
        return Host(model, decoder_facts(model), files, {"eos_token_id": 256})


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


@pytest.fixture(scope="session")
def byte_tokenizer() -> Callable[[Path], list[Path]]:
    """Writes the tokenizer of bytes into a folder, and returns its files."""
    return write_tokenizer


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A path that `optimize` opens as the tiny decoder, for as long as the tests run."""
    from graftline.models import checkpoint

    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    patch = pytest.MonkeyPatch()
    real = checkpoint.open_checkpoint

    def opened(path: str | Path) -> Any:
        return TinyCheckpoint(folder) if Path(path) == folder else real(path)

    patch.setattr(checkpoint, "open_checkpoint", opened)
    yield folder
    patch.undo()


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny decoder as a bundle; do not change it."""
    from graftline.build.optimize import optimize

    out = tmp_path_factory.mktemp("bundles") / "tiny.graft"
    optimize(tiny_checkpoint, out)
    return Bundle.open(out).path
