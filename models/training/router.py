"""Routers of blocks in training (FiRST, arXiv 2410.12513): each reads the end of a prompt, and says
whether the text behind it needs its block. The frozen host says what is lost without it.

A text is read in one pass, as the recipe decodes it: the prompt by all blocks; behind it a block
that is not needed is the identity. Decisions are 0 or 1, and are learned as if they were the
chances that they were made of (a straight-through estimator).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import nn

from graftline.errors import CheckpointError, GraftlineError
from graftline.models.heads.router import BIAS, WEIGHT
from graftline.models.training.chains import NEAR, NEAR_BF16, plain_decoder
from graftline.models.training.frozen import FrozenHost
from graftline.models.training.host_scored import Stepwise
from graftline.models.training.packs import Pack
from graftline.models.training.rows import Row
from graftline.models.training.student import Published
from graftline.route import blocks_of

SHARE = 0.25
"""Of a host's blocks, those that a text is to skip on average."""
PRESSURE = 8.0
"""What is added to the loss for each whole share of blocks that is short of that: total variation,
the loss, is 1 at most, so that a twentieth of the blocks too few costs as much as 0.4 of it."""
SURE = 1.0
"""The logit of every router before it has learned anything: all blocks are needed."""
ROUTES, PROMPTS = 4, 128
"""Most routes of a bundle, each a graph of its own, and most prompts that they are chosen for."""
CHECKED = 12
"""Tokens on which it is seen whether the host's blocks are run as they are meant."""
EPSILON = 1e-6


def skippable(layers: str, count: int, share: float) -> tuple[int, ...]:
    """The blocks of a host of `count` that get a router: those of `layers`, as --skip names them;
    "": all but the first and the last. Raises GraftlineError."""
    chosen = blocks_of(layers, count) if layers else frozenset(range(1, count - 1))
    if 0 in chosen:
        raise GraftlineError(
            f"--layers {layers}: block 0 is always computed, for nothing stands before it that a "
            "router could read; leave it out"
        )
    if len(chosen) < share * count:
        raise GraftlineError(
            f"--share {share:g}: of {count} blocks {len(chosen)} may be skipped, fewer than that; "
            "use a smaller share, or name more --layers"
        )
    return tuple(sorted(chosen))


class Routers(nn.Module):
    """For each block a row [H] and a number, which begin as sure that it is needed."""

    def __init__(self, layers: Sequence[int], hidden: int) -> None:
        super().__init__()
        self.layers = tuple(layers)
        self.weight = nn.Parameter(torch.zeros(len(layers), hidden))
        self.bias = nn.Parameter(torch.full((len(layers),), SURE))

    def forward(self, x: torch.Tensor, place: int) -> torch.Tensor:
        """[B]: the chance that the `place`-th block is needed behind states x [B, H]."""
        x = x.float()
        normed = x / (x.square().mean(-1, keepdim=True) + EPSILON).sqrt()
        return torch.sigmoid(normed @ self.weight[place] + self.bias[place])


class Skipping:
    """Lets a host skip blocks behind the prompts of the texts that it reads; without `starts` it
    computes all of them."""

    def __init__(self, host: FrozenHost, module: Routers) -> None:
        self.module = module
        self.starts: torch.Tensor | None = None
        """[B]: where each text's prompt ends."""
        self.needed: dict[int, torch.Tensor] = {}
        """By block [B], of the pass that was made last: 1 where it is computed, 0 where not."""
        for place, layer in enumerate(module.layers):
            host.blocks[layer].register_forward_hook(self._hook(place, layer), with_kwargs=True)

    def _hook(self, place: int, layer: int) -> Any:
        def hook(block: Any, given: Any, named: dict[str, Any], out: Any) -> Any:
            if self.starts is None:
                return None
            whole = out[0] if isinstance(out, tuple) else out
            x = given[0] if given else named["hidden_states"]
            last = (self.starts - 1).clamp_min(0)
            chance = self.module(x[torch.arange(len(x)), last], place)
            gate = (chance >= 0.5).float() + chance - chance.detach()
            self.needed[layer] = gate
            behind = torch.arange(whole.shape[1])[None, :, None] >= self.starts[:, None, None]
            mixed = torch.where(behind, x + gate[:, None, None].to(x.dtype) * (whole - x), whole)
            return (mixed, *out[1:]) if isinstance(out, tuple) else mixed

        return hook


