"""Hugging Face folders: config.json and safetensors become a graph that points into the weights."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from graftline.errors import CheckpointError, NotApplicable
from graftline.models.host import Host, Watch, silent
from graftline.models.mask_token import mask_token
from graftline.models.weights import WeightSource, fill, read_headers
from graftline.ports import Facts, write_facts

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
)
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class HfCheckpoint:
    """A folder with config.json and safetensors, whole, sharded or tied."""

    path: Path
    name: str = ""
    """What to call the source in the facts: the folder's name unless given."""

    def host(self, full_export: bool = False, watch: Watch | None = None) -> Host:
        """Export the graph from the config alone, then point its initializers into the files."""
        tell = watch or silent
        config = read_config(self.path)
        files = weight_files(self.path)
        tell(f"checking {len(files)} weight files of {self.path.name}")
        source = read_headers(files)
        built = build(config, full_export, tell)
        if not _covers(built, source):
            from graftline.models.converted import converted

            source = read_headers([converted(config, files, self.path / "config.json", tell)])
        point(built, source)
        facts = facts_of(config, built.parameters, self.name or self.path.name)
        left = max(facts.positions - built.first, 0)
        facts = replace(facts, mask_token=mask_token(self.path), positions=left)
        write_facts(built.graph, facts)
        files = tokenizer_files(self.path)
        return Host("decoder", built.graph, facts, files, generation(self.path), source)


@dataclass(frozen=True)
class Built:
    """A raw graph without weights. `aliases`: an initializer's tied names, its own first."""

    graph: ir.Model
    weights: frozenset[str]
    aliases: dict[str, tuple[str, ...]]
    persistent: frozenset[str]
    parameters: int
    prefix: str
    first: int
    """The position of a text's first token in the model's own tables."""


