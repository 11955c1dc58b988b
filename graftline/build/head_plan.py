"""What --head asks for: a path, and the precision of the stages that are made of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from graftline.errors import GraftlineError

NEED = "head"
"""What a recipe's needs call a draft head."""
FULL, QUANTIZED = "fp32", "int8"
"""The precisions of a head. What int4 saves on top is lost by drafts that are worse."""


@dataclass(frozen=True)
class HeadPlan:
    """`said` is what --head said; of the head at `path` are `count` stages made, in `dtype`.
    `routes`: those that its files name, of which a schedule chooses."""

    said: str
    path: str
    dtype: str
    count: int = 1
    routes: str = ""

    @classmethod
    def parse(cls, said: str, target: str, count: int = 1) -> HeadPlan:
        """Read `PATH` or `PATH:DTYPE`; unless it is said, heads are int8 where the `target` is of
        few bits: their matrices are as much to read as a part of its own; else as their target."""
        path, _, dtype = said.rpartition(":")
        if path and dtype in (FULL, QUANTIZED):
            return cls(said, path, dtype, count)
        return cls(said, said, _beside(target), count)

    def check_fused(self, target: str) -> None:
        """Raise GraftlineError where heads within the step of such a `target` cannot have their
        precision: a step is one graph, of one."""
        if self.dtype != (same := _beside(target)):
            raise GraftlineError(
                f"--head {self.said}: a fused step has its heads in {same} where the target is "
                f"{target}, not in {self.dtype}; use --step host"
            )

    def check_layers(self, layers: int) -> HeadPlan:
        """The same, in fp32 where heads of so many layers must be, unless another precision was
        asked for. Raises GraftlineError where it was."""
        if layers == 1 or self.dtype != QUANTIZED:
            return self
        return self._full(
            f"of heads of {layers} layers the further ones are one batched product each, which "
            f"stays {FULL}"
        )

    def check_bigrams(self, rank: int) -> HeadPlan:
        """The same, in fp32 where heads have bigrams, unless another precision was asked for: the
        best token of a head decides what the next one says, and rounding would change it. Raises
        GraftlineError where it was."""
        if not rank or self.dtype == FULL:
            return self
        return self._full(
            "heads with bigrams are scored by one another's best tokens, which rounding changes, "
            f"and stay {FULL}"
        )

    def _full(self, why: str) -> HeadPlan:
        """The same in fp32. Raises GraftlineError where another precision was asked for."""
        if self.said != self.path:
            raise GraftlineError(f"--head {self.said}: {why}; give {self.path}:{FULL}")
        return replace(self, dtype=FULL)


def _beside(target: str) -> str:
    """The precision of heads beside a target of that one: few bits are 8, half is half."""
    return {"int8": QUANTIZED, "int4": QUANTIZED, "fp16": "fp16", "bf16": "bf16"}.get(target, FULL)
