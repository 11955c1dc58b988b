"""Rounding that looks at activations: what it reads, what it chooses, and what it does without."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from graftline.build.compiled import Compiler, compile_graph, compile_stages
from graftline.build.pipelines import FRONT
from graftline.build.plan import Plan
from graftline.contrib_ops.quantized import dequantize
from graftline.errors import LawBroken, NotApplicable
from graftline.evaluate import run
from graftline.kinds.decoder import text
from graftline.models.decoder import TinyDecoder
from graftline.owners import DRAFT
from graftline.passes.graph.activations import activations
from graftline.passes.lower.quantize import calibration, rounding
from graftline.passes.lower.quantize.block_codes import quantize_rows
from graftline.passes.lower.quantize.calibration import losses, nearest_codes
from graftline.passes.lower.quantize.quantize import Quantize, closeness
from graftline.passes.lower.quantize.rounding import Moments, compensated
from graftline.passes.lower.quantize.targets import targets_of
from graftline.passes.pipeline.sample import SAMPLE, Sample
from graftline.ports import Port, write_ports
from tests.passes.lower.quantize.hosts import TOKENS, distance, grafted, host, made, weight_of
from tests.rounding import assert_same_sums

INT4 = "quantize{bits=4,algorithm=gptq,block=0,head_bits=8,wide=0.4}"
DECODER = TinyDecoder(layers=3, hidden=64, mlp=96, vocabulary=80, positions=128)


def silent(line: str) -> None:
    """Hear nothing."""


def looked_at(model: ir.Model, **more: Any) -> ir.Model:
    """A small host with a sample and a port for its logits."""
    write_ports(model, [Port("logits", "logits", "out", "float32", ("B", "N", 40))])
    model.meta[SAMPLE] = Sample(TOKENS, TOKENS, silent, **more)
    return model


def correlated(count: int, width: int, seed: int = 0) -> np.ndarray:
    """Inputs that hang together, as activations do."""
    random = np.random.default_rng(seed)
    mixed = random.standard_normal((count, 12)) @ random.standard_normal((12, width))
    return (mixed + 0.3 * random.standard_normal((count, width))).astype(np.float32)


@pytest.mark.parametrize("block", [16, 32, 64])
def test_compensation_keeps_products_better_than_the_nearest_codes(block: int) -> None:
    inputs, others = correlated(600, 128), correlated(600, 128)[::-1]
    rows = np.random.default_rng(5).standard_normal((40, 128)).astype(np.float32)
    near = quantize_rows(rows, 4, block, "rtn")
    good = compensated(rows, Moments(inputs, block), 4, block)
    errors = [
        float(np.linalg.norm(others @ (dequantize(p.data.reshape(40, -1), p.scales, p.zeros, 128,
                                                  block, 4) - rows).T)) for p in (near, good)
    ]  # fmt: skip
    assert errors[1] < 0.75 * errors[0]


def test_columns_with_the_most_power_are_rounded_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """What they lose is made good by all others: products are nearer than in the order of the
    file, in which the strongest inputs come last here."""
    strength = np.linspace(0.1, 3, 128).astype(np.float32)
    inputs, others = (part * strength for part in np.split(correlated(1200, 128), 2))
    rows = np.random.default_rng(5).standard_normal((40, 128)).astype(np.float32)

    def error(moments: Moments) -> float:
        packed = compensated(rows, moments, 4, 32)
        near = dequantize(packed.data.reshape(40, -1), packed.scales, packed.zeros, 128, 32, 4)
        return float(np.linalg.norm(others @ (near - rows).T))

    moments = Moments(inputs, 32)
    assert moments.order[:32].min() == 96
    ordered = error(moments)
    monkeypatch.setattr(rounding, "_by_power", lambda power, block: np.arange(len(power)))
    assert ordered < 0.9 * error(Moments(inputs, 32))


def test_inputs_that_say_nothing_leave_the_nearest_codes_of_the_best_range() -> None:
    rows = np.random.default_rng(5).standard_normal((40, 64)).astype(np.float32)
    packed = compensated(rows, Moments(np.zeros((9, 64), np.float32), 32), 4, 32)
    near = dequantize(packed.data.reshape(40, -1), packed.scales, packed.zeros, 64, 32, 4)
    plain = quantize_rows(rows, 4, 32, "rtn")
    rtn = dequantize(plain.data.reshape(40, -1), plain.scales, plain.zeros, 64, 32, 4)
    assert distance(near, rows) <= distance(rtn, rows)


def test_activations_are_those_of_one_run() -> None:
    model = host()
    made_on_the_way = [n.outputs[0] for n in model.graph if n.outputs[0].name in ("x2", "x0")]
    model.graph.outputs.extend(made_on_the_way)
    whole = run(model, TOKENS)
    seen = dict(activations(model, TOKENS, ["x2", "logits", "x0", "tokens"]))
    assert list(seen) == ["tokens", "x0", "x2", "logits"]
    for name in ("x0", "x2", "logits"):
        np.testing.assert_array_equal(seen[name], whole[name])


def test_the_kernel_computes_what_the_integers_of_mixed_widths_mean() -> None:
    after = looked_at(host())
    Quantize(algorithm="gptq", block=0, head_bits=8, accuracy=0).apply(after)
    assert [n.attributes["bits"].as_int() for n in made(after)] == [4, 4, 8]
    assert [n.attributes["block_size"].as_int() for n in made(after)] == [32, 32, 64]
    after.meta.clear()
    session = onnxruntime.InferenceSession(
        ir.to_proto(after).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [o.name for o in session.get_outputs()]
    engine = dict(zip(names, session.run(None, TOKENS), strict=True))
    up, down, table = (weight_of(n) for n in made(after))
    x3 = np.maximum(host().graph.initializers["embed"].const_value.numpy()[TOKENS["tokens"]] @ up.T, 0)  # type: ignore[union-attr]  # noqa: E501
    assert_same_sums(engine["logits"], x3 @ down.T @ table.T, terms=64 + 96 + 64)
    assert_same_sums(run(after, TOKENS)["logits"], engine["logits"], terms=64 + 96 + 64)


def test_what_it_looked_at_is_what_its_law_compares() -> None:
    graft, before, after = Quantize(algorithm="gptq"), looked_at(host()), looked_at(host())
    graft.apply(after)
    told = closeness(graft, before, after).what
    assert "3 of 4 bits gptq" in told
    assert "products off by" in told
    down = made(after)[1]
    value = down.inputs[1]
    codes = value.const_value.numpy().copy()  # type: ignore[union-attr]
    codes[-1] = (codes[-1] & 0x0F) | 0x70  # every second code of one row
    value.const_value = ir.tensor(codes)  # type: ignore[union-attr]
    with pytest.raises(LawBroken, match=r"closeness.*'down'"):
        closeness(graft, before, after)


def test_products_are_compared_for_the_inputs_that_their_integers_were_chosen_for() -> None:
    """Another graph of the host, a route: the same integers, and inputs that are another text's."""
    model, graft = looked_at(host()), Quantize(bits=4, block=0, algorithm="gptq")
    whole = model.clone()
    whole.meta[SAMPLE] = sample = model.meta[SAMPLE]
    graft.apply(whole)
    closeness(graft, model, whole)
    feed = {name: np.full_like(value, 38) for name, value in TOKENS.items()}
    whole.meta[SAMPLE] = replace(sample, feed=feed, probe=feed, kept={})
    with pytest.raises(LawBroken, match="rounding's bound"):
        closeness(graft, model, whole)
    whole.meta[SAMPLE] = replace(sample, feed=feed, probe=feed)
    assert "of them in an earlier graph" in closeness(graft, model, whole).what
    codes = made(whole)[0].inputs[1]
    assert codes is not None
    assert codes.const_value is not None
    wrong = codes.const_value.numpy().copy()
    wrong.reshape(-1)[::2] ^= 0x77
    codes.const_value = ir.tensor(wrong, name=codes.name)
    with pytest.raises(LawBroken, match="rounding's bound"):
        closeness(graft, model, whole)


