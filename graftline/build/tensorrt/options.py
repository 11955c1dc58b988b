"""How a TensorRT engine is built: its options, and the shapes that follow from a graph's ports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from graftline.build.tensorrt.target import gpu_capability
from graftline.errors import BackendError, nearest
from graftline.plugins.spec import TREE_LIMIT
from graftline.ports import Port, by_role, slot_ports
from graftline.roles import MAIN
from graftline.runtimes.one_pass.feeding import main_port

Shapes = Mapping[str, Sequence[Sequence[int]]]
"""Input name -> its smallest, usual and largest shape."""
Range = tuple[int, int, int]
"""The smallest, usual and largest size of a dimension."""
WHOLE = "whole"
"""The one profile of a host that runs once."""


@dataclass(frozen=True)
class BuildOptions:
    """How an engine is built.

    batch: most sequences at once. rows: one decode profile for each number of tree nodes, where a
    step has exactly that many rows. chunk: most rows of a prefill step. sizes: of the dimensions
    that inputs of a host that runs once leave open, by their names in its ports.
    version_compatible: later releases of the library open it. refittable: weights can be exchanged.
    strip_weights: the plan holds none; they are refitted from the graph on the machine that runs
    it. timing_cache: a file that is read where it exists and written after.
    """

    batch: int = 1
    rows: tuple[int, ...] = (64,)
    chunk: int = 512
    sizes: Mapping[str, Range] = field(default_factory=dict[str, Range])
    version_compatible: bool = False
    refittable: bool = False
    strip_weights: bool = False
    timing_cache: str = ""

    def __post_init__(self) -> None:
        sizes = {"batch": self.batch, "chunk": self.chunk, **{f"rows {n}": n for n in self.rows}}
        for name, value in sizes.items():
            if value < 1:
                raise BackendError(f"TensorRT build: {name} is at least 1, not {value}")
        for name, (least, usual, most) in self.sizes.items():
            if not 1 <= least <= usual <= most:
                raise BackendError(
                    f"TensorRT build: size.{name} is {least}..{usual}..{most}; sizes rise from 1 on"
                )
        if not self.rows:
            raise BackendError("TensorRT build: rows must name at least one number of tree nodes")

    def flags(self) -> tuple[str, ...]:
        """Names of TensorRT's builder flags."""
        # a lean runtime inside the plan would be a library that the runtime loads from it
        lasting = ("VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME") if self.version_compatible else ()
        refit = ("REFIT",) if self.refittable else ()
        return (*lasting, *refit, *(("STRIP_PLAN",) if self.strip_weights else ()))

    def check_machine(self) -> None:
        """Raise BackendError where an option needs a GPU and there is none."""
        if (self.refittable or self.strip_weights) and gpu_capability() is None:
            raise BackendError(
                "refittable and weight-stripped engines are built on a machine with a GPU, where "
                "TensorRT compiles how weights are packed; build there, or leave the option out"
            )

    def profiles(self, ports: Sequence[Port]) -> dict[str, Shapes]:
        """Optimization profiles by name, from the ports. Raises BackendError at a strange symbol.

        A host that runs once has one profile, of 1 to `batch` rows and of `sizes`.
        Decode profiles have fixed rows, so that a step can be captured as a CUDA graph: N nodes, R
        rows with logits, P of the last tree and M of the next. No step writes more rows than the
        caches have slots; one that commits the last step's path writes that as well.
        """
        inputs = [p for p in ports if p.direction == "in"]
        if any(p.role in MAIN for p in inputs):
            return {WHOLE: self._whole(inputs, main_port(ports))}
        caches = [p.shape[2] for p in slot_ports(ports)]
        slots = min((n for n in caches if isinstance(n, int)), default=None)
        widest = max(self.rows)
        moved = widest if any("P" in p.shape for p in ports) else 0
        if slots is not None and widest + moved > slots:
            more = f" after a last one of {moved}" if moved else ""
            raise BackendError(
                f"TensorRT build: {widest} rows in a step{more}, and a cache of {slots} slots; "
                "choose fewer rows or a larger capacity"
            )
        self._check_tree(ports)
        fit = min(self.chunk, slots - moved) if slots is not None else self.chunk
        if by_role(ports, "parents"):
            fit = min(fit, TREE_LIMIT)  # the prompt is a tree as well: a chain
        batch = (1, self.batch, self.batch)
        ranges: dict[str, dict[str, Range]] = {
            f"decode.{n}": {"B": batch, **dict.fromkeys("NRPM", (n, n, n))} for n in self.rows
        }
        asked = (1, 1, min(widest, fit))
        ranges["prefill"] = {
            "B": batch, "N": (1, fit, fit), "R": asked, "P": (1, 1, widest), "M": (1, 1, widest)
        }  # fmt: skip
        return {k: {p.name: _shapes(p, sizes) for p in inputs} for k, sizes in ranges.items()}

    def _whole(self, inputs: Sequence[Port], main: Port) -> Shapes:
        """The profile of a host that runs once, whose first open dimension is the batch's. Raises
        BackendError where a dimension has no size, and for a size of none."""
        ranges = dict(self.sizes)
        if isinstance(rows := main.shape[0], str):
            ranges.setdefault(rows, (1, self.batch, self.batch))
        named: dict[str, Port] = {}
        for port in inputs:
            named |= {d: port for d in port.shape if isinstance(d, str) and d not in named}
        if odd := [name for name in self.sizes if name not in named]:
            raise BackendError(f"--engine size.{odd[0]}: no input has it{nearest(odd[0], named)}")
        if left := [name for name in named if name not in ranges]:
            name, port = left[0], named[left[0]]
            shape = ", ".join(map(str, port.shape))
            raise BackendError(
                f"{port.role} '{port.name}' [{shape}]: say how large {name} is with --engine "
                f"size.{name}=64, or size.{name}=32..64 for all sizes between"
            )
        return {p.name: _shapes(p, ranges) for p in inputs}

    def _check_tree(self, ports: Sequence[Port]) -> None:
        """Raise BackendError where the graph cannot follow a tree of so many nodes."""
        if by_role(ports, "parents") and max(self.rows) > TREE_LIMIT:
            raise BackendError(
                f"TensorRT build: a fused step follows trees of at most {TREE_LIMIT} nodes, not "
                f"{max(self.rows)}; choose fewer rows"
            )
        nodes = next((p.shape[1] for p in by_role(ports, "tokens", "in")), None)
        if isinstance(nodes, int) and self.rows != (nodes,):
            raise BackendError(
                f"TensorRT build: the graph's plugins are compiled for {nodes} rows in a step; "
                f"rows cannot be {'+'.join(map(str, self.rows))}"
            )


def _shapes(port: Port, ranges: Mapping[str, Range]) -> list[list[int]]:
    strange = [d for d in port.shape if isinstance(d, str) and d not in ranges]
    if strange:
        raise BackendError(
            f"port '{port.name}': no range is known for the dimension {strange[0]}; "
            f"known: {', '.join(ranges)} (lower-tensorrt makes S a number)"
        )
    return [[d if isinstance(d, int) else ranges[d][i] for d in port.shape] for i in range(3)]
