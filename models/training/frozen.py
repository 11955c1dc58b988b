"""The host as a teacher: its own weights in torch, what its lm_head reads, and its best tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from graftline.errors import CheckpointError
from graftline.models.cache import fingerprint
from graftline.models.checkpoint import Chosen, open_checkpoint
from graftline.models.config_file import CONFIG
from graftline.models.gguf.file import GgufCheckpoint
from graftline.models.hf import HfCheckpoint
from graftline.models.host import Watch
from graftline.models.own_model import own_module, silenced
from graftline.models.reference import first_line
from graftline.models.shards import weight_files
from graftline.models.training.crew import CPU, autocast
from graftline.models.weights import read_headers

BEST = 32
"""Tokens of the host kept at every position."""
ENTERED = -1
"""The tap that is what enters the first block."""
Halves = npt.NDArray[np.float16]
Ints32 = npt.NDArray[np.int32]


@dataclass(frozen=True)
class States:
    """A text of N tokens as the host reads it. `taps` [N, H]: what its lm_head reads, the final
    norm's output; or the outputs of several layers, side by side. `best` [N, K] ids, the likeliest
    first, of the token behind each position, and their log-probabilities `scores` [N, K]."""

    taps: Halves
    best: Ints32
    scores: Halves


class Teacher(Protocol):
    """A frozen host. `name` tells its weights and taps from all others; `width` is what it keeps of
    a position."""

    name: str
    vocabulary: int
    width: int

    def states(self, ids: Sequence[int]) -> States:
        """How it reads a text."""
        ...


def checkpoint_folder(path: str | Path, say: Watch) -> Path:
    """The Hugging Face folder of a checkpoint, a GGUF file's conversion included. Raises
    CheckpointError for a graph alone, which has no module to train beside."""
    found = open_checkpoint(path)
    found = found.checkpoint if isinstance(found, Chosen) else found
    if isinstance(found, GgufCheckpoint):
        return found.folder(say)
    if isinstance(found, HfCheckpoint):
        return found.path
    raise CheckpointError(
        f"{found.path}: an exported graph; a head is trained beside the model's own weights, so "
        "give the Hugging Face folder or the .gguf file that it was exported from"
    )


def host_name(folder: Path) -> str:
    """What tells the weights of a folder from all others."""
    return fingerprint([folder / CONFIG, *weight_files(folder, lambda line: None)])


class FrozenHost:
    """The model of a folder, whose weights stay in their files. `bf16`: products in bfloat16.
    `positions`: the most that it knows, 0 where it does not say. `layers`: how many it has, and
    `tapped` those whose outputs are its taps, ENTERED before them; without any, what lm_head reads.
    `source`: what its users call it. On another `device` than the CPU weights lie as they are in
    their files, and are widened there block by block."""

    def __init__(
        self,
        folder: Path,
        bf16: bool = False,
        taps: Callable[[int], Sequence[int]] | None = None,
        source: str = "",
        device: torch.device = CPU,
    ) -> None:
        """`taps`: the layers to read, of a host of so many. Raises CheckpointError where
        transformers cannot load the model, or its lm_head does not read a state of the model's
        width."""
        headers = read_headers(weight_files(folder, lambda line: None))
        dtypes = {s.dtype for s in headers.stored.values() if s.dtype.is_floating_point()}
        opened = own_module(folder, dtypes, headers.numbers)
        if isinstance(opened, str):
            raise CheckpointError(f"{folder}: {opened}")
        self.folder, self.bf16, self.device = folder, bf16, device
        self.model = opened[0].to(device)
        self.source = source or folder.name
        self.blocks: list[Any] = [block for block, _ in opened[1]]
        self.layers = len(self.blocks)
        self.tapped = tuple(taps(self.layers)) if taps else ()
        self.name = host_name(folder) + ("-bf16" if bf16 else "")
        self.name += "".join(f"-{layer}" for layer in self.tapped)
        self.config: Any = self.model.config.get_text_config(decoder=True)
        self.positions = int(getattr(self.config, "max_position_embeddings", None) or 0)
        lm_head = self.model.get_output_embeddings()
        embedding = self.model.get_input_embeddings()
        if lm_head is None or embedding is None:
            raise CheckpointError(f"{folder}: the model has no lm_head or no table of tokens")
        self.lm_head, self.bias = _wide(lm_head.weight), _wide(getattr(lm_head, "bias", None))
        self.embedding = _wide(embedding.weight)
        self.vocabulary, self.hidden = self.lm_head.shape
        if self.hidden != self.embedding.shape[1]:
            raise CheckpointError(
                f"{folder}: lm_head reads {self.hidden} numbers and tokens are "
                f"{self.embedding.shape[1]}; heads are trained where both are as wide"
            )
        self.width = self.hidden * max(len(self.tapped), 1)
        self._read: list[torch.Tensor] = []
        self._outputs: list[torch.Tensor] = []
        lm_head.register_forward_pre_hook(self._note)
        for layer in self.tapped:
            if layer == ENTERED:
                self.blocks[0].register_forward_pre_hook(self._note_input, with_kwargs=True)
            else:
                self.blocks[layer].register_forward_hook(self._note_output)

    def _note(self, module: Any, given: Any) -> None:
        """Keep what lm_head reads."""
        self._read.append(given[0])

    def _note_input(self, module: Any, given: Any, named: Any) -> None:
        """Keep what a layer reads."""
        self._outputs.append(given[0] if given else named["hidden_states"])

    def _note_output(self, module: Any, given: Any, out: Any) -> None:
        """Keep what a layer gives."""
        self._outputs.append(out[0] if isinstance(out, tuple) else out)

    def read(self, ids: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """What lm_head reads over a text [N, H], and its taps [N, W], in fp32."""
        self._run(ids)
        return self._read[0][0].float(), self._taps()

    def _taps(self) -> torch.Tensor:
        """The taps [N, W] of what was run last."""
        return torch.cat([out[0].float() for out in self._outputs or self._read], dim=-1)

    def states(self, ids: Sequence[int]) -> States:
        """How the host reads a text. Raises CheckpointError for states that are not finite or that
        fp16 cannot hold, and where the logits do not follow lm_head."""
        logits = self._run(ids)
        (read,), given = self._read, self._taps()
        if not (torch.isfinite(logits).all() and torch.isfinite(given).all()):
            raise CheckpointError(
                f"{self.folder}: the model computes numbers that are not finite (NaN or infinite) "
                f"over a text of {len(ids)} tokens; its weights are damaged, or were trained in "
                "another precision: no head can be trained beside it"
            )
        self._check(read[0, -1].float(), logits[-1])
        best = torch.topk(logits, min(BEST, self.vocabulary), dim=-1)
        scores = best.values - torch.logsumexp(logits, dim=-1, keepdim=True)
        taps = given.to(torch.float16)
        if not torch.isfinite(taps).all():
            raise CheckpointError(
                f"{self.folder}: hidden states of up to {float(given.abs().max()):.0f} do not fit "
                "fp16, in which they are kept; such a host is not trained beside yet"
            )
        kept = scores.clamp_min(-6e4).to(torch.float16)
        chosen = best.indices.to(torch.int32)
        return States(taps.cpu().numpy(), chosen.cpu().numpy(), kept.cpu().numpy())

    def _run(self, ids: Sequence[int]) -> torch.Tensor:
        """The logits [N, V] of a text; what lm_head and the tapped layers say of it is noted."""
        self._read.clear()
        self._outputs.clear()
        given = torch.tensor([list(ids)], device=self.device)
        try:
            with torch.no_grad(), autocast(self.device, self.bf16), silenced():
                out = self.model(input_ids=given, use_cache=False)
        except Exception as error:  # transformers' models raise whatever they do
            raise CheckpointError(
                f"{self.folder}: transformers cannot run the model ({first_line(error)})"
            ) from error
        return out.logits[0].float()

    def _check(self, state: torch.Tensor, logits: torch.Tensor) -> None:
        """lm_head alone names the same token: what follows it may scale or cap, not reorder."""
        plain = self.lm_head @ state + (0.0 if self.bias is None else self.bias)
        best = int(plain.argmax())
        # both are sums of H products, in bf16 of 8 bits each
        near = (2.0**-6 if self.bf16 else 1e-4) * float(logits.abs().max())
        if float(logits.max() - logits[best]) > near:
            raise CheckpointError(
                f"{self.folder}: the model's logits are not those of its lm_head (token {best} "
                "against its own best); heads that share lm_head cannot be trained beside it"
            )


def _wide(weight: Any) -> Any:
    """A frozen copy in fp32; the tensor itself where it is."""
    return None if weight is None else weight.detach().float()