def test_a_law_without_the_activations_that_were_used_does_not_hold() -> None:
    graft, before, after = Quantize(algorithm="gptq"), looked_at(host()), looked_at(host())
    graft.apply(after)
    after.meta.clear()
    with pytest.raises(LawBroken, match="there are none"):
        closeness(graft, before, after)


def test_a_width_that_the_codes_do_not_have_is_caught() -> None:
    graft, before = Quantize(head_bits=8), host()
    after = grafted(graft)
    made(after)[-1].attributes["bits"] = ir.AttrInt64("bits", 4)
    with pytest.raises(LawBroken, match=r"'embed' 64 bytes a row are not 64 codes of 4 bits|codes"):
        closeness(graft, before, after)


def lowered(quantize: str = INT4) -> tuple[ir.Model, list[str]]:
    heard: list[str] = []
    pipeline = f"{FRONT} | kv-cache | pack-projections | {quantize}"
    compiled = compile_graph(DECODER.build(), pipeline, heard.append)
    return compiled.lowered, [*heard, *(f"{r.law}: {r.what}" for r in compiled.laws)]


def test_a_decoder_is_rounded_for_its_own_text_the_same_each_time() -> None:
    (first, heard), (second, _) = lowered(), lowered()
    assert any("the host writes" in line for line in heard)
    widths = [n.attributes["bits"].as_int() for n in made(first)]
    assert widths[-1] == 8
    assert {4, 8} == set(widths[:-1])
    for one, other in zip(made(first), made(second), strict=True):
        for mine, theirs in zip(one.inputs[1:], other.inputs[1:], strict=True):
            assert mine.const_value.numpy().tobytes() == theirs.const_value.numpy().tobytes()  # type: ignore[union-attr]
    assert any("bits gptq" in line for line in heard if line.startswith("closeness"))
    assert SAMPLE not in first.meta


