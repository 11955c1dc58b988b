"""carry-chunk: a denoiser of two consecutive chunks as one of a chunk, behind the one before."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graftline.errors import LawBroken, NotApplicable
from graftline.evaluate import Feed
from graftline.facts import DenoiserFacts, read_facts, write_facts
from graftline.law import Evidence
from graftline.passes.anchors.denoiser import AUXILIARY, PREDICTION, TIMESTEP, UNCONDITIONAL
from graftline.passes.anchors.roles import FLOATS
from graftline.passes.graph.cut import drop_ports, keep_outputs
from graftline.passes.graph.emit import Emit, new_input, new_output
from graftline.passes.graph.ports import input_of, output_of
from graftline.passes.graph.splice import splice
from graftline.passes.graph.text import write
from graftline.passes.laws.chunked import PAST_LATENTS, PAST_NOISE, behind, halves
from graftline.passes.laws.compare import Comparison, activation_dtype
from graftline.passes.pipeline.graft import Evaluate, Graft, Law
from graftline.ports import Port, by_role, read_ports, write_ports
from graftline.roles import BEGUN, CONTEXT, FRESH, LATENTS, PAST, SAMPLE
from graftline.sampling.chunks import Chunks

_ROWS = """
    rows = Reshape (begun, per_sample)
    each = Reshape (begun, per_latents)
    both = Concat <axis = 1> (Where (each, past_latents, latents), latents)
"""
_NOISED = "before = Add (past, Mul (past_noise, sigma))"
_PAIRED = "pair = Concat <axis = 3> (Where (rows, before, sample), sample)"
_LEVEL = "level = Where (begun, sigma, timestep)"
"""A row's first chunk stands in the place of the chunk before, as noisy as the step."""
_OWN = """
    first, second = Split <axis = 3, num_outputs = 2> (said)
    own = Where (rows, second, first)
"""
_CARRIED = "begun_next = Or (begun, true)"


def causal(
    graft: Graft, before: ir.Model, after: ir.Model, feed: Feed, evaluate: Evaluate
) -> Evidence:
    """The host says the same of the first chunk, whatever the second is, and whatever latents and
    noise it has: so a sequence's first chunk can be drawn there without a second."""
    chunks = chunks_of(before, graft.name())
    other = dict(feed)
    for name, axis in ((SAMPLE, 3), (chunks.latents, 1)):
        first, second = halves(feed[name], axis)
        other[name] = np.concatenate([first, np.roll(second, 1, axis) * 2], axis, dtype=first.dtype)
    if chunks.timestep:
        other[TIMESTEP] = feed[TIMESTEP] / 2
    pair = (halves(evaluate(before, one)[PREDICTION], 3)[0] for one in (other, feed))
    comparison = Comparison(graft.name(), "causal", activation_dtype(after))
    gap = comparison.measure(PREDICTION, *pair)
    if not gap <= comparison.limit:
        what = f"the first chunk changes with the second, by {gap:.3g}: the network is not causal"
        raise LawBroken(graft.name(), "causal", f"'{PREDICTION}'", what)
    return Evidence("the first chunk sees nothing of the second", gap, comparison.limit)


