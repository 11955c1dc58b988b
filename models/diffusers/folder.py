"""A pipeline's folder as diffusers writes it: its denoiser is the host, its configs the spec."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from graftline.errors import CheckpointError
from graftline.models.config_file import CONFIG, read_json
from graftline.models.diffusers.component import CLASS, DiffusersComponent
from graftline.models.diffusers.networks import DRAWN
from graftline.models.diffusers.scheduler import sampling_of
from graftline.models.host import Host, Watch
from graftline.models.onnx_file import OnnxCheckpoint
from graftline.models.spec import Part, Spec

INDEX = "model_index.json"
GRAPH = "model.onnx"
DENOISERS, EXPORTED_DECODER, VAE = ("unet", "transformer"), "vae_decoder", "vae"
SCHEDULER = Path("scheduler") / "scheduler_config.json"


@dataclass(frozen=True)
class DiffusersFolder:
    """`unet` or `transformer`, `vae` where there is one, and `scheduler`. A network is a graph
    (`model.onnx`; of the VAE its decoder, in `vae_decoder`), or else what `save_pretrained` wrote
    (`config.json` and safetensors)."""

    path: Path

    def host(self, full_export: bool = False, watch: Watch | None = None) -> Host:
        """The denoiser, and the spec that the configs are, read where none is given. Raises
        CheckpointError."""
        found = self._denoiser()
        graph = found / GRAPH
        opened = OnnxCheckpoint(graph) if graph.is_file() else DiffusersComponent(found)
        return replace(opened.host(full_export, watch), spec=self.spec)

    def spec(self) -> Spec:
        """What the configs say. Raises CheckpointError naming the file and the field."""
        sampling, config = sampling_of(self.path / SCHEDULER), self._denoiser() / CONFIG
        if config.is_file():
            sampling = replace(sampling, **DRAWN.get(str(read_json(config).get(CLASS)), {}))
        return Spec(sampling=sampling, decoder=self._decoder())

    def _denoiser(self) -> Path:
        """The folder of the one network that denoises."""
        found = [self.path / name for name in DENOISERS if _is_network(self.path / name)]
        if len(found) != 1:
            names = " or ".join(f"{name}/{CONFIG} or {name}/{GRAPH}" for name in DENOISERS)
            why = f"no {names}" if not found else "both a unet and a transformer"
            raise CheckpointError(f"{self.path}: {why}; give a pipeline with one denoiser")
        return found[0]

    def _decoder(self) -> Part | None:
        graph, folder = self.path / EXPORTED_DECODER / GRAPH, self.path / VAE
        if not graph.is_file() and not (folder / CONFIG).is_file():
            return None
        if not graph.is_file():
            scale, shift = DiffusersComponent(folder).scaling()
            return Part(str(folder), scale=scale, shift=shift)
        places = [graph.with_name(CONFIG), folder / CONFIG]
        config = next((read_json(file) for file in places if file.is_file()), {})
        scale, shift = config.get("scaling_factor"), config.get("shift_factor") or 0.0
        if not isinstance(scale, int | float) or not scale:
            raise CheckpointError(
                f"{self.path}: no config.json of the VAE says scaling_factor; add vae/config.json"
            )
        return Part(str(graph), scale=float(scale), shift=float(shift))


def _is_network(folder: Path) -> bool:
    return (folder / GRAPH).is_file() or (folder / CONFIG).is_file()
