"""The checkpoint's own model: what every graph made of it must answer."""

from __future__ import annotations

import gc
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from graftline.evaluate import Feed
from graftline.memory import free_memory

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


OwnModel = Callable[[Feed], Own | str]
"""own(feed of one sequence, by the names of the raw graph's inputs): what the checkpoint's own
model answers, or why it cannot be asked here."""


def transformers_model(folder: Path, parameters: int) -> OwnModel:
    """The model of a Hugging Face folder, its weights read by transformers, in fp32."""

    def run(feed: Feed) -> Own | str:
        need, free = 1.3 * 4 * parameters, free_memory() / 2
        if need > free:
            return (
                f"the checkpoint's own model needs {need / 1e9:.1f} GB in transformers, "
                f"half of the free memory is {free / 1e9:.1f} GB"
            )
        with _silent():
            return _forward(folder, feed["tokens"])

    return run


def _forward(folder: Path, tokens: Ints) -> Own | str:
    import torch
    import transformers

    family: Any = transformers.AutoModelForCausalLM
    try:
        model, info = family.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True, trust_remote_code=False
        )
    except Exception as error:  # transformers raises whatever its readers do
        return f"transformers cannot load the checkpoint ({_first_line(error)})"
    if missing := sorted(info["missing_keys"]):
        return f"transformers finds no '{missing[0]}' in the checkpoint and would make it up"
    try:
        return _run(model.eval(), torch.from_numpy(tokens.copy()))
    except Exception as error:  # and whatever its models do
        return f"transformers cannot run the checkpoint's own model ({_first_line(error)})"
    finally:
        del model
        gc.collect()


def _run(model: Any, ids: Any) -> Own:
    import torch

    from graftline.models.kinds import layer_path

    stream: dict[int, Floats] = {}

    def keep(block: int) -> Callable[[Any, Any, Any], None]:
        def hook(module: Any, given: Any, out: Any) -> None:
            stream[block] = (out[0] if isinstance(out, tuple) else out)[0].numpy()

        return hook

    config = model.config.get_text_config(decoder=True)
    path = layer_path(model, int(config.num_hidden_layers))
    for block, layer in enumerate(model.get_submodule(path) if path else ()):
        layer.register_forward_hook(keep(block))
    with torch.no_grad():
        out = model(input_ids=ids, use_cache=False, output_hidden_states=True)
    if out.hidden_states:
        stream[NORM] = out.hidden_states[-1][0].numpy()
    return Own(out.logits[0].float().numpy(), stream)


@contextmanager
def _silent() -> Generator[None]:
    """transformers without its warnings and progress bars, as it was before afterwards."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def program_model(load: Callable[[], Any]) -> OwnModel:
    """A program saved by torch.export, run by torch on its own inputs."""

    def run(feed: Feed) -> Own | str:
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
            return f"torch cannot run the saved program ({_first_line(error)})"
        logits = getattr(out, "logits", out[0] if isinstance(out, (tuple, list)) else out)
        return Own(logits[0].float().numpy())

    return run


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
