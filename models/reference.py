"""The checkpoint's own model: what every graph made of it must answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from graftline.evaluate import Feed

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
NORM = -1
"""Stands among the blocks for the output of the final norm."""


@dataclass(frozen=True)
class Own:
    """One forward over ids [N], nothing cached: logits [K, V] of the last K rows, and the residual
    stream [N, H] behind each block that was looked at."""

    logits: Floats
    stream: dict[int, Floats] = field(default_factory=dict[int, Floats])


Watch = Callable[[str], None]
QUIET = 2.0
"""Seconds between two lines of progress."""
OwnModel = Callable[[Feed, Watch], Own | str]
"""own(feed of one sequence, by the names of the raw graph's inputs; what is told of its progress):
what the checkpoint's own model answers, or why it cannot be asked here."""


@dataclass(frozen=True)
class OwnNetwork:
    """A network that runs once, by the library that it was written for. `run(feeds)`: its outputs
    for each, all by the names of the raw graph; or why it cannot be asked here."""

    run: Callable[[Sequence[Feed]], list[Feed] | str]


Original = OwnModel | OwnNetwork | Path
"""What the export of a checkpoint is held to; a path is that of the user's own graph."""


def program_model(load: Callable[[], Any]) -> OwnModel:
    """A program saved by torch.export, run by torch on its own inputs."""

    def run(feed: Feed, say: Watch) -> Own | str:
        import torch

        program = load()
        names = list(program.graph_signature.user_inputs)
        if lost := [name for name in names if name not in feed]:
            return f"nothing is known of the input '{lost[0]}', which the program does not read"
        given = [torch.from_numpy(np.ascontiguousarray(feed[name])) for name in names]
        try:
            with torch.no_grad():
                out: Any = program.module()(*given)
        except Exception as error:  # torch raises whatever its programs do
            return f"torch cannot run the saved program ({first_line(error)})"
        logits = getattr(out, "logits", out[0] if isinstance(out, (tuple, list)) else out)
        return Own(logits[0].float().numpy())

    return run


def first_line(error: BaseException) -> str:
    """What an error of another library says first."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
