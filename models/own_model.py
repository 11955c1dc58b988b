"""The checkpoint's own model by transformers, block by block: its weights stay in their files, and
those of one block at a time are widened to fp32.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx_ir as ir

from graftline.evaluate import Feed
from graftline.memory import free_memory
from graftline.models.reference import (
    NORM,
    QUIET,
    Floats,
    Ints,
    Own,
    OwnModel,
    Watch,
    first_line,
)  # fmt: skip
from graftline.optional import require


def transformers_model(folder: Path, dtypes: Iterable[ir.DataType], parameters: int) -> OwnModel:
    """The model of a Hugging Face folder in fp32, read by transformers. `dtypes` are those of its
    files: one alone is left where it lies, several are widened together."""
    known = set(dtypes)

    def run(feed: Feed, say: Watch) -> Own | str:
        try:
            return _asked(own_module(folder, known, parameters), feed["tokens"], say)
        finally:
            gc.collect()  # modules are cycles, and hold their files mapped

    return run


def own_module(
    folder: Path, dtypes: Iterable[ir.DataType], parameters: int
) -> tuple[Any, list[Unit]] | str:
    """The model of a folder as a torch module whose weights stay in their files and are widened
    block by block while it runs, and its blocks; or why it cannot be opened here."""
    import torch

    kinds = {dtype.name.lower() for dtype in dtypes}
    floats = {"float": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    mapped = floats.get(next(iter(kinds))) if len(kinds) == 1 else None
    if mapped is None and (short := too_large(4 * parameters)):
        return f"the checkpoint's own model, whose files hold {'+'.join(sorted(kinds))}, {short}"
    with silenced():
        return _open(folder, mapped or torch.float32)


Unit = tuple[Any, bool]
"""A module whose parameters are widened together, and whether those below it are too."""


def too_large(need: float) -> str:
    """Why so many bytes are too many here, "" when they are not."""
    free = free_memory() / 2
    if 1.1 * need <= free:
        return ""
    return f"needs {need / 1e9:.1f} GB in fp32, half of the free memory is {free / 1e9:.1f} GB"


def _open(folder: Path, dtype: Any) -> tuple[Any, list[Unit]] | str:
    import transformers

    family: Any = transformers.AutoModelForCausalLM
    try:
        stored, info = family.from_pretrained(
            folder, dtype=dtype, output_loading_info=True, trust_remote_code=False
        )
        model = _unfilled(family, folder, stored)
    except Exception as error:  # transformers raises whatever its readers do
        return f"transformers cannot load the checkpoint ({first_line(error)})"
    if missing := sorted(info["missing_keys"]):
        return f"transformers finds no '{missing[0]}' in the checkpoint and would make it up"
    _take_weights(model, stored)
    layers, others = _units(model)
    most = max((_bytes(unit, deep) for unit, deep in [*layers, *others]), default=0)
    if short := too_large(most):
        return f"the largest block of the checkpoint's own model {short}"
    for unit, deep in [*layers, *others]:
        _widen(unit, deep)
    return model.eval(), layers


def _unfilled(family: Any, folder: Path, stored: Any) -> Any:
    """The model made in fp32, so that what it computes for itself is fp32, without weights."""
    import torch
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        config = type(stored.config).from_pretrained(folder)
        return family.from_config(config, dtype=torch.float32)


def _take_weights(model: Any, stored: Any) -> None:
    """The weights of `stored`, as they lie in their files, and its buffers that a file holds."""
    known = dict(stored.named_modules())
    for name, module in model.named_modules():
        given = known[name]
        module._parameters.update(given._parameters)
        for key in module._buffers.keys() - module._non_persistent_buffers_set:
            module._buffers[key] = _wide(given._buffers[key])


def _units(model: Any) -> tuple[list[Unit], list[Unit]]:
    """The blocks; and, one by one, the modules with parameters of their own beside them."""
    from graftline.models.export.layer_kinds import layer_path

    config = model.config.get_text_config(decoder=True)
    path = layer_path(model, int(config.num_hidden_layers))
    layers = list(model.get_submodule(path)) if path else []
    inside = {id(module) for layer in layers for module in layer.modules()}
    others = [m for m in model.modules() if id(m) not in inside and m._parameters]
    return [(layer, True) for layer in layers], [(module, False) for module in others]


def _bytes(unit: Any, deep: bool) -> int:
    """What the parameters of a unit take in fp32."""
    return 4 * sum(p.numel() for p in unit.parameters(recurse=deep))


def _wide(tensor: Any) -> Any:
    return tensor.float() if tensor is not None and tensor.is_floating_point() else tensor


def _widen(unit: Any, deep: bool) -> None:
    """Let a module have its parameters in fp32 while it runs, and as they are otherwise."""
    import torch

    def before(module: Any, given: Any) -> None:
        for one in module.modules() if deep else (module,):
            narrow[one] = dict(one._parameters)
            for key, value in narrow[one].items():
                if value is not None:
                    one._parameters[key] = torch.nn.Parameter(_wide(value), requires_grad=False)

    def after(module: Any, given: Any, out: Any) -> None:
        for one, parameters in narrow.items():
            one._parameters.update(parameters)
        narrow.clear()

    narrow: dict[Any, dict[str, Any]] = {}
    unit.register_forward_pre_hook(before)
    unit.register_forward_hook(after)


def _asked(opened: tuple[Any, list[Unit]] | str, tokens: Ints, say: Watch) -> Own | str:
    import torch

    if isinstance(opened, str):
        return opened
    try:
        with silenced():
            return _run(*opened, torch.from_numpy(tokens.copy()), say)
    except Exception as error:  # transformers' models raise whatever they do
        return f"transformers cannot run the checkpoint's own model ({first_line(error)})"


def _run(model: Any, layers: list[Unit], ids: Any, say: Watch) -> Own:
    import torch

    stream: dict[int, Floats] = {}
    told = time.monotonic()

    def keep(block: int) -> Callable[[Any, Any, Any], None]:
        def hook(module: Any, given: Any, out: Any) -> None:
            nonlocal told
            stream[block] = (out[0] if isinstance(out, tuple) else out)[0].numpy()
            if time.monotonic() - told > QUIET:
                told = time.monotonic()
                say(f"proof: the checkpoint's own model, block {block + 1} of {len(layers)}")

        return hook

    for block, (layer, _) in enumerate(layers):
        layer.register_forward_hook(keep(block))
    with torch.no_grad():
        out = model(input_ids=ids, use_cache=False, output_hidden_states=True)
    if out.hidden_states:
        stream[NORM] = out.hidden_states[-1][0].numpy()
    return Own(out.logits[0].float().numpy(), stream)


@contextmanager
def silenced(library: str = "transformers", extra: str = "export") -> Generator[None]:
    """transformers or diffusers without its warnings and progress bars, as it was before
    afterwards."""
    logging = require(f"{library}.utils.logging", extra)
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