class Routing(Stepwise):
    """Routers for a frozen host, whose text without the blocks that they skip is to be its own."""

    depths = 1
    places: int | None = None

    def __init__(self, host: FrozenHost, layers: str, share: float, rows: Sequence[Row]) -> None:
        """`rows`: texts whose prompts routes are chosen for. Raises GraftlineError for layers that
        it has not and texts without prompts, and CheckpointError for a host whose blocks cannot be
        skipped."""
        if max(row.start for row in rows) < 2:
            raise GraftlineError("routers read prompts, which plain texts lack; leave out --text")
        chosen = skippable(layers, host.layers, share)
        self.lm_head, self.bias, self.source = host.lm_head, host.bias, host.source
        self.embedding, self.vocabulary = host.embedding, host.vocabulary
        self.drafted, self.count, self.share = torch.arange(host.vocabulary), host.layers, share
        self.prompts = [torch.as_tensor(row.ids[: row.start]).long() for row in rows][:PROMPTS]
        self.decoder = plain_decoder(host, "routers")
        self.module = Routers(chosen, host.hidden)
        self.skipping = Skipping(host, self.module)
        _check(host, self)

    def drafts(self, pack: Pack) -> Sequence[torch.Tensor]:
        """What lm_head reads at each position."""
        return [self.read(pack.ids, pack.starts)]

    def read(self, ids: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
        """States [B, L, H] of texts whose prompts end before the positions `starts` [B]."""
        self.skipping.starts = starts
        try:
            out = self.decoder(
                inputs_embeds=self.embedding[ids], use_cache=False,
                position_ids=torch.arange(ids.shape[1]).expand(len(ids), -1),
            )  # fmt: skip
        finally:
            self.skipping.starts = None
        return out.last_hidden_state.float()

    def price(self) -> torch.Tensor:
        """Of the texts read last: by how much they skip too few blocks, in terms of the loss."""
        needed = torch.stack(list(self.skipping.needed.values()))
        skipped = (1 - needed).sum(0).mean() / self.count
        return PRESSURE * (self.share - skipped).clamp_min(0)

    def published(self) -> Published:
        """model.safetensors and config.json. Raises GraftlineError where no prompt skips a block.
        """
        skipped = list(self._skipped())
        routes = covering(skipped, ROUTES)
        if not routes:
            raise GraftlineError(
                "no prompt skips a block yet; train longer, or with a larger --share"
            )
        config: dict[str, Any] = {
            "base_model_name_or_path": self.source, "hidden_size": self.module.weight.shape[1],
            "num_hidden_layers": self.count, "routes": [sorted(route) for route in routes],
        }  # fmt: skip
        tensors: dict[str, torch.Tensor] = {}
        for place, layer in enumerate(self.module.layers):
            tensors[WEIGHT.format(layer)] = self.module.weight[place][None]
            tensors[BIAS.format(layer)] = self.module.bias[place][None]
        asked = sum(map(len, skipped)) / len(skipped)
        taken = sum(_most(blocks, routes) for blocks in skipped) / len(skipped)
        notes = {
            "skips": f"{taken:.1f} of {self.count} blocks of a text by {len(routes)} routes, where "
            f"routers let go {asked:.1f}"
        }
        return Published("FiRST", "model.safetensors", config, tensors, notes)

    @torch.no_grad()
    def _skipped(self) -> Iterator[frozenset[int]]:
        """The blocks that each prompt's routers let go."""
        for ids in self.prompts:
            self.read(ids[None], torch.tensor([len(ids)]))
            yield frozenset(b for b, needed in self.skipping.needed.items() if not needed[0])


def covering(skipped: Sequence[frozenset[int]], most: int) -> list[frozenset[int]]:
    """Up to `most` routes for texts that may skip these blocks: each time the one by which texts
    skip most blocks more, where a text takes the longest that skips none but its own. Of routes
    that texts ask for, and of what two of them have in common."""
    asked = list(dict.fromkeys(skipped))
    able = dict.fromkeys([*asked, *(one & other for one, other in combinations(asked, 2))])
    able.pop(frozenset(), None)
    routes: list[frozenset[int]] = []

    def gain(route: frozenset[int]) -> int:
        longer = (len(route) - _most(blocks, routes) for blocks in skipped if route <= blocks)
        return sum(max(more, 0) for more in longer)

    while able and len(routes) < most and gain(best := max(able, key=gain)):
        routes.append(best)
    return routes


def _most(blocks: frozenset[int], routes: Collection[frozenset[int]]) -> int:
    """How many blocks a text skips that may skip these."""
    return max((len(route) for route in routes if route <= blocks), default=0)


@torch.no_grad()
def _check(host: FrozenHost, student: Routing) -> None:
    """Raise CheckpointError unless the host reads a text as it does alone where all its blocks are
    needed, as they are before anything is learned."""
    ids = (torch.arange(CHECKED) * 7 + 1) % host.vocabulary
    wanted = host.read(ids.tolist())[0]
    got = student.read(ids[None], torch.tensor([CHECKED // 2]))[0]
    off = float((got - wanted).abs().max() / wanted.abs().max())
    every = len(student.skipping.needed) == len(student.module.layers)
    if not off <= (NEAR_BF16 if host.bf16 else NEAR) or not every:
        raise CheckpointError(
            f"{host.folder}: the model's blocks are not run as they are meant (off by {off:.2g}); "
            "routers cannot be trained beside it"
        )
