"""A spec: what the structure of a denoiser's graph cannot say, in TOML beside the graph. Of a
recogniser over vertices it names the decoder of a path's states alone, and of a decoder of queries
the output that it is for.

[inputs]                     # names in the graph, where types and shapes do not tell
sample = "latent"
timestep = "t"
conditions = ["label"]       # inputs that are no vectors of floats

[outputs]
prediction = "noise"         # of several outputs

[sampling]                   # as graftline.sampling.spec.Sampling has it
prediction = "epsilon"
scheduler = "ddim"
steps = 50

[chunks]                     # of a sample that is two consecutive chunks, as Chunks has it
width = 64
latents = "z"

[decoder]                    # what makes an image of a sample
graph = "vae_decoder.onnx"
scale = 0.18215              # latents = sample / scale + shift

[replacement]                # another decoder, for swap-subgraph
graph = "taesd.onnx"
"""

from __future__ import annotations

import json
import tomllib
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from graftline.errors import CheckpointError, GraftlineError
from graftline.sampling.chunks import Chunks
from graftline.sampling.spec import Sampling
from graftline.typed_json import Misfit, read


@dataclass(frozen=True)
class Inputs:
    """Inputs of the graph by name, "" for those that types and shapes tell."""

    sample: str = ""
    timestep: str = ""
    conditions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outputs:
    """Outputs of the graph by name."""

    prediction: str = ""


@dataclass(frozen=True)
class Part:
    """Another graph: the path of its file, relative to the spec's folder, and its input [B, C, H,
    W] (of a path's states: [B, U, H]) where it has several. Its latents are a sample / `scale` +
    `shift`."""

    graph: str
    latents: str = ""
    scale: float = 1.0
    shift: float = 0.0


@dataclass(frozen=True)
class Spec:
    """What is said of a denoiser; of a recogniser over vertices, its decoder; of a decoder of
    queries, its output."""

    inputs: Inputs = field(default_factory=Inputs)
    outputs: Outputs = field(default_factory=Outputs)
    sampling: Sampling | None = None
    decoder: Part | None = None
    replacement: Part | None = None
    chunks: Chunks | None = None


def read_spec(path: str | Path) -> Spec:
    """Read a spec. Raises CheckpointError naming the file and the field that does not fit."""
    file = Path(path).expanduser()
    try:
        rows = tomllib.loads(file.read_text(encoding="utf-8"))
        spec: Spec = read(Spec, rows)
        if spec.sampling is not None:
            spec.sampling.check()
        if spec.chunks is not None:
            spec.chunks.check()
    except OSError as error:
        raise CheckpointError(f"{file}: the spec cannot be read ({error.strerror})") from error
    except (Misfit, GraftlineError, ValueError) as error:  # TOML's errors and Unicode's
        raise CheckpointError(f"{file}: {error}") from error
    for name, part in (("decoder", spec.decoder), ("replacement", spec.replacement)):
        if part is None:
            continue
        if not part.scale:
            raise CheckpointError(f"{file}: {name}.scale is 0; latents are a sample / scale")
        if not (place := file.parent / part.graph).is_file():
            raise CheckpointError(f"{file}: {name}.graph: no such file {place}")
        spec = replace(spec, **{name: replace(part, graph=str(place))})
    return spec


def spec_text(spec: Spec) -> str:
    """The TOML of a spec, which `read_spec` reads: what differs from what is usual."""
    parts = {one.name: getattr(spec, one.name) for one in fields(spec)}
    tables = {name: _rows(part) for name, part in parts.items() if part is not None}
    return "\n".join(
        "".join([f"[{name}]\n", *(f"{key} = {_toml(value)}\n" for key, value in rows.items())])
        for name, rows in tables.items()
        if rows
    )


def _toml(value: Any) -> str:
    """JSON's texts, numbers and lists are TOML's."""
    return json.dumps(value, ensure_ascii=False)


def _rows(part: Any) -> dict[str, Any]:
    """Fields that have no usual value, or another one."""
    usual = {one.name: one.default for one in fields(part)}
    return {name: value for name, value in asdict(part).items() if value != usual[name]}