@dataclass(frozen=True)
class CarryChunk(Graft):
    """Calls a denoiser of two consecutive chunks for one of them: the chunk drawn before stands in
    front, clean or noised, and what is said of the second is kept (Music2Latent2, Pasini et al.,
    arXiv 2501.17578).

    Adds inputs past [B, C, H, W], the chunk before, with its latents and unit noise, and begun [B],
    whether a row has one; without, its chunk is drawn in front. Sample, latents and prediction are
    those of one chunk. Neutral: the host, called on both chunks.
    """

    laws: ClassVar[tuple[Law, ...]] = (causal,)

    def requires(self, model: ir.Model) -> None:
        ports, chunks = read_ports(model), chunks_of(model, self.name())
        sample, said = input_of(model, SAMPLE), output_of(model, PREDICTION)
        step = input_of(model, TIMESTEP)
        if sample is None or said is None or step is None or by_role(ports, BEGUN):
            raise NotApplicable(
                f"{self.name()} needs a denoiser of two chunks and its time step; name it once, "
                "before collapse-loop"
            )
        if extra := by_role(ports, AUXILIARY, "out"):
            raise NotApplicable(
                f"{self.name()}: '{extra[0].name}' would be of both chunks; put prune-branch before"
            )
        if by_role(ports, UNCONDITIONAL):
            raise NotApplicable(f"{self.name()}: chunks are not guided; leave out fold-guidance")
        if list(sample.shape or ())[3:] != [2 * chunks.width]:
            raise NotApplicable(
                f"{self.name()}: chunks.width is {chunks.width}, so that a sample is "
                f"{2 * chunks.width} wide, and the graph's is {_told(sample)}; export it for two "
                "chunks"
            )
        if str(sample.shape) != str(said.shape):
            raise NotApplicable(
                f"{self.name()}: the sample {_told(sample)} and the prediction {_told(said)} differ"
            )
        _check_latents(model, chunks, self.name())
        if chunks.timestep:
            _check_level(model, chunks, self.name())

    def apply(self, model: ir.Model) -> None:
        graph, chunks, part = model.graph, chunks_of(model, self.name()), model.clone()
        known = {p.name: p for p in read_ports(model)}
        types = {v.name or "": v.dtype for v in (*graph.inputs, *graph.outputs)}
        keep_outputs(part, [PREDICTION])
        drop_ports(model, [*filter(None, (SAMPLE, chunks.latents, chunks.timestep, PREDICTION))])
        ports, values = list(read_ports(model)), {v.name or "": v for v in graph.inputs}
        latents = known[chunks.latents]
        shapes = {
            SAMPLE: (*known[SAMPLE].shape[:3], chunks.width),
            LATENTS: (latents.shape[0], _half(latents), *latents.shape[2:]),
        }

        def added(name: str, role: str, like: str, state: bool = False) -> None:
            kind, shape = types[SAMPLE if like == SAMPLE else chunks.latents], shapes[like]
            assert kind is not None
            values[name] = new_input(graph, name, kind, shape)
            port = Port(name, role, "in", kind.numpy().name, shape)
            ports.append(replace(port, state="running") if state else port)

        added(LATENTS, LATENTS, LATENTS)
        added(SAMPLE, SAMPLE, SAMPLE)
        added(PAST, PAST, SAMPLE, state=True)
        added(PAST_LATENTS, CONTEXT, LATENTS, state=True)
        if is_noised(chunks):
            added(PAST_NOISE, FRESH, SAMPLE)
        batch = known[SAMPLE].shape[:1]
        values[BEGUN] = new_input(graph, BEGUN, ir.DataType.BOOL, batch)
        ports.append(Port(BEGUN, BEGUN, "in", "bool", batch, state="running"))
        write_ports(model, ports)
        said = self._called(model, part, chunks, values)
        emit, kind = Emit(graph, self.name()), types[PREDICTION]
        assert kind is not None
        rows = {"said": said, "begun": values[BEGUN], "rows": values["rows"]}
        (own,) = write(emit, _OWN, rows, ["own"])
        new_output(graph, own, PREDICTION, kind, shapes[SAMPLE])
        ports.append(Port(PREDICTION, PREDICTION, "out", kind.numpy().name, shapes[SAMPLE]))
        (begun,) = write(emit, _CARRIED, {"begun": values[BEGUN]}, ["begun_next"])
        left = emit.op("Identity", [values[LATENTS]])
        for value, name in ((left, PAST_LATENTS), (begun, BEGUN)):
            port = next(p for p in ports if p.name == name)
            dtype = values[name].dtype
            assert dtype is not None
            new_output(graph, value, f"{name}.next", dtype, port.shape)
            ports.append(replace(port, name=f"{name}.next", direction="out", mirror=name))
        write_ports(model, ports)
        facts = read_facts(model)
        assert isinstance(facts, DenoiserFacts)
        write_facts(model, replace(facts, width=chunks.width))

    def _called(
        self, model: ir.Model, part: ir.Model, chunks: Chunks, values: dict[str, ir.Value]
    ) -> ir.Value:
        """What the network says of both chunks; `values` gets which rows have one before."""
        emit, sample = Emit(model.graph, self.name()), values[SAMPLE]
        assert sample.dtype is not None
        ones = [1] * (len(values[LATENTS].shape or ()) - 1)
        values["per_sample"] = emit.const("per.sample", [-1, 1, 1, 1], np.int64)
        values["per_latents"] = emit.const("per.latents", [-1, *ones], np.int64)
        given = {n.replace(".", "_"): v for n, v in values.items()}
        values["rows"], both = write(emit, _ROWS, given, ["rows", "both"])
        given |= {"rows": values["rows"], "before": values[PAST]}
        if chunks.timestep:
            noise = np.asarray(chunks.noise, sample.dtype.numpy())
            given["sigma"] = emit.const("chunks.noise", noise)
        else:
            step = emit.op("Cast", [values[TIMESTEP]], to=sample.dtype.value)
            given["sigma"] = emit.op("Reshape", [step, values["per_sample"]])
        if is_noised(chunks):
            (given["before"],) = write(emit, _NOISED, given, ["before"])
        (pair,) = write(emit, _PAIRED, given, ["pair"])
        host = values | {SAMPLE: pair, chunks.latents: both}
        if chunks.timestep:
            (host[chunks.timestep],) = write(emit, _LEVEL, given, ["level"])
        said = splice(model.graph, part, host, "pair")[PREDICTION]
        said.shape = None
        return said

    def dropped(self, before: ir.Model) -> frozenset[str]:
        chunks = chunks_of(before, self.name())
        return frozenset(filter(None, (chunks.latents, chunks.timestep)))

    def reference(self, before: ir.Model, feed: Feed, evaluate: Evaluate) -> Feed:
        """The host on both chunks, the first of which has a chunk before in some rows."""
        chunks = chunks_of(before, self.name())
        call = behind(lambda given: evaluate(before, feed | given), chunks)
        return evaluate(before, feed) | call(feed | _given(feed, chunks))

    def neutral(self, feed: Feed, after: ir.Model) -> Feed:
        given = _given(feed, chunks_of(after, self.name()))
        names = {v.name for v in after.graph.inputs}
        return {name: value for name, value in (feed | given).items() if name in names}


