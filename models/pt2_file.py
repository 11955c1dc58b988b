"""Programs saved by torch.export.save: translated to ONNX, weights written out once."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from graftline.errors import CheckpointError
from graftline.facts import write_facts
from graftline.models.cache import cached, fingerprint
from graftline.models.graph_facts import decoder_of
from graftline.models.hf import generation, tokenizer_files
from graftline.models.host import Host, Watch, silent
from graftline.models.mask_token import mask_token
from graftline.models.onnx_file import companion
from graftline.models.reference import program_model
from graftline.models.weights import fill, read_headers
from graftline.optional import require_export

WEIGHTS = "model.safetensors"
FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
SHORTEST = 2
"""torch traces sizes as 2 or more whatever the code does at 0 and 1."""
FLAT = 2
"""Axes of an input that has a number for each token."""
DATA = (
    "data/weights/",
    "data/constants/tensor_",
    "data/constants/model_constants_config.json",
    "data/sample_inputs/",
    "models/model.json",
    "archive_format",
    "archive_version",
    "byteorder",
    ".data/",
    "version",
)
"""Archive members that are data."""


@dataclass(frozen=True)
class Pt2Checkpoint:
    """A .pt2 file of torch.export.save, weights and tensor constants only.

    Pickled objects and compiled code in the archive are refused. Still open only files you trust:
    torch evaluates the symbolic sizes written in the program.
    """

    path: Path

    def host(self, full_export: bool = False, watch: Watch | None = None) -> Host:
        """Translate the whole saved program (it is traced already, so nothing is stamped)."""
        require_export()
        from graftline.models.export.export import traced_lengths, translate

        tell = watch or silent
        program = self._load()
        least, most = traced_lengths(program, _text_inputs(program))
        if least > SHORTEST:
            raise CheckpointError(
                f"{self.path}: the program holds for texts of {least} tokens and more, and text is "
                "decoded a token at a time; export it with torch.export.Dim(..., min=1)"
            )
        tell(f"translating {self.path.name}")
        exported = translate(program, program.state_dict)
        held = {name: program.state_dict[name] for name in exported.weights}
        folder = cached("pt2", fingerprint([self.path]), lambda to: _save(held, to))
        source = read_headers([folder / WEIGHTS])
        fill(exported.model, sorted(held), lambda n, shape, kind: source.tensor(n, n, shape, kind))
        beside = companion(self.path)
        facts = decoder_of(exported.model, self.path.name)
        facts = replace(facts, mask_token=mask_token(beside))
        if most is not None and (not facts.positions or most < facts.positions):
            tell(f"the program holds for texts of at most {most} tokens: served up to {most}")
            facts = replace(facts, positions=most)
        write_facts(exported.model, facts)
        files, defaults = tokenizer_files(beside), generation(beside)
        own = program_model(self._load)
        states = source.states()
        return Host(exported.model, facts, files, defaults, source, own, states)

    def _load(self) -> Any:
        import torch

        self._check()
        try:
            with _tensors_only():
                return torch.export.load(self.path)
        except Exception as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise CheckpointError(
                f"{self.path}: torch cannot load the program ({reason[0]}); save it again with "
                f"torch {torch.__version__}"
            ) from error

    def _check(self) -> None:
        """Refuse what is no whole archive, and members that loading could execute."""
        try:
            with zipfile.ZipFile(self.path) as archive:
                names = [name.partition("/")[2] for name in archive.namelist()]
        except zipfile.BadZipFile as error:
            raise CheckpointError(
                f"{self.path}: truncated or not a .pt2 archive; save it again"
            ) from error
        strange = [name for name in names if not name.startswith(DATA)]
        if strange:
            raise CheckpointError(
                f"{self.path}: holds '{strange[0]}', which is neither program nor tensor; refused, "
                "export the plain model again"
            )


def _text_inputs(program: Any) -> set[str]:
    """Inputs [B, N] of integers: tokens, and what goes with each. None where the program takes its
    past as inputs: a call's length is then not the text's."""
    own = set(program.graph_signature.user_inputs)
    given = [n for n in program.graph.nodes if n.op == "placeholder" and n.name in own]
    if any(node.meta["val"].dim() > FLAT for node in given):
        return set()
    integers = [n for n in given if not n.meta["val"].is_floating_point()]
    return {n.name for n in integers if n.meta["val"].dim() == FLAT}


@contextmanager
def _tensors_only() -> Generator[None]:
    """torch falls back to unpickling anything; this makes it keep to tensors."""
    before = os.environ.get(FORCE)
    os.environ[FORCE] = "1"
    try:
        yield
    finally:
        os.environ.pop(FORCE)
        if before is not None:
            os.environ[FORCE] = before


def _save(held: dict[str, Any], folder: Path) -> None:
    from safetensors.torch import save_file

    save_file({n: t.detach().clone().contiguous() for n, t in held.items()}, folder / WEIGHTS)
