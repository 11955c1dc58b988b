"""Programs saved by torch.export.save: translated to ONNX, weights written out once."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftline.errors import CheckpointError
from graftline.models.cache import cached, fingerprint
from graftline.models.graph_facts import facts_of_graph
from graftline.models.host import Host, Watch, silent
from graftline.models.weights import fill, read_headers
from graftline.ports import write_facts

WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Pt2Checkpoint:
    """A .pt2 file. Open only files you trust: torch may unpickle the program's constants."""

    path: Path

    def host(self, full_export: bool = False, watch: Watch | None = None) -> Host:
        """Translate the whole saved program (it is traced already, so nothing is stamped)."""
        from graftline.models.export import translate

        tell = watch or silent
        program = self._load()
        tell(f"translating {self.path.name}")
        exported = translate(program, program.state_dict)
        held = {name: program.state_dict[name] for name in exported.weights}
        folder = cached("pt2", fingerprint([self.path]), lambda to: _save(held, to))
        source = read_headers([folder / WEIGHTS])
        fill(exported.model, sorted(held), lambda n, shape, kind: source.tensor(n, n, shape, kind))
        facts = facts_of_graph(exported.model, self.path.name)
        write_facts(exported.model, facts)
        return Host("decoder", exported.model, facts, weights=source)

    def _load(self) -> Any:
        import torch

        if not zipfile.is_zipfile(self.path):
            raise CheckpointError(f"{self.path}: truncated or not a .pt2 archive; save it again")
        try:
            return torch.export.load(self.path)
        except Exception as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise CheckpointError(
                f"{self.path}: torch cannot load the program ({reason[0]}); save it again with "
                f"torch {torch.__version__}"
            ) from error


def _save(held: dict[str, Any], folder: Path) -> None:
    from safetensors.torch import save_file

    save_file({n: t.detach().clone().contiguous() for n, t in held.items()}, folder / WEIGHTS)
