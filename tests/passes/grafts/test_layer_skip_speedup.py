"""layer-skip by a speed-up: which blocks, how many, and the law that counts what is left."""

from __future__ import annotations

from itertools import pairwise

import onnx_ir as ir
import pytest

from graftline.errors import GraftlineError, LawBroken, NotApplicable
from graftline.models.decoder import TinyDecoder
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.anchors.work import block_work
from graftline.passes.grafts.layer_skip import LayerSkip
from graftline.passes.laws.common import infer_shapes
from graftline.ports import read_ports
from graftline.route import LOWER, SPREAD, blocks_for, ordered

SPEC = TinyDecoder(layers=8, vocabulary=61)
BLOCK = 2 * 32 * 64 + 2 * 32 * 32 + 3 * 32 * 48
HEAD = 32 * 61


def cached(spec: TinyDecoder = SPEC) -> ir.Model:
    model = spec.build()
    infer_shapes(model)
    Pipeline.parse("anchors | kv-cache", GRAFTS).run(model)
    return model


def test_work_is_counted_by_block_and_for_the_rest() -> None:
    assert block_work(cached().graph) == ([BLOCK] * 8, HEAD)


@pytest.mark.parametrize("count", range(1, 7))
def test_blocks_are_spread_evenly_and_keep_both_ends(count: int) -> None:
    blocks = sorted(ordered(8, count, SPREAD))
    assert len(blocks) == count
    assert blocks[0] > 0
    assert blocks[-1] < 7
    gaps = [b - a for a, b in pairwise(blocks)]
    assert max(gaps, default=0) - min(gaps, default=0) <= 1


def test_lower_blocks_are_nested_from_the_second_upwards() -> None:
    ways = [ordered(8, n, LOWER) for n in range(7)]
    assert ways[3] == {1, 2, 3}
    assert all(a < b for a, b in pairwise(ways))


@pytest.mark.parametrize(("speedup", "skipped"), [(1.2, 1), (1.5, 3), (2.0, 4), (3.0, 5)])
def test_the_number_of_blocks_is_the_nearest_to_the_speed_up(speedup: float, skipped: int) -> None:
    """The whole is 8 blocks and a head of 0.18 of one, so that n blocks less are 8.18 / (8.18 - n)
    times as fast: 1.14, 1.32, 1.58, 1.96, 2.57, 3.75."""
    work = [float(BLOCK)] * 8
    assert len(blocks_for(speedup, SPREAD, work, float(HEAD))) == skipped


def test_a_large_head_needs_more_blocks_skipped() -> None:
    """Counted in blocks alone, 1.5 would be two of six."""
    assert len(blocks_for(1.5, SPREAD, [1.0] * 6, 0.0)) == 2
    assert len(blocks_for(1.5, SPREAD, [1.0] * 6, 6.0)) == 4


@pytest.mark.parametrize("order", [SPREAD, LOWER])
def test_the_pass_skips_them_and_the_laws_hold(order: str) -> None:
    model = cached()
    reports = Pipeline((LayerSkip(speedup=1.5, order=order),)).run(model)
    laws = {row.law: row for row in reports[-1].laws}
    assert laws["work"].status == "held"
    kept = {p.layer for p in read_ports(model) if p.mirror}
    assert kept == set(range(8)) - ordered(8, 3, order)
    left = sum(v.const_value.size for v in model.graph.initializers.values()
               if v.const_value is not None and len(v.const_value.shape) == 2
               and v.name and "rotary" not in v.name and "embed" not in v.name)  # fmt: skip
    assert left == 5 * BLOCK + HEAD


REFUSED = {
    "speedup=9": "a speed-up of 9 is more than skipping blocks of 8 gives; use at most 3.75",
    "speedup=1": "a speed-up of 1 skips nothing; use one above 1",
    "speedup=2,layers=1": "speedup chooses the blocks; name none beside it",
    "speedup=2,order=upper": "order 'upper'.*use spread or lower",
}


@pytest.mark.parametrize("options", REFUSED)
def test_what_no_route_can_give_is_refused(options: str) -> None:
    model = cached()
    with pytest.raises(NotApplicable, match=REFUSED[options]) as caught:
        Pipeline.parse(f"layer-skip{{{options}}}", GRAFTS).run(model)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("layers", [1, 2])
def test_a_host_without_blocks_between_its_ends_is_refused(layers: int) -> None:
    with pytest.raises(GraftlineError, match=f"skipping blocks of {layers} gives"):
        blocks_for(1.5, SPREAD, [1.0] * layers, 0.5)


@pytest.mark.parametrize("blocks", [2, 4])
def test_the_law_counts_a_route_of_another_speed(blocks: int) -> None:
    """One block more or less than the speed-up asks for."""

    class Wrong(LayerSkip):
        def apply(self, model: ir.Model) -> None:
            LayerSkip("1-2" if blocks == 2 else "1-4").apply(model)

        def dropped(self, before: ir.Model) -> frozenset[str]:
            return LayerSkip("1-2" if blocks == 2 else "1-4").dropped(before)

    with pytest.raises(LawBroken, match="'work' at the matrices of a step"):
        Pipeline((Wrong(speedup=1.5),)).run(cached())
