"""Hugging Face folders: config.json and safetensors become a graph that points into the weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from graftline.errors import CheckpointError
from graftline.facts import DecoderFacts, write_facts
from graftline.models.block_scales import block_of
from graftline.models.config_file import (
    CONFIG,
    check_sizes,
    end_ids,
    read_config,
    read_json,
    read_raw,
    text_decoder,
)
from graftline.models.decoder_part import decoder_part
from graftline.models.export.rotary_limit import check_frequencies, frozen_limit
from graftline.models.host import Host, Watch, silent
from graftline.models.mask_token import mask_token
from graftline.models.own_model import transformers_model
from graftline.models.recognise import refuse_adapter, refuse_head
from graftline.models.shards import check_index, weight_files
from graftline.models.ties import aliases, key_of, untie
from graftline.models.tokenizer_files import tokenizer_files
from graftline.models.unread import report, unread
from graftline.models.weights import WeightSource, fill, read_headers
from graftline.optional import require_export
from graftline.ports import Assumption, write_assumptions

NO_PADDING_ID = Assumption(
    "tokens", "token ids", "ids of which none is the padding id",
    "the model itself gives a padding id no position of its own",
)  # fmt: skip
"""Of a model that leaves rows of its position table for padding."""


_RUNNING = frozenset({"linear_attention", "conv", "hybrid", "hybrid_sliding"})
"""Kinds of blocks, by transformers' `layer_types`, that carry a state from token to token."""


@dataclass(frozen=True)
class HfCheckpoint:
    """A folder with config.json and safetensors, whole, sharded or tied."""

    path: Path
    name: str = ""
    """What to call the source in the facts: the folder's name unless given."""

    def host(self, full_export: bool = False, watch: Watch | None = None) -> Host:
        """Export the graph from the config alone, then point its initializers into the files."""
        tell = watch or silent
        refuse_adapter(self.path)
        raw = read_raw(self.path)
        refuse_head(self.path, raw, ())
        require_export()
        source, files = _weights(self.path, tell)
        dtypes = {s.dtype for s in source.stored.values() if s.dtype.is_floating_point()}
        refuse_head(self.path, raw, source.stored)
        config, source = _decoder(self.path, raw, source, tell)
        built = build(config, full_export, tell)
        if _covers(built, source):
            left = point(built, source)
        else:
            from graftline.models.converted import converted

            source, left = converted(config, files, source, self.path / CONFIG, tell)
            point(built, source)
        report(left, built.whole, tell)
        facts = facts_of(config, built.parameters, self.name or self.path.name)
        tokenizer = tokenizer_files(self.path, tell)
        room = max(facts.positions - built.first, 0)
        mask = mask_token(self.path, tokenizer)
        facts = replace(facts, mask_token=mask, positions=room)
        if (limit := frozen_limit(config)) is not None and limit < facts.positions:
            tell(
                f"its rotary frequencies change past {limit} of {facts.positions} positions: "
                f"served up to {limit}"
            )
            facts = replace(facts, positions=limit)
        write_facts(built.graph, facts)
        if built.first:
            write_assumptions(built.graph, [NO_PADDING_ID])
        own = transformers_model(self.path, dtypes, built.parameters)
        defaults, states = generation(self.path), source.states()
        return Host(
            built.graph, facts, tokenizer, defaults, source, own, states, config.to_dict()
        )


@dataclass(frozen=True)
class Built:
    """A raw graph without weights, and the meta model `whole` it came from. `aliases`: an
    initializer's tied names, its own first."""

    graph: ir.Model
    weights: frozenset[str]
    aliases: dict[str, tuple[str, ...]]
    persistent: frozenset[str]
    parameters: int
    whole: Any
    first: int
    """The position of a text's first token in the model's own tables."""


def _weights(folder: Path, tell: Watch) -> tuple[WeightSource, list[Path]]:
    files = weight_files(folder, tell)
    tell(f"checking {len(files)} weight files of {folder.name}")
    source = read_headers(files)
    check_index(folder, source)
    return source, files


def _decoder(
    folder: Path, raw: dict[str, Any], source: WeightSource, tell: Watch
) -> tuple[Any, WeightSource]:
    """The config of what is hosted, and the source under that decoder's own names."""
    check_sizes(folder / CONFIG, raw, source.numbers)
    outer = read_config(folder, raw)
    config = text_decoder(outer, tell)
    block = block_of(f"{folder / CONFIG}", getattr(config, "quantization_config", None))
    if block is not None:
        del config.quantization_config
        tell("FP8 weights times their scales; activations stay in the graph's own precision")
        source = replace(source, block=block)
    model = hosted(config)
    if config is not outer:
        source = decoder_part(model, source)
    untie(config, model, source, tell)
    return config, source


def hosted(config: Any) -> Any:
    """The meta model of a config. Raises CheckpointError for kinds that are no plain decoder."""
    from graftline.models.export.host_model import empty_model

    if getattr(config, "is_encoder_decoder", False):
        raise CheckpointError(
            f"config.json: model_type '{config.model_type}' is an encoder-decoder, which graftline "
            "does not host yet; give a decoder"
        )
    whole = empty_model(config)
    # by which transformers knows what has no rollback, and which blocks have a state of their own
    states = _RUNNING & set(getattr(config, "layer_types", None) or ())
    if states or getattr(whole, "_is_stateful", False):
        raise CheckpointError(
            f"config.json: {type(whole).__name__} keeps a running state (state-space, recurrent or "
            "convolution blocks), which graftline does not host yet; give a decoder whose blocks "
            "all attend over keys and values"
        )
    check_frequencies(whole)
    return whole


