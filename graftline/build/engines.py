"""TensorRT engines in a bundle: what `--target trt-rtx:sm89` asks for, and the build itself.

The bundle of such a target holds the export, the canonical graph, the lowered graph with its
weights, and the engine built from it; what was proven is proven on the graphs, for an engine cannot
run on the machine that builds it ahead of time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from graftline.build.tensorrt.builder import EngineFile, build, library
from graftline.build.tensorrt.options import BuildOptions, Range
from graftline.build.tensorrt.plugins import plugin_names
from graftline.build.tensorrt.target import FLAVOURS, Target
from graftline.errors import BackendError, GraftlineError, nearest
from graftline.passes.lower.precision import PRECISIONS
from graftline.plugins import PLUGINS
from graftline.plugins.fingerprint import fingerprint
from graftline.plugins.quick_plugin import register
from graftline.ports import Port, by_role

Watch = Callable[[str], None]
CAPACITY = 2048
SIZE = "size."
"""How an option begins that says how large a dimension is."""
CHAIN_ROWS = (1,)
"""Rows of a decode step where the graph has no tree mask."""


def is_engine(target: str) -> bool:
    """Whether a target is built by TensorRT."""
    return target.partition(":")[0] in FLAVOURS


@dataclass(frozen=True)
class EngineRequest:
    """One engine to be built: for which GPUs, in which precision, with how many cache slots.

    `rows` says that the user chose the decode rows; else the graph's mask does.
    """

    target: Target
    dtype: str
    capacity: int = CAPACITY
    options: BuildOptions = field(default_factory=BuildOptions)
    rows: bool = False

    @classmethod
    def parse(cls, target: str, dtype: str, text: str = "") -> EngineRequest:
        """Read `--target`, `--dtype` and `--engine "rows=1+64,capacity=4096,version-compatible"`.
        A host that runs once has "batch=4,size.H=64,size.W=32..128".

        Everything that can be refused before a checkpoint is read is refused here: an unknown GPU,
        a missing library, a precision the GPU lacks.
        """
        aim = Target.parse(target)
        if dtype not in PRECISIONS:
            raise GraftlineError(
                f"{target} takes --dtype {', '.join(PRECISIONS)}, not '{dtype}'"
                f"{nearest(dtype, PRECISIONS)}"
            )
        aim.check_dtype(dtype)
        library(aim)
        aim.check_machine()
        given = _given(text)
        capacity: int = given.pop("capacity", CAPACITY)
        options = replace(BuildOptions(), **given)
        options.check_machine()
        return cls(aim, dtype, capacity, options, rows="rows" in given)

    def check_steps(self) -> None:
        """Raise BackendError for options of hosts that run once, where the host runs in steps."""
        for name in self.options.sizes:
            raise BackendError(f"--engine {SIZE}{name} is for hosts that run once; leave it out")

    def once(self) -> EngineRequest:
        """The engine of a host that runs once. Raises BackendError for options of steps."""
        steps = {"rows": self.rows, "chunk": self.options.chunk != BuildOptions.chunk,
                 "capacity": self.capacity != CAPACITY}  # fmt: skip
        if odd := [name for name, said in steps.items() if said]:
            raise BackendError(
                f"--engine {odd[0]} is for decoders of text, which run in steps; leave it out"
            )
        return self

    @property
    def lowering_once(self) -> str:
        """The last pass of the pipeline of a host that runs once."""
        return f"lower-tensorrt{{dtype={self.dtype}}}"

    @property
    def lowering(self) -> str:
        """The last pass of the pipeline."""
        options = f"dtype={self.dtype},capacity={self.capacity}"
        if self.target.flavour.plugins:
            options += f",plugins=true,rows={max(self.options.rows)}"
        return f"lower-tensorrt{{{options}}}"

    def of_head(self, dtype: str) -> str:
        """The last pass of a draft head's pipeline. Raises GraftlineError for a precision that no
        engine has."""
        if dtype not in PRECISIONS:
            raise GraftlineError(
                f"--head: {self.target} takes heads of {', '.join(PRECISIONS)}, not {dtype}"
            )
        self.target.check_dtype(dtype)
        return replace(self, dtype=dtype).lowering

    def asking_heads(self) -> EngineRequest:
        """The engine of a draft head, which is asked about one row of each sequence."""
        return replace(self, options=replace(self.options, rows=(1,), chunk=1), rows=True)

    def asking_block(self, width: int) -> EngineRequest:
        """The engine of a draft head that is a decoder of its own: it reads prompts in chunks as
        the target does, then a row of each sequence, or a level of `width` nodes of a tree."""
        rows = (1,) if width == 1 else (1, width)
        return replace(self, options=replace(self.options, rows=rows), rows=True)

    def stepping(self, rows: int) -> EngineRequest:
        """This engine with decode steps of that many rows, unless the user chose others."""
        if self.rows:
            return self
        return replace(self, options=replace(self.options, rows=(rows,)), rows=True)

    @property
    def slug(self) -> str:
        """The target as a file name."""
        return str(self.target).replace(":", "-")

    def build(
        self, graph: Path, ports: Sequence[Port], out: Path, timings: Path, watch: Watch
    ) -> EngineFile:
        """Build `graph` to `out`; `timings` is the timing cache of flavours that time kernels."""
        options = self.options
        if not self.rows and not by_role(ports, "mask") and not by_role(ports, "parents"):
            options = replace(options, rows=CHAIN_ROWS)
        if self.target.flavour.times_kernels:
            options = replace(options, timing_cache=str(timings))
        inside = [PLUGINS[name] for name in plugin_names(graph)]
        if inside:
            watch(f"{self.target}: registering {', '.join(p.name for p in inside)}")
            register(inside, self.target.capabilities[0])
        made = build(graph, ports, str(self.target), out, options, watch)
        made = replace(made, plugins={p.name: fingerprint(p) for p in inside})
        watch(
            f"{self.target}: engine of {made.size / 1e6:,.0f} MB in {made.seconds:.0f} s, "
            f"with {made.peak_memory / 1e6:,.0f} MB of memory"
        )
        return made


def _given(text: str) -> dict[str, Any]:
    """`batch=4,rows=1+64,version-compatible` as options of BuildOptions, and capacity; the sizes of
    `size.H=64,size.W=32..128` together."""
    flags = [f.name for f in fields(BuildOptions) if isinstance(f.default, bool)]
    numbers = ["batch", "chunk", "capacity"]
    known = [n.replace("_", "-") for n in (*flags, *numbers, "rows")]
    found: dict[str, Any] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = item.partition("=")
        key = name.replace("-", "_")
        if name.startswith(SIZE):
            found.setdefault("sizes", {})[name.removeprefix(SIZE)] = _range(name, value)
            continue
        if name not in known:
            raise BackendError(f"--engine has no option '{name}'{nearest(name, known)}")
        if key in flags:
            if value not in ("", "true", "false"):
                raise BackendError(f"--engine {name} is true or false, not '{value}'")
            found[key] = value != "false"
            continue
        parts = value.split("+") if key == "rows" else [value]
        if not all(p.isdigit() for p in parts):
            raise BackendError(f"--engine {name} takes a whole number, not '{value}'")
        found[key] = tuple(map(int, parts)) if key == "rows" else int(value)
    return found


def _range(name: str, value: str) -> Range:
    """`64`, `32..64` or `32..48..64`: the smallest, usual and largest size; the usual one is the
    largest where it is not said."""
    parts = value.split("..")
    if not 1 <= len(parts) <= 3 or not all(p.isdigit() for p in parts):
        raise BackendError(f"--engine {name} takes a size or a range as 32..64, not '{value}'")
    sizes = [int(p) for p in parts]
    return sizes[0], sizes[len(sizes) // 2], sizes[-1]