def read_config(folder: Path) -> Any:
    """The transformers config. Raises CheckpointError when missing, damaged or unknown."""
    file = folder / "config.json"
    try:
        raw = json.loads(file.read_text("utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder}: no config.json; give a Hugging Face folder") from error
    except ValueError as error:
        raise CheckpointError(f"{file}: not JSON ({error}); download it again") from error
    import transformers

    try:
        return transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        kind = raw.get("model_type") if isinstance(raw, dict) else None
        known = "not known to" if kind else "missing, as needed by"
        reason = str(error).strip().splitlines()[0]
        unknown = ("does not recognize", "trust_remote_code")
        if kind and not any(words in str(error) for words in unknown):
            raise CheckpointError(f"{file}: {reason}") from error
        raise CheckpointError(
            f"{file}: model_type {kind!r} is {known} transformers {transformers.__version__}; "
            "export the model to ONNX yourself and give the .onnx file"
        ) from error


def weight_files(folder: Path) -> list[Path]:
    """A folder's safetensors files, by its index where there is one. Raises CheckpointError."""
    index = folder / INDEX
    if index.is_file():
        try:
            names = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
        except (ValueError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{index}: damaged ({error!r}); download it again") from error
        bad = [n for n in names if not isinstance(n, str) or Path(n).name != n]
        if bad:
            raise CheckpointError(f"{index}: shard {bad[0]!r} is not a plain file name; refused")
        missing = sorted(n for n in names if not (folder / n).is_file())
        if missing:
            raise CheckpointError(
                f"{folder}: {len(missing)} of {len(names)} shards missing, first {missing[0]}; "
                "download the checkpoint again"
            )
        return [folder / n for n in sorted(names)]
    single = folder / "model.safetensors"
    if single.is_file():
        return [single]
    pickled = sorted(p.name for p in folder.glob("*.bin") if p.name.startswith("pytorch_model"))
    if pickled:
        from graftline.models.converted import unpickled

        return [unpickled(folder)]
    raise CheckpointError(f"{folder}: no model.safetensors and no {INDEX}; download the weights")


def build(config: Any, full_export: bool, tell: Watch) -> Built:
    """The raw graph of a config: the distinct layers exported, the rest stamped out."""
    from graftline.models.export import empty_model, export
    from graftline.models.kinds import kinds, layer_path, prefix_length, shortened
    from graftline.models.stamp import stamp

    if getattr(config, "is_encoder_decoder", False):
        raise CheckpointError(
            f"config.json: model_type '{config.model_type}' is an encoder-decoder, which graftline "
            "does not host yet; give a decoder"
        )
    whole = empty_model(config)
    if getattr(whole, "_is_stateful", False):  # by which transformers knows what has no rollback
        raise CheckpointError(
            f"config.json: {type(whole).__name__} keeps a running state (state-space or recurrent "
            "blocks), which graftline does not host yet; give a decoder whose blocks all attend "
            "over keys and values"
        )
    layers = int(whole.config.num_hidden_layers)
    path = layer_path(whole, layers)
    of = kinds(whole, path) if path else []
    some = prefix_length(of) if path else layers
    if path and some < layers and not full_export:
        part = empty_model(shortened(config, some))
        if kinds(part, path) == of[:some]:
            exported = export(part, tell)
            try:
                tell(f"stamping {layers} layers from {some}")
                added = stamp(exported.model, path, of, some)
            except NotApplicable as error:
                tell(f"exporting all {layers} layers, because {error}")
            else:
                buffers = _fill_buffers(exported.model, whole, added)
                fresh = {n for n in added if n not in buffers}
                return _built(exported.model, exported.weights | fresh, whole)
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
    from graftline.models.export import first_position

    groups: dict[int, list[str]] = {}
    count = 0
    for name, value in whole.named_parameters(remove_duplicate=False):
        if id(value) not in groups:
            count += int(value.numel())
        groups.setdefault(id(value), []).append(name)
    aliases = {n: (n, *(o for o in g if o != n)) for g in groups.values() for n in g}
    saved = set(whole.state_dict(keep_vars=True))
    buffers = {n for n, _ in whole.named_buffers() if n in saved}
    persistent = frozenset(n for n in buffers if n in graph.graph.initializers)
    prefix, first = whole.base_model_prefix, first_position(whole)
    return Built(graph, weights, aliases, persistent, count, prefix, first)


def _key(built: Built, name: str, source: WeightSource) -> str | None:
    """The checkpoint's name of an initializer: its own, a tied one, or without the base prefix."""
    for alias in built.aliases.get(name, (name,)):
        bare = alias.removeprefix(built.prefix + ".")
        for key in (alias, bare):
            if key in source.stored:
                return key
    return None


def _covers(built: Built, source: WeightSource) -> bool:
    """True when every weight is in the files under its name; else transformers must convert."""
    return all(_key(built, name, source) is not None for name in built.weights)


def point(built: Built, source: WeightSource) -> None:
    """Fill the graph's initializers from the checkpoint, unread. Raises CheckpointError."""

    def lookup(name: str, shape: tuple[int, ...], dtype: ir.DataType) -> ir.TensorProtocol:
        return source.tensor(_key(built, name, source) or name, name, shape, dtype)

    stored = [n for n in built.persistent if _key(built, n, source) is not None]
    fill(built.graph, [*sorted(built.weights), *sorted(stored)], lookup)


def facts_of(config: Any, parameters: int, source: str) -> Facts:
    """The facts of a decoder by its config's standard names."""
    text = config.get_text_config(decoder=True)
    heads = int(text.num_attention_heads)
    hidden = int(text.hidden_size)
    return Facts(
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


def tokenizer_files(folder: Path) -> list[Path]:
    """The tokenizer's files in the folder, in a fixed order."""
    return [folder / n for n in TOKENIZER_FILES if (folder / n).is_file()]


def generation(folder: Path) -> dict[str, Any]:
    """generation_config.json, or nothing. Raises CheckpointError when it is damaged."""
    file = folder / "generation_config.json"
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text("utf-8"))
        return dict(found)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{file}: damaged ({error}); download it again") from error
