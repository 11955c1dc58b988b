"""The hosts that mutants run on: tiny checkpoints on disk, each exported once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from faults.graphs import constant, op, rewired
from graftline.build.compiled import Canonical, Compiler
from graftline.facts import FACTS_KEY
from graftline.models import checkpoint, hf
from graftline.models.decoder import TinyDecoder
from graftline.models.host import Host
from graftline.models.tiny import tiny
from graftline.passes import Pipeline
from tests.dflash_files import write_dflash
from tests.eagle_files import write_eagle3
from tests.exports import Exports
from tests.fspad_files import write_fspad
from tests.hydra_files import seeded_sequence, write_hydra, write_prefixed
from tests.kangaroo_files import seeded as adapter
from tests.kangaroo_files import write_kangaroo
from tests.kept_passes import Call, Fault, KeptPasses
from tests.kinds.canvases import maskgit
from tests.kinds.chunks import CHUNKED, CHUNKS
from tests.kinds.dags import write_dag
from tests.kinds.latent_decoders import CAUSAL, CONVERTER, UPSCALER, VOCODER, write
from tests.kinds.query_decoders import BROADCAST, PROTOOCC
from tests.kinds.samplers import DENOISER, TWO_HEADS, WHOLE, write_sampler
from tests.kinds.unet import UNET
from tests.lora_drop_files import seeded as corrections
from tests.lora_drop_files import write_lora_drop
from tests.m2r2_files import seeded as accelerators
from tests.m2r2_files import write_m2r2
from tests.medusa_files import bigrams, seeded, write_safe
from tests.models.heads.reference_layers import Sizes
from tests.mtp_files import write_mtp
from tests.ppd_files import seeded as prompt_tokens
from tests.ppd_files import write_ppd
from tests.router_files import seeded as routers
from tests.router_files import write_routers
from tests.transfer_files import seeded as transfers
from tests.transfer_files import write_transfers

WIDE: Mapping[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 5, "vocab_size": 700,
    "max_position_embeddings": 256,
}  # fmt: skip
TWO_KINDS = ["sliding_attention", "full_attention"] * 2 + ["sliding_attention"]

FOLDERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "llama": ("llama", {}),
    "gemma2": ("gemma2", {"sliding_window": 40, "head_dim": 16, "query_pre_attn_scalar": 16,
                          "attn_logit_softcapping": 2.0, "final_logit_softcapping": 2.0}),
    "gemma3": ("gemma3_text", {"sliding_window": 40, "head_dim": 16, "query_pre_attn_scalar": 16,
                               "layer_types": TWO_KINDS}),
    "qwen2": ("qwen2", {"num_key_value_heads": 4}),
    "square": ("qwen2", {"vocab_size": 64, "tie_word_embeddings": True, "num_hidden_layers": 2}),
    "bloom": ("bloom", {"n_layer": 5}),
    "gpt2": ("gpt2", {"n_embd": 64, "n_inner": 96, "n_layer": 5, "n_positions": 256}),
    "granite": ("granite", {"logits_scaling": 3.0, "embedding_multiplier": 5.0,
                            "residual_multiplier": 0.7, "num_hidden_layers": 2}),
    "partial": ("stablelm", {"num_hidden_layers": 2}),
}  # fmt: skip
GRAPHS: Mapping[str, TinyDecoder] = {
    "plain": TinyDecoder(layers=5, mlp=64, vocabulary=700, positions=8192),
    "deep": TinyDecoder(layers=7, mlp=64, vocabulary=700, positions=8192),
    "window": TinyDecoder(layers=5, mlp=64, window=40, positions=8192),
    "narrow": TinyDecoder(layers=5, mlp=64, head_size=4, positions=8192),
    "alibi": TinyDecoder(layers=5, mlp=64, alibi=True, positions=8192),
    "chunk": TinyDecoder(layers=5, mlp=64, window=40, positions=8192),
    "sinks": TinyDecoder(layers=5, mlp=64, window=40, positions=8192),
    "clip": TinyDecoder(layers=5, mlp=64, alibi=True, positions=8192),
}
DECODERS: Mapping[str, str] = {
    "vocoder": VOCODER, "upscaler": UPSCALER, "converter": CONVERTER, "causal": CAUSAL,
    "maskgit": maskgit(positions=32), "protoocc": PROTOOCC, "broadcast": BROADCAST,
}  # fmt: skip
STEEP = {"gemma2": ("gate_proj", 4.0)}
"""Weights of that name are so much larger: activations reach where approximations differ."""
HALVES = {"half": "float16", "brain": "bfloat16"}
"""llama, stored in another precision."""


def _chunked(model: ir.Model) -> ir.Model:
    """Local layers see their own stretch of 24 positions."""
    for near in [n for n in model.graph if n.op_type == "Less"]:
        size = constant(model, 24, np.int64)
        ago = near.inputs[0].producer()  # type: ignore[union-attr]
        assert ago is not None
        of = [op(model, near, "Div", [side, size]) for side in ago.inputs]
        near.outputs[0].replace_all_uses_with(op(model, near, "Equal", of))
    return model


def _with_sinks(model: ir.Model) -> ir.Model:
    """Local layers see the first 4 positions too."""
    for both in [n for n in model.graph if n.op_type == "And"]:
        causal, near = both.inputs
        keys = causal.producer().inputs[0]  # type: ignore[union-attr]
        sinks = op(model, both, "Less", [keys, constant(model, 4, np.int64)])
        both.replace_input_with(1, op(model, both, "Or", [near, sinks]))
    return model


def _clipped(model: ir.Model) -> ir.Model:
    """Slopes end at a distance of 40."""
    for steep in [n for n in model.graph if n.op_type == "Mul" and n.inputs[0].name == "slopes"]:  # type: ignore[union-attr]
        keys = steep.inputs[1].producer().inputs[0]  # type: ignore[union-attr]
        rows = next(
            n.outputs[0] for n in model.graph
            if n.op_type == "Unsqueeze" and n.inputs[1].name == "axes_q"  # type: ignore[union-attr]
            and n.inputs[0] is keys.producer().inputs[0]  # type: ignore[union-attr]
        )  # fmt: skip
        behind = op(model, steep, "Sub", [keys, rows])
        near = op(model, steep, "Max", [behind, constant(model, -40, np.int64)])
        rewired(steep, 1, op(model, steep, "Cast", [near], to=ir.DataType.FLOAT))
    return model


MASKED: Mapping[str, Callable[[ir.Model], ir.Model]] = {
    "chunk": _chunked, "sinks": _with_sinks, "clip": _clipped,
}  # fmt: skip
"""What is done to the masks of a graph before it is saved."""


KEPT = "tests.mutants.kept"
"""In the meta of a graph that was read once: its path."""


@dataclass
class Kept:
    """Stands where `open_checkpoint` would find a checkpoint, and reads it the first time."""

    path: Path
    read: dict[Path, Host]
    open: Callable[[Path], Any]

    def host(self, full_export: bool = False, watch: Any = None) -> Host:
        """A graph of its own over the same weights."""
        assert not full_export
        if self.path not in self.read:
            self.read[self.path] = self.open(self.path).host(watch=watch)
        kept = self.read[self.path]
        model = kept.model.clone()
        model.meta[KEPT] = self.path
        return replace(kept, model=model)


@dataclass
class Hosts:
    """Checkpoints under `folder`, written when first asked for; exports are kept and copied, and
    so is what transformers computes from a checkpoint, which no fault reaches."""

    folder: Path
    exports: Exports = field(default_factory=Exports)
    own: dict[Any, Any] = field(default_factory=dict[Any, Any])
    read: dict[Path, Host] = field(default_factory=dict[Path, Host])
    fronts: dict[Any, Canonical] = field(default_factory=dict[Any, Canonical])
    """By the checkpoint, the passes, and what a spec says of the graph and puts beside it."""
    passes: KeptPasses = field(default_factory=KeptPasses)

    def keep(self, patch: pytest.MonkeyPatch) -> None:
        """While `patch` holds, a model is exported once, and runs once on the same tokens."""
        self.exports.keep(patch)
        real: Callable[..., Any] = hf.transformers_model

        def kept(folder: Path, dtypes: Iterable[Any], parameters: int) -> Any:
            stored = frozenset(dtypes)
            run = real(folder, stored, parameters)

            def once(feed: Any, say: Any) -> Any:
                key = folder, stored, parameters, feed["tokens"].tobytes()
                if key not in self.own:
                    self.own[key] = run(feed, say)
                return deepcopy(self.own[key])

            return once

        patch.setattr(hf, "transformers_model", kept)

    def keep_passes(self, patch: pytest.MonkeyPatch, fault: Fault, watched: Iterable[Call]) -> None:
        """While `patch` holds, what the fault cannot reach of a run of passes is done once."""
        self.passes.fault = fault
        self.passes.keep(patch)
        for call in watched:
            self.passes.watch(patch, call)

    def keep_reading(self, patch: pytest.MonkeyPatch) -> None:
        """While `patch` holds, a checkpoint is read once. Not for faults of what reads it."""
        real = checkpoint.open_checkpoint

        def opened(path: Path) -> Kept:
            return Kept(path, self.read, real)

        patch.setattr(checkpoint, "open_checkpoint", opened)

    def keep_fronts(self, patch: pytest.MonkeyPatch) -> None:
        """While `patch` holds, the front runs once on a checkpoint that is kept. Not for faults of
        its passes."""
        real = Compiler.canonical

        def canonical(compiler: Compiler, pipeline: Pipeline) -> Canonical:
            path, front = compiler.raw.meta.get(KEPT), str(pipeline.of("front"))
            if path is None:
                return real(compiler, pipeline)
            said = compiler.raw.metadata_props[FACTS_KEY]
            key = path, front, said, tuple(v.name for v in compiler.raw.graph.inputs)
            if key not in self.fronts:
                made = real(compiler, pipeline)
                self.fronts[key] = replace(made, model=made.model.clone(), sample=None)
            if front not in compiler._fronts:
                made = self.fronts[key]
                compiler._fronts[front] = replace(made, model=made.model.clone())
            return compiler._fronts[front]

        patch.setattr(Compiler, "canonical", canonical)

    def path(self, name: str) -> Path:
        """Where the checkpoint of that name lies."""
        place = self.folder / name
        if name in SAMPLERS:
            file = place / "denoiser.onnx"
            return file if file.is_file() else write_sampler(place, SAMPLERS[name])[0]
        if name == "dag":
            file = place / "dag.onnx"
            return file if file.is_file() else write_dag(place)[0]
        if name in DECODERS:
            file = place / "model.onnx"
            if not file.is_file():
                place.mkdir(parents=True)
                write(DECODERS[name], file)
            return file
        if name in GRAPHS:
            file = place / "model.onnx"
            if not file.is_file():
                place.mkdir(parents=True)
                model = GRAPHS[name].build()
                ir.save(MASKED[name](model) if name in MASKED else model, file)
            return file
        if not place.is_dir():
            _write(name, place)
        return place

    def head(self, own: str) -> str:
        """Where heads of "plain" lie: Medusa's, each with a matrix of its own ("v1") or not ("v2"),
        and "bigrams" beside, "hydra", "hydra-prefix", "eagle3", "peagle", "fspad", "dflash",
        "domino", "dspark", "mtp", "ppd", "hidden-transfer", "kangaroo", "m2r2", "lora-drop" or
        "router"."""
        place, size = self.folder / f"head-{own}", GRAPHS["plain"]
        if place.is_dir():
            return str(place)
        if own in ("eagle3", "peagle"):
            write_eagle3(place, size.hidden, size.vocabulary, (0, 1), mask=own == "peagle")
        elif own == "fspad":
            write_fspad(place, size.hidden, size.vocabulary)
        elif own == "ppd":
            write_ppd(place, prompt_tokens(size.hidden))
        elif own == "bigrams":
            own_matrices = seeded(size.hidden, size.vocabulary)
            write_safe(place, {**own_matrices, **bigrams(size.vocabulary)}, markov_rank=4)
        elif own == "hidden-transfer":
            write_transfers(place, transfers(size.hidden), 2, size.layers)
        elif own == "kangaroo":
            write_kangaroo(place, adapter(size.hidden, 2, 1), 2, 1, size.vocabulary)
        elif own == "m2r2":
            write_m2r2(place, accelerators(2, size.hidden), size.layers)
        elif own == "lora-drop":
            write_lora_drop(place, corrections((0, 2, 3), size.hidden), size.layers, 8.0)
        elif own == "router":
            write_routers(place, routers((1, 2, 3), size.hidden), size.layers, [(1,), (1, 3)])
        elif own == "mtp":
            write_mtp(place, size.hidden, size.vocabulary, size.layers)
        elif own in ("dflash", "domino", "dspark"):
            kind = {"dspark": "rnn", "domino": own}.get(own, "")
            write_dflash(place, size.hidden, size.vocabulary, (0, 1), kind)
        elif own == "hydra-prefix":
            same = ("hidden", "heads", "kv_heads", "head_size", "mlp", "vocabulary")
            sizes = Sizes(**{name: getattr(size, name) for name in same})
            write_prefixed(place, sizes, heads=1)
        elif own == "hydra":
            write_hydra(place, seeded_sequence(size.hidden, size.vocabulary, heads=2))
        else:
            write_safe(place, seeded(size.hidden, size.vocabulary, own=own == "v1"))
        return str(place)


    def spec(self, own: str) -> str:
        """Where a spec of a denoiser lies, or that of the recogniser over vertices ("dag")."""
        if own == "dag":
            return str(self.path("dag").parent / "spec.toml")
        file = self.path("sampler").parent / f"{own}.toml"
        told = WHOLE.replace(*SPECS[own])
        output = "clean" if own == "chunks" else "noise"
        file.write_text(f'{told}\n[outputs]\nprediction = "{output}"\n', encoding="utf-8")
        return str(file)


SAMPLERS: Mapping[str, str] = {
    "sampler": DENOISER, "two-heads": TWO_HEADS, "unet": UNET,
    "chunked": CHUNKED, "tokens": DENOISER.replace("H,W", "8,8"),
}  # fmt: skip
SPECS: Mapping[str, tuple[str, str]] = {
    "chunks": (WHOLE, CHUNKS),
    "ddim": ("ddim", "ddim"),
    "euler": ('"epsilon"\nscheduler = "ddim"', '"v"\nscheduler = "euler"'),
    "euler-ancestral": ("ddim", "euler-ancestral"),
    "clipped": ("steps = 4", "steps = 4\nclip = 0.8"),
    "ddpm, clipped": ('"ddim"\nsteps = 4', '"ddpm"\nsteps = 4\nclip = 0.8'),
    "pyramid": ('"epsilon"\nscheduler = "ddim"', '"flow"\nscheduler = "pyramid"\nscales = 2'),
    "prefix": ('"epsilon"\nscheduler = "ddim"', '"x0"\nscheduler = "prefix"\ntrain_steps = 64'),
}  # fmt: skip
"""What is otherwise in a spec of that name."""


def _write(name: str, place: Path) -> None:
    if name in HALVES:
        import torch
        import transformers

        llama: Any = transformers.AutoModelForCausalLM.from_pretrained(
            tiny("llama", place / "wide", **WIDE), dtype=getattr(torch, HALVES[name])
        )
        llama.save_pretrained(place)
        return
    family, options = FOLDERS[name]
    tiny(family, place, **{**WIDE, **options})
    if name in STEEP:
        _steepened(place / "model.safetensors", *STEEP[name])


def _steepened(file: Path, word: str, factor: float) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(file)
    save_file({n: t * np.float32(factor) if word in n else t for n, t in tensors.items()}, file,
              {"format": "pt"})  # fmt: skip


@cache
def no_bars() -> None:
    """transformers' progress bars stay out of the table."""
    from transformers.utils import logging

    logging.disable_progress_bar()