def build(config: Any, full_export: bool, tell: Watch) -> Built:
    """The raw graph of a config: the distinct layers exported, the rest stamped out."""
    from graftline.models.export.blocks import Irregular
    from graftline.models.export.export import export
    from graftline.models.export.host_model import empty_model
    from graftline.models.export.layer_kinds import kinds, layer_path, prefix_length, shortened
    from graftline.models.export.stamp import stamp

    whole = hosted(config)
    layers = int(whole.config.num_hidden_layers)
    path = layer_path(whole, layers)
    of = kinds(whole, path) if path else []
    some = prefix_length(of) if path else layers
    if path and some < layers and not full_export:
        part = empty_model(shortened(config, some))
        if kinds(part, path) == of[:some]:
            exported = export(part, tell)
            tell(f"stamping {layers} layers from {some}")
            added = stamp(exported.model, path, of, some)
            if not isinstance(added, Irregular):
                buffers = _fill_buffers(exported.model, whole, added)
                fresh = {n for n in added if n not in buffers}
                return _built(exported.model, exported.weights | fresh, whole)
            tell(f"exporting all {layers} layers, because {added}")
        else:
            tell(f"exporting all {layers} layers, because a shorter model has other layers")
    exported = export(whole, tell)
    return _built(exported.model, exported.weights, whole)


def _fill_buffers(graph: ir.Model, whole: Any, names: list[str]) -> set[str]:
    """Give stamped buffers the values of the whole model's own; returns their names."""
    buffers = dict(whole.named_buffers())
    found = {n for n in names if n in buffers}
    for name in found:
        tensor = ir.tensor(buffers[name].detach().numpy(), name=name)
        graph.graph.initializers[name].const_value = tensor
    return found


def _built(graph: ir.Model, weights: frozenset[str], whole: Any) -> Built:
    from graftline.models.export.host_model import first_position

    count = sum(math.prod(value.shape) for value in whole.parameters())
    saved = set(whole.state_dict(keep_vars=True))
    buffers = {n for n, _ in whole.named_buffers() if n in saved}
    persistent = frozenset(n for n in buffers if n in graph.graph.initializers)
    names = aliases(whole)
    return Built(graph, weights, names, persistent, count, whole, first_position(whole))


def _key(built: Built, name: str, source: WeightSource) -> str | None:
    """The checkpoint's name of an initializer: its own, a tied one, or without the base prefix."""
    return key_of(built.aliases.get(name, (name,)), built.whole.base_model_prefix, source)


def _covers(built: Built, source: WeightSource) -> bool:
    """True when every weight is in the files under its name; else transformers must convert."""
    return all(_key(built, name, source) is not None for name in built.weights)


def point(built: Built, source: WeightSource) -> list[str]:
    """Fill the graph's initializers from the checkpoint, unread; the stored names not used.

    Raises CheckpointError.
    """
    keys = {name: _key(built, name, source) for name in (*built.weights, *built.persistent)}

    def lookup(name: str, shape: tuple[int, ...], dtype: ir.DataType) -> ir.TensorProtocol:
        return source.tensor(keys[name] or name, name, shape, dtype)

    stored = [n for n in built.persistent if keys[n] is not None]
    fill(built.graph, [*sorted(built.weights), *sorted(stored)], lookup)
    return unread(source, {k for k in keys.values() if k is not None}, built.whole)


def facts_of(config: Any, parameters: int, source: str) -> DecoderFacts:
    """The facts of a decoder by its config's standard names."""
    text = config.get_text_config(decoder=True)
    heads = int(text.num_attention_heads)
    hidden = int(text.hidden_size)
    return DecoderFacts(
        kind="decoder",
        vocabulary=int(text.vocab_size),
        hidden=hidden,
        layers=int(text.num_hidden_layers),
        heads=heads,
        kv_heads=_kv_heads(text, heads),
        head_size=int(getattr(text, "head_dim", None) or hidden // heads),
        positions=int(getattr(text, "max_position_embeddings", None) or 0),
        source=source,
        parameters=parameters,
    )


def _kv_heads(config: Any, heads: int) -> int:
    grouped = getattr(config, "new_decoder_architecture", False)
    if getattr(config, "multi_query", False) and not grouped:
        return 1
    for key in ("num_key_value_heads", "num_kv_heads"):
        if getattr(config, key, None):
            return int(getattr(config, key))
    return heads


def generation(folder: Path) -> dict[str, Any]:
    """generation_config.json, with config.json's own end of text where it names none.

    Raises CheckpointError when one is damaged.
    """
    settings, own = (folder / name for name in ("generation_config.json", CONFIG))
    found = read_json(settings) if settings.is_file() else {}
    named = {key: value for key, value in found.items() if value is not None}
    return (end_ids(read_json(own)) if own.is_file() else {}) | named
