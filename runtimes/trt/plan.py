"""What a manifest says of a TensorRT engine, and whether it can run here: asked before opening it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from graftline.bundle.manifest import Manifest, Stage
from graftline.errors import BackendError, BundleError
from graftline.ports import Port, slot_ports, step_port
from graftline.roles import MAIN, Roles
from graftline.runtimes.one_pass.feeding import main_port

LIBRARIES = {"trt-rtx": "tensorrt-rtx-cu13", "trt": "tensorrt-cu13"}
"""Flavour -> the package that runs its engines."""
Shapes = Mapping[str, list[list[int]]]


@dataclass(frozen=True)
class Here:
    """What this machine has to run engines with."""

    capability: int | None = None
    """Of the first GPU, as 89 for 8.9; None without an NVIDIA GPU and driver."""
    why: str = ""
    """Without one: what CUDA says."""
    versions: Mapping[str, str] | None = None
    """Package -> version of the TensorRT libraries that are installed."""


@dataclass(frozen=True)
class EnginePlan:
    """One engine: its file in the bundle, what it is for, and the shapes it takes.

    `profiles` are in the engine's order: name -> input -> smallest, usual, largest shape; those
    called decode.* have one number of rows.
    """

    file: str
    graph: str
    """The stage of the bundle that it was built from."""
    target: str
    library: str
    profiles: Mapping[str, Shapes]
    version_compatible: bool
    weightless: bool
    plugins: Mapping[str, str]
    rebuild: str
    tokens: str
    """The input whose shape is sequences and rows: the tokens, where it takes any; of a host that
    runs once, the input that its output is made of."""

    @classmethod
    def read(cls, manifest: Manifest, row: Mapping[str, Any] | None = None) -> EnginePlan:
        """From a bundle's manifest: of the target's engine, or of another that a `row` describes.
        Raises BundleError where it does not describe an engine."""
        engine = cast("dict[str, Any]", row or manifest.extra.get("engine", {}))
        try:
            options = engine["options"]
            return cls(
                engine["file"],
                engine["graph"],
                engine["target"],
                engine["library"],
                engine["profiles"],
                options["version_compatible"],
                options["strip_weights"],
                engine.get("plugins", {}),
                manifest.rebuild,
                _rows_of(manifest.stages[engine["graph"]]),
            )
        except KeyError as error:
            raise BundleError(
                f"manifest.json says nothing of the engine's {error}; rebuild: {manifest.rebuild}"
            ) from error

    @property
    def flavour(self) -> str:
        """"trt-rtx" or "trt"."""
        return self.target.partition(":")[0]

    @property
    def capabilities(self) -> tuple[int, ...]:
        """Of the GPUs it is for."""
        return tuple(int(g.removeprefix("sm")) for g in self.target.partition(":")[2].split("+"))

    @property
    def batch(self) -> int:
        """Most sequences at once."""
        return min(shapes[self.tokens][2][0] for shapes in self.profiles.values())

    @property
    def decoding(self) -> dict[int, int]:
        """Rows of a step -> number of its profile; ascending."""
        names = list(self.profiles)
        rows = {self.rows(n): names.index(n) for n in names if n.startswith("decode.")}
        return dict(sorted(rows.items()))

    def rows(self, name: str) -> int:
        """Most rows that a profile takes."""
        return self.profiles[name][self.tokens][2][1]

    def check(self, here: Here) -> None:
        """Raise BackendError, with what differs and what to do, where it cannot run here."""
        if here.capability is None:
            why = f" ({here.why})" if here.why else ""
            raise self.refusal(f"no NVIDIA GPU or driver here{why}", otherwise=True)
        if here.capability not in self.capabilities:
            raise self.refusal(f"this machine has sm{here.capability}", otherwise=True)
        package, _, built = self.library.partition(" ")
        found = (here.versions or {}).get(package)
        if found is None:
            raise BackendError(
                f"{self.target}: {package} is not installed; pip install {package}=={built}"
            )
        if found != built and not (self.version_compatible and _later(found, built)):
            raise self.refusal(
                f"built by {package} {built}, and {found} is installed; "
                f"pip install {package}=={built}, or rebuild", rebuild=True
            )  # fmt: skip

    def check_capacity(self, ports: Sequence[Port], asked: int | None = None) -> int:
        """The most positions of a sequence: the slots built, less the rows of the widest step,
        which a padded step may fill. Raises BackendError where more is asked for."""
        sizes = (p.shape[2] for p in slot_ports(ports) if p.mirror is not None)
        slots, widest = min(int(s) for s in sizes), max(self.decoding)
        most = slots - widest
        if most < 1 or (asked or 1) > most:
            wish = "" if asked is None else f"a capacity of {asked} was asked for, and "
            raise self.refusal(
                f"{wish}{slots} slots were built, {widest} of them for a step; "
                f"ask for at most {max(most, 0)}, or choose --engine capacity=", rebuild=True
            )  # fmt: skip
        return most

    def check_plugins(self, now: Mapping[str, str]) -> None:
        """Raise BackendError where a plugin inside is not what this graftline would build in."""
        for name, digest in self.plugins.items():
            if now.get(name) != digest:
                is_now = f"now {now[name][:12]}" if name in now else "unknown to this graftline"
                raise self.refusal(f"its plugin {name} is {digest[:12]}, {is_now}", rebuild=True)

    def refusal(self, why: str, rebuild: bool = False, otherwise: bool = False) -> BackendError:
        """An error in one line: this engine, why not, and the command that makes another."""
        where = "with another --target (ort-cpu runs anywhere)" if otherwise else ""
        lead = "rebuild" if rebuild else f"run it on such a GPU, or rebuild {where}".strip()
        return BackendError(f"{self.target}: {why}; {lead}: {self.rebuild}")


def _rows_of(stage: Stage) -> str:
    if any(p.role in MAIN for p in stage.ports):
        return main_port(stage.ports).name
    port = step_port(stage.ports, stage.owner)
    assert port is not None, "an engine has a row for each position"
    return Roles.of(stage.ports, stage.owner).inputs.get("tokens", port.name)


def _later(found: str, built: str) -> bool:
    """Whether `found` is a later release of the same major version."""
    now, then = ([int(part) for part in v.split(".") if part.isdigit()] for v in (found, built))
    return now[:1] == then[:1] and now >= then
