"""TreeAttention on a GPU against float32 arithmetic, copy bandwidth and PyTorch's own attention."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from graftline.plugins import PLUGINS
from graftline.plugins.tree_attention_parts import parts_for
from graftline.tree import Tree
from tests.bench.gpu_kernels import LIMITS, Sizes, copies, launcher
from tests.bench.gpu_timing import Budget, Calls, Table, Timer
from tests.plugins.cases import trees
from tests.plugins.tensors import tensor


@dataclass(frozen=True)
class Attention:
    """Seeded operands of one TreeAttention, its cache filled to the last slot."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    parents: torch.Tensor
    lengths: torch.Tensor
    mask: torch.Tensor
    """[B, 1, N, S] bool."""

    @classmethod
    def make(
        cls, batch: int, nodes: int, slots: int, dtype: torch.dtype, size: int,
        heads: tuple[int, int], device: str, seed: int = 0,
    ) -> Attention:  # fmt: skip
        torch.manual_seed(seed)
        shapes = ((heads[0], nodes), (heads[1], slots), (heads[1], slots))
        floats = [torch.randn(batch, *s, size, dtype=dtype, device=device) for s in shapes]
        parents = trees(np.random.default_rng(seed), batch, nodes)
        mask = torch.ones(batch, 1, nodes, slots, dtype=torch.bool)
        tokens = np.zeros(nodes, np.int64)
        for b in range(batch):
            mask[b, 0, :, slots - nodes :] = torch.from_numpy(Tree(tokens, parents[b]).mask)
        lengths = torch.full((batch,), slots - nodes, dtype=torch.int64, device=device)
        return cls(*floats, tensor(parents, device), lengths, mask.to(device))

    @property
    def inputs(self) -> list[torch.Tensor]:
        return [self.query, self.key, self.value, self.parents, self.lengths]

    @property
    def scale(self) -> float:
        return self.query.shape[-1] ** -0.5

    @property
    def bytes(self) -> int:
        """What must move: the cache once, queries in, results out."""
        moved = (self.query, self.query, self.key, self.value)
        return sum(x.numel() * x.element_size() for x in moved)

    def ours(self, timer: Timer) -> tuple[Callable[[], object], torch.Tensor, int]:
        """The launches, the tensor they fill, and the number of parts of the cache."""
        batch, heads, nodes, size = self.query.shape
        kv_heads, slots = self.key.shape[1:3]
        processors = 4
        if timer.real:
            processors = torch.cuda.get_device_properties(0).multi_processor_count
        programs = batch * kv_heads * math.ceil(nodes * heads / kv_heads / 64)
        parts = parts_for(programs, slots, processors)
        output = torch.full_like(self.query, float("nan"))
        values: dict[str, int | float] = {"scale": self.scale}
        if parts == 1:
            return launcher(PLUGINS["TreeAttention"], self.inputs, [output], values), output, 1
        shape = (batch, heads, parts, nodes)
        partial = [
            torch.full(s, float("nan"), dtype=torch.float32, device=timer.device)
            for s in ((*shape, size), shape, shape)
        ]
        values["parts"] = parts
        first = launcher(PLUGINS["TreeAttentionParts"], self.inputs, partial, values)
        merge = launcher(PLUGINS["TreeAttentionMerge"], [*partial, self.query], [output])
        return lambda: (first(), merge()), output, parts

    def torchs(self) -> dict[str, Callable[[], object]]:
        """PyTorch's masked attention: grouped heads as it offers them, and with the heads of a
        group folded into the rows and the mask already in floats, which its fast kernels take."""
        batch, heads, nodes, size = self.query.shape
        kv_heads, slots = self.key.shape[1:3]
        group = heads // kv_heads
        folded = self.query.reshape(batch, kv_heads, group * nodes, size)
        wide = self.mask[:, :, None].expand(batch, 1, group, nodes, slots)
        hidden = torch.zeros_like(wide, dtype=self.query.dtype).masked_fill(~wide, float("-inf"))
        bias = hidden.reshape(batch, 1, group * nodes, slots)
        key, value, scale = self.key, self.value, self.scale
        return {
            "grouped": lambda: scaled_dot_product_attention(
                self.query, key, value, attn_mask=self.mask, scale=scale, enable_gqa=True
            ),
            "folded": lambda: scaled_dot_product_attention(
                folded, key, value, attn_mask=bias, scale=scale
            ),
        }

    def error(self, output: torch.Tensor) -> float:
        """Against float32 arithmetic by hand, for the first and the last sequence."""
        heads, nodes, size = self.query.shape[1:]
        kv_heads = self.key.shape[1]
        worst = 0.0
        for b in {0, len(output) - 1}:
            query = self.query[b].float().reshape(kv_heads, -1, size)
            scores = query @ self.key[b].float().transpose(1, 2) * self.scale
            seen = self.mask[b].repeat(1, heads // kv_heads, 1)
            scores = scores.masked_fill(~seen, float("-inf"))
            want = (scores.softmax(-1) @ self.value[b].float()).reshape(heads, nodes, size)
            gap = (output[b].float() - want).norm() / want.norm()
            worst = max(worst, float(gap)) if math.isfinite(float(gap)) else math.inf
        return worst


def attention(sizes: Sizes, timer: Timer, bandwidth: float | None, budget: Budget) -> Table:
    """TreeAttention (or its parts and their merge) over everything in `sizes`."""
    head = (
        "head size", "dtype", "tree", "batch", "capacity", "parts", "µs", "µs, graph", "GB/s",
        "% of copy", "torch µs", "torch / ours", "error",
    )  # fmt: skip
    table = Table("TreeAttention", head, budget)
    order = itertools.product(
        sizes.sizes, sizes.dtypes, sizes.nodes, sizes.batches, sizes.capacities
    )
    for size, dtype, nodes, batch, slots in order:

        def measure(
            size: int = size, dtype: torch.dtype = dtype, nodes: int = nodes, batch: int = batch,
            slots: int = slots,
        ) -> list[object]:  # fmt: skip
            one = Attention.make(batch, nodes, slots, dtype, size, sizes.heads, timer.device)
            run, output, parts = one.ours(timer)
            run()
            error = one.error(output)
            more = [
                Attention.make(batch, nodes, slots, dtype, size, sizes.heads, timer.device, seed)
                for seed in range(1, copies(one.bytes, timer))
            ]
            ours: Calls = [run, *(x.ours(timer)[0] for x in more)]
            theirs = {name: [call] for name, call in one.torchs().items()}
            for other in more:
                for name, call in other.torchs().items():
                    theirs[name].append(call)
            taken = timer.events({"ours": ours, **theirs})
            alone = timer.graphs({"ours": ours})["ours"]
            best = min((t for n, t in taken.items() if n != "ours" and t), default=None)
            speed = one.bytes / alone * 1e6 if alone else None
            share = 100 * speed / bandwidth if speed and bandwidth else None
            ratio = best / taken["ours"] if best and taken["ours"] else None
            verdict = f"{error:.1e}" if error <= LIMITS[dtype] else f"WRONG {error:.1e}"
            rate = speed / 1e9 if speed else None
            return [parts, taken["ours"], alone, rate, share, best, ratio, verdict]

        kind = str(dtype).removeprefix("torch.")
        table.row([size, kind, nodes, batch, slots], measure)
        if timer.real:
            torch.cuda.empty_cache()
    return table