def chunks_of(model: ir.Model, who: str) -> Chunks:
    """What two chunks are. Raises NotApplicable where nobody says it."""
    facts = read_facts(model)
    if not isinstance(facts, DenoiserFacts) or facts.chunks is None or facts.sampling is None:
        raise NotApplicable(
            f"{who} does not know the chunks of a sample; say them, and [sampling], with --spec"
        )
    if facts.sampling.scheduler != "consistency":
        raise NotApplicable(
            f"{who}: sampling.scheduler is {facts.sampling.scheduler}; how noisy a chunk is, is "
            "its time step for the scheduler consistency alone"
        )
    return facts.chunks


def is_noised(chunks: Chunks) -> bool:
    """Whether the chunk before gets noise."""
    return not chunks.timestep or chunks.noise > 0


def _check_latents(model: ir.Model, chunks: Chunks, who: str) -> None:
    """Raise NotApplicable unless there are latents of two chunks."""
    value = next(v for v in model.graph.inputs if v.name == chunks.latents)
    long = list(value.shape or ())[1:2]
    if not long or not isinstance(long[0], int) or long[0] % 2:
        raise NotApplicable(
            f"{who}: chunks.latents '{chunks.latents}' {_told(value)} are not those of two chunks: "
            "the second axis must be an even number; export it for two chunks"
        )


def _check_level(model: ir.Model, chunks: Chunks, who: str) -> None:
    """Raise NotApplicable unless the level of the chunk before is a number for each row, of the
    sample's type."""
    value = next(v for v in model.graph.inputs if v.name == chunks.timestep)
    others = input_of(model, TIMESTEP), input_of(model, SAMPLE)
    types = {one.dtype for one in (value, *others) if one is not None}
    if len(value.shape or ()) != 1 or len(types) != 1 or value.dtype not in FLOATS:
        raise NotApplicable(
            f"{who}: chunks.timestep '{chunks.timestep}' {_told(value)} must be [B], of the "
            "sample's and the time step's type"
        )


def _half(port: Port) -> int:
    long = port.shape[1]
    assert isinstance(long, int)
    return long // 2


def _told(value: ir.Value) -> str:
    """Its shape and type."""
    kind = "?" if value.dtype is None else value.dtype.numpy().name
    return f"[{', '.join(map(str, value.shape or ()))}] {kind}"


def _given(feed: Feed, chunks: Chunks) -> Feed:
    """From a feed of two chunks: the first of all rows is the chunk before in every second row."""
    (past, sample), (old, latents) = halves(feed[SAMPLE], 3), halves(feed[chunks.latents], 1)
    random = np.random.default_rng(0)
    return {
        SAMPLE: sample, LATENTS: latents, PAST: past, PAST_LATENTS: old,
        PAST_NOISE: random.standard_normal(past.shape).astype(past.dtype),
        BEGUN: np.arange(len(past)) % 2 == 0,
    }  # fmt: skip