@pytest.mark.parametrize("stages", ["fused", "depths"])
def test_stages_of_one_export_are_rounded_once_for_one_text(
    stages: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = Counter[str]()

    def counted(module: Any, name: str) -> None:
        real = getattr(module, name)

        def call(*args: Any, **more: Any) -> Any:
            counts[name] += 1
            return real(*args, **more)

        monkeypatch.setattr(module, name, call)

    for module, name in ((text, "written"), (calibration, "compensated"), (calibration, "_moved")):
        counted(module, name)
    if stages == "fused":
        plan = Plan.of("token-recycling", None, "ort-cpu", "int4", None, None, (), "", "fused")
    else:
        drafting = "draft-model", None, "ort-cpu", "int8", None, "int4", (1, 2), "", "host"
        plan = Plan.of(*drafting)
        own = (s for s in plan.stages if s.owner == DRAFT)  # int8 is rounded to the nearest
        plan = replace(plan, stages=tuple(own))
    compiled = compile_stages({"export": Compiler(DECODER.build(), silent)}, plan)
    roles = {stage.name: stage.role for stage in plan.stages}
    whole, *beside = (one for name, one in compiled.items() if roles[name] != "form")
    blocks = len(made(whole.lowered)) - 1  # all but the head, which has 8 bits
    assert counts == {"written": 1, "compensated": blocks, "_moved": 1}
    weights = whole.lowered.graph.initializers
    assert len(beside) == (1 if stages == "fused" else 2)
    for stage in beside:
        codes = {v.name: v.const_value for n in made(stage.lowered) for v in n.inputs[1:] if v}
        assert len(codes) > 3
        for name, tensor in codes.items():
            assert tensor.tobytes() == weights[name].const_value.tobytes(), name  # type: ignore[union-attr]


def test_all_blocks_have_the_same_widths() -> None:
    model, _ = lowered()
    blocks: dict[str, list[int]] = {}
    for node in made(model)[:-1]:
        bits = node.attributes["bits"].as_int()
        blocks.setdefault(node.metadata_props["graftline.block"], []).append(bits)
    assert len(blocks) == 3
    assert len({tuple(bits) for bits in blocks.values()}) == 1


def test_the_kind_of_matrix_that_changes_predictions_most_is_kept_finer() -> None:
    """Matrices of the first kind are rounded to garbage, so that kind matters most."""
    model = DECODER.build()
    pipeline = f"{FRONT} | kv-cache | pack-projections"
    canonical = compile_graph(model, pipeline, silent).lowered
    canonical.meta[SAMPLE] = feed = _sample(canonical)
    targets = [t for t in targets_of(canonical, 0) if t.kind is not None]
    kinds = list(dict.fromkeys(t.kind for t in targets))
    assert len(kinds) >= 3
    for worst in kinds[:2]:
        codes = {t.key: nearest_codes(t, 8) for t in targets}
        for target in targets:
            if target.kind == worst:
                one = codes[target.key]
                packed = replace(one.packed, scales=-one.packed.scales)
                codes[target.key] = replace(one, packed=packed)
        share = 1.01 * sum(np.prod(t.matrix.shape) for t in targets if t.kind == worst)
        share /= sum(np.prod(t.matrix.shape) for t in targets)
        found = losses(canonical, targets, codes, replace(feed, kept={}))
        assert found.most(share) == {worst}
        assert found.most(0.01) == frozenset()


def _sample(model: ir.Model) -> Sample:
    from graftline.passes.grafts.kv_cache import empty_caches

    tokens = np.arange(32, dtype=np.int64).reshape(2, 16) * 5 % 80
    feed = {"tokens": tokens, "positions": np.tile(np.arange(16), (2, 1))}
    feed |= {"write_index": np.zeros(2, np.int64), **empty_caches(model, 2, 18)}
    return Sample(feed, feed, silent)


def test_a_host_that_is_too_large_to_run_says_so_and_is_rounded_by_its_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(text, "LARGEST", 1000)
    model, heard = lowered()
    assert any("quantize: no activations are looked at: the weights are" in h for h in heard)
    law = next(line for line in heard if line.startswith("closeness"))
    assert "bits range" in law
    assert "no activations were looked at: the weights are" in law
    assert {n.attributes["bits"].as_int() for n in made(model)[:-1]} == {4}


def test_a_host_writes_what_it_finds_likely() -> None:
    """Every token is drawn by its chance behind those before it; the text is always the same."""
    model = compile_graph(DECODER.build(), FRONT, silent).lowered
    head = next(n for n in model.graph if n.metadata_props.get("graftline.role") == "lm_head")
    stored = next(v for v in _constants(head) if v.const_value is not None)
    stored.const_value = ir.tensor(40 * stored.const_value.numpy(), name=stored.name)  # type: ignore[union-attr]
    tokens = text.written(model, 4, 12)
    assert tokens.shape == (4, 12)
    assert len(set(tokens[:, 0].tolist())) > 1
    np.testing.assert_array_equal(tokens, text.written(model, 4, 12))
    positions = np.tile(np.arange(11), (4, 1))
    logits = run(model, {"tokens": tokens[:, :-1], "positions": positions})["logits"]
    likely = np.mean(logits.argmax(axis=-1) == tokens[:, 1:])
    assert float(likely) > 0.8  # the head is that sure


def _constants(head: ir.Node) -> list[ir.Value]:
    maker = head.inputs[1].producer()  # type: ignore[union-attr]
    return list(maker.inputs) if maker is not None else [head.inputs[1]]  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("graft", "message"),
    [
        (Quantize(wide=1.5), "wide=1.5 is not a share"),
        (Quantize(bits=8, algorithm="gptq"), "gptq is for bits=4"),
        (Quantize(algorithm="gptp"), "did you mean 'gptq'"),
    ],
)
def test_options_that_do_not_fit_are_refused(graft: Quantize, message: str) -> None:
    with pytest.raises(NotApplicable, match=message):
        graft.requires(host())
