"""A whole generated decoder: inputs, embedding, blocks, head, outputs; and what it is fed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx

from tests.generated.attention import Cache, attend
from tests.generated.builder import BOOL, FLOAT, INT32, INT64, Array, Builder, Feed
from tests.generated.linear import feed_forward, linear
from tests.generated.masks import Ports
from tests.generated.norms import add_norm, norm
from tests.generated.oddities import changed_positions, changed_stream
from tests.generated.settings import Settings

NAMES = {
    "usual": {
        "ids": "input_ids", "padding": "attention_mask", "square": "attention_mask_4d",
        "positions": "position_ids", "keep": "num_logits_to_keep", "logits": "logits",
        "past": "past_key_values.{i}.{part}", "present": "present.{i}.{part}",
    },
    "own": {
        "ids": "ids", "padding": "valid", "square": "may_see", "positions": "places",
        "keep": "wanted", "logits": "scores", "past": "cache_{i}_{part}",
        "present": "cache_{i}_{part}_out",
    },
    "numbered": {
        "ids": "in.0", "padding": "in.1", "square": "in.2", "positions": "in.3", "keep": "in.4",
        "logits": "out.0", "past": "in.{part}.{i}", "present": "out.{part}.{i}",
    },
}  # fmt: skip
TYPES = {"int64": INT64, "int32": INT32, "bool": BOOL, "float32": FLOAT}


@dataclass(frozen=True)
class Generated:
    """A file's content, what a run of whole sequences [B, N] feeds it, and its logits' name."""

    settings: Settings
    model: onnx.ModelProto
    feeds: dict[str, Feed]
    logits: str

    def feed(self, ids: Array) -> dict[str, Array]:
        """Every input for whole sequences of token ids."""
        return {name: make(ids) for name, make in self.feeds.items()}


def generate(s: Settings) -> Generated:
    """The decoder that these settings describe."""
    b = Builder(
        s.opset, np.random.default_rng(s.seed), s.half, s.stored_half, s.constants, s.names
    )
    names = NAMES[s.port_names]
    caches = _inputs_of_caches(b, s, names)
    p = _ports(b, s, names, caches)
    if "order_of_inputs" in s.odd:
        b.inputs.reverse()
    x, table = _embed(b, s, p)
    states = [x]
    x, delta = x, None
    for layer, cache in zip(s.layers, caches, strict=True):
        x, delta = _block(b, s, layer, p, x, delta, cache)
        states.append(x)
    x = _last_norm(b, s, x, delta)
    _outputs(b, s, names, p, x, table, caches, states)
    return Generated(s, b.model(), b.feeds, names["logits"])


def _inputs_of_caches(b: Builder, s: Settings, names: dict[str, str]) -> list[Cache]:
    if not s.cached:
        return [Cache() for _ in s.layers]

    def empty(ids: Array) -> Array:
        shape = [0 if isinstance(d, str) else d for d in _cache_shape(s, "past")]
        return np.zeros((ids.shape[0], *shape[1:]), b.number_type)

    shape = _cache_shape(s, "past")
    made: list[Cache] = []
    for i in range(len(s.layers)):
        parts = [names["past"].format(i=i, part=part) for part in ("key", "value")]
        made.append(Cache(*(b.input(n, b.float_type, shape, empty) for n in parts)))
    return made


def _cache_shape(s: Settings, rows: str) -> tuple[int | str, ...]:
    if s.cache == "rows_first":
        return ("batch", rows, s.kv_heads, s.head_size)
    return ("batch", s.kv_heads, rows, s.head_size)


def _ports(b: Builder, s: Settings, names: dict[str, str], caches: list[Cache]) -> Ports:
    kind = np.int32 if s.ids == "int32" else np.int64
    ids = b.input(names["ids"], TYPES[s.ids], ("batch", "length"), lambda x: x.astype(kind))
    batch, length = b.size(ids, 0), b.size(ids, 1)
    past = b.size(caches[0].key, 1 if s.cache == "rows_first" else 2) if s.cached else b.ints(0)
    total = b.op("Add", past, length) if s.cached else length
    p = Ports(ids, batch, length, past, total)
    spread = "total" if s.cached else "length"
    if s.padding:
        wanted = np.dtype(s.padding)
        p.padding = b.input(
            names["padding"], TYPES[s.padding], ("batch", spread),
            lambda x: np.ones(x.shape, wanted),
        )  # fmt: skip
    if s.mask_input:
        p.square = b.input(
            names["square"], TYPES[s.mask_input], ("batch", 1, "length", spread), _square(s)
        )
    p.positions = _positions(b, s, names, p)
    return p


def _square(s: Settings) -> Feed:
    """Causal, or all-visible for a bidirectional host."""

    def feed(ids: Array) -> Array:
        count = ids.shape[1]
        lower = np.ones((count, count), bool) if "open_square" in s.odd else np.tri(count) > 0
        lower = np.broadcast_to(lower, (ids.shape[0], 1, count, count))
        if s.mask_input == "bool":
            return lower.copy()
        return np.where(lower, np.float32(0), np.float32(-3.4e38))

    return feed


def _positions(b: Builder, s: Settings, names: dict[str, str], p: Ports) -> str:
    """Positions [B, N] int64 of the new rows."""
    if s.positions in ("input", "input32"):
        wide = s.positions == "input"
        out = b.input(
            names["positions"], INT64 if wide else INT32, ("batch", "length"),
            lambda x: np.tile(np.arange(x.shape[1], dtype=np.int64 if wide else np.int32),
                              (x.shape[0], 1)),
        )  # fmt: skip
        out = out if wide else b.op("Cast", out, to=INT64)
    elif s.positions == "cumsum":
        ones = b.op("Cast", p.padding, to=INT64)
        counted = b.op("Sub", b.op("CumSum", ones, b.whole(1)), b.whole(1))
        out = b.op("Slice", b.op("Max", counted, b.whole(0)), p.past, p.total, b.ints(1))
    else:
        counted = b.op("Range", b.scalar(p.past), b.scalar(p.total), b.whole(1))
        shape = b.op("Concat", p.batch, p.length, axis=0)
        out = b.op("Expand", b.unsqueeze(counted, 0), shape)
    return changed_positions(b, s, p, out)


def _embed(b: Builder, s: Settings, p: Ports) -> tuple[str, str]:
    """The stream [B, N, H] and the table."""
    table = b.weight(s.vocabulary, s.hidden, scale=1.0)
    x = b.op("Gather", table, p.ids)
    if s.embedding_scale != 1.0:
        x = b.op("Mul", x, b.number(s.embedding_scale))
    if s.learned >= 0:
        held = b.weight(s.longest + s.learned, s.hidden, scale=0.7)
        at = b.op("Add", p.positions, b.whole(s.learned)) if s.learned else p.positions
        x = b.op("Add", x, b.op("Gather", held, at))
    return changed_stream(b, s, p, x), table


def _block(
    b: Builder, s: Settings, layer: object, p: Ports, x: str, delta: str | None, cache: Cache
) -> tuple[str, str | None]:
    """One block: the stream, and what is still to be added to it."""

    def scaled(part: str) -> str:
        return part if s.residual_scale == 1.0 else b.op("Mul", part, b.number(s.residual_scale))

    if s.place == "post":
        heard = scaled(attend(b, s, layer, p, x, cache))
        _, x = add_norm(b, s, x, heard, s.hidden)
        _, x = add_norm(b, s, x, scaled(feed_forward(b, s, x)), s.hidden)
        return x, None
    x, rows = add_norm(b, s, x, delta, s.hidden)
    heard = attend(b, s, layer, p, rows, cache)
    if s.parallel:
        both = b.op("Add", heard, feed_forward(b, s, rows))
        return x, scaled(both)
    if s.place == "sandwich":
        heard = norm(b, s, heard, s.hidden)
    x, rows = add_norm(b, s, x, scaled(heard), s.hidden)
    made = feed_forward(b, s, rows)
    if s.place == "sandwich":
        made = norm(b, s, made, s.hidden)
    return x, scaled(made)


def _last_norm(b: Builder, s: Settings, x: str, delta: str | None) -> str:
    if s.place == "post":
        return x
    return add_norm(b, s, x, delta, s.hidden)[1]


def _outputs(
    b: Builder, s: Settings, names: dict[str, str], p: Ports, x: str, table: str,
    caches: list[Cache], states: list[str],
) -> None:  # fmt: skip
    wanted = [(lambda: b.output(*_head(b, s, names, p, x, table)))]
    if s.extra_outputs:
        shape_of = ("batch", "length", s.hidden)
        wanted.append(lambda: b.output(states[-1], "hidden_states", b.float_type, shape_of))
    shape = _cache_shape(s, "total")
    for i, cache in enumerate(caches if s.cached else []):
        for part, value in (("key", cache.new_key), ("value", cache.new_value)):
            name = names["present"].format(i=i, part=part)
            wanted.append(lambda v=value, n=name: b.output(v, n, b.float_type, shape))
    at = min(s.logits_at, len(wanted) - 1)
    wanted.insert(at, wanted.pop(0))
    for write in wanted:
        write()


def _head(
    b: Builder, s: Settings, names: dict[str, str], p: Ports, x: str, table: str
) -> tuple[str, str, int, tuple[str | int, ...]]:
    """The logits, their name, type and shape."""
    length: tuple[str | int, ...] = ("batch", "length")
    if s.keep_logits:
        kept = b.input(names["keep"], INT64, (), lambda x: np.asarray(0, np.int64))
        start = b.unsqueeze(b.op("Neg", kept), 0)
        x = b.op("Slice", x, start, b.ints(np.iinfo(np.int64).max), b.ints(1))
        length = ("batch", "kept")
    if "last_row" in s.odd:
        x, length = b.slice(x, -1, np.iinfo(np.int64).max, 1), ("batch", 1)
    if s.head == "none":
        return x, names["logits"], b.float_type, (*length, s.hidden)
    if s.head == "two_labels":
        labels = b.op("MatMul", b.op("Gather", x, b.whole(-1), axis=1), b.weight(s.hidden, 2))
        return labels, names["logits"], b.float_type, ("batch", 2)
    width = 5 if s.head == "token_labels" else s.vocabulary
    if s.tied and s.head == "lm":
        logits = b.op("Mul", b.op("MatMul", x, b.swap(table, 1, 0)), b.number(s.hidden**-0.5))
    else:
        logits = linear(b, s, x, s.hidden, width, sharp=True)
    if s.head_bias:
        logits = b.op("Add", logits, b.weight(width, scale=0.3))
    if s.logit_scale != 1.0:
        logits = b.op("Mul", logits, b.number(s.logit_scale))
    if s.cap_logits:
        bent = b.op("Tanh", b.op("Div", logits, b.number(s.cap_logits)))
        logits = b.op("Mul", bent, b.number(s.cap_logits))
    if b.half:
        logits = b.op("Cast", logits, to=FLOAT)
    return logits, names["logits"], FLOAT, (*length, width)
