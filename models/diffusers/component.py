"""A component of a pipeline of diffusers: config.json and safetensors become a graph that points
into the weights."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftline.errors import CheckpointError, nearest
from graftline.evaluate import Feed
from graftline.facts import write_facts
from graftline.models.config_file import CONFIG, read_json
from graftline.models.diffusers.networks import NETWORKS
from graftline.models.graph_facts import facts_of_graph
from graftline.models.host import Host, Watch, silent
from graftline.models.own_model import silenced, too_large
from graftline.models.reference import OwnNetwork, first_line
from graftline.models.shards import check_index, weight_files
from graftline.models.weights import WeightSource, fill, read_headers
from graftline.optional import require, require_export

if TYPE_CHECKING:
    from graftline.models.export.network import Network

CLASS = "_class_name"
WEIGHTS = "diffusion_pytorch_model"
EARLIER = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
"""What a VAE's attention calls its matrices, and what it called them before diffusers 0.13."""


def is_component(folder: Path) -> bool:
    """Whether a folder's config.json is of a component of diffusers. Raises CheckpointError."""
    return CLASS in read_json(folder / CONFIG)


@dataclass(frozen=True)
class DiffusersComponent:
    """A folder with the config.json and the safetensors of one network of a pipeline."""

    path: Path

    def host(self, full_export: bool = False, watch: Watch | None = None) -> Host:
        """Export the graph from the config alone, then point its initializers into the files.
        Raises CheckpointError naming the file and the field or tensor, and NotApplicable where
        torch cannot export it."""
        require_export()
        from graftline.models.export.network import export_network

        tell = watch or silent
        module, network = self._empty(tell)
        name, variant = self._weights()
        files = weight_files(self.path, tell, name)
        source = read_headers(files)
        check_index(self.path, source, name)
        keys = self._keys(module, source)
        tell(f"torch.export of {type(module).__name__}")
        exported = export_network(module, network)
        graph = exported.model
        fill(graph, sorted(exported.weights), lambda n, shape, kind: source.tensor(
            keys[n], n, shape, kind
        ))  # fmt: skip
        facts = facts_of_graph(graph, f"{self.path.resolve().parent.name}/{self.path.name}")
        write_facts(graph, facts)
        parameters = sum(math.prod(value.shape) for value in module.parameters())
        own = self._own(type(module), network, variant, parameters)
        return Host(graph, facts, weights=source, own=own, states=source.states())

    def scaling(self) -> tuple[float, float]:
        """Of a VAE's latents: scale and shift, as its config or, where that leaves them out, its
        class says. Raises CheckpointError."""
        found = self._class(config := read_json(self.path / CONFIG))
        default = inspect.signature(found.__init__).parameters
        values: list[float] = []
        for field in ("scaling_factor", "shift_factor"):
            value = config.get(field)
            if field not in config and field in default:
                value = default[field].default
            value = 0.0 if value is None else value
            if type(value) not in (int, float) or (field == "scaling_factor" and not value):
                raise CheckpointError(f"{self.path / CONFIG}: {field} is {value!r}; correct it")
            values.append(float(value))
        return values[0], values[1]

    def _class(self, config: Mapping[str, Any]) -> Any:
        name = str(config.get(CLASS))
        if name not in NETWORKS:
            raise CheckpointError(
                f"{self.path / CONFIG}: {CLASS} is {name}{nearest(name, NETWORKS)}; export another "
                "component to ONNX yourself, as model.onnx in its folder"
            )
        return getattr(require("diffusers", "diffusers"), name)

    def _empty(self, tell: Watch) -> tuple[Any, Network]:
        """The module of the config, without weights, and what it is given and gives."""
        from accelerate import init_empty_weights

        file, config = self.path / CONFIG, read_json(self.path / CONFIG)
        found = self._class(config)
        known = inspect.signature(found.__init__).parameters
        if others := sorted(k for k in config if k not in known and not k.startswith("_")):
            version = require("diffusers").__version__
            tell(f"{file}: not read, diffusers {version} has no such fields: {', '.join(others)}")
        try:
            with silenced("diffusers", "diffusers"), init_empty_weights(include_buffers=False):
                module = found.from_config(config)
        except Exception as error:  # diffusers raises whatever its modules do
            raise CheckpointError(
                f"{file}: {found.__name__} cannot be made of it ({first_line(error)}); correct it"
            ) from error
        try:
            return module, NETWORKS[found.__name__](module.config)
        except CheckpointError as error:
            raise CheckpointError(f"{file}: {error}") from error

    def _weights(self) -> tuple[str, str | None]:
        """The name of the weights' file, and the variant that this is: the only one, where there is
        no other."""
        single = f"{WEIGHTS}.safetensors"
        if (self.path / single).is_file() or (self.path / f"{single}.index.json").is_file():
            return single, None
        variants = sorted(self.path.glob(f"{WEIGHTS}.*.safetensors"))
        if len(variants) == 1:
            return variants[0].name, variants[0].name.split(".")[1]
        raise CheckpointError(
            f"{self.path}: no {single}"
            + (f" but {len(variants)} variants; keep one" if variants else
               "; download it, or save the model again with save_pretrained")
        )  # fmt: skip

    def _keys(self, module: Any, source: WeightSource) -> dict[str, str]:
        """The stored name of every tensor of the module. Raises CheckpointError for one that is
        missing or has another shape, and for one of the files that the module does not have."""
        file, keys = self.path / CONFIG, dict[str, str]()
        for name, value in module.state_dict().items():
            keys[name] = key = next((n for n in _names(name) if n in source.stored), name)
            if key not in source.stored:
                raise CheckpointError(
                    f"{self.path}: tensor '{name}' is missing in its safetensors; download them "
                    f"again, or correct {CONFIG}"
                )
            found = source.stored[key]
            if found.shape != tuple(value.shape):
                raise CheckpointError(
                    f"{file}: '{name}' would be {list(value.shape)}, and in {found.file.name} it "
                    f"is {list(found.shape)}; they do not belong together"
                )
        if left := sorted(source.stored.keys() - set(keys.values())):
            raise CheckpointError(
                f"{file}: {type(module).__name__} has no tensor '{left[0]}', which is in "
                f"{source.stored[left[0]].file.name}; they do not belong together"
            )
        return keys

    def _own(
        self, found: Any, network: Network, variant: str | None, parameters: int
    ) -> OwnNetwork:
        """The module as diffusers loads it, in fp32."""

        def run(feeds: Sequence[Feed]) -> list[Feed] | str:
            import torch

            if short := too_large(4 * parameters):
                return f"{found.__name__} {short}"
            try:
                with silenced("diffusers", "diffusers"), torch.no_grad():
                    module = found.from_pretrained(
                        self.path, torch_dtype=torch.float32, variant=variant,
                        use_safetensors=True, local_files_only=True,
                    ).eval()  # fmt: skip
                    return [_run(module, network, feed) for feed in feeds]
            except Exception as error:  # diffusers and torch raise whatever they do
                return f"diffusers cannot run {found.__name__} ({first_line(error)})"

        return OwnNetwork(run)


def _run(module: Any, network: Network, feed: Feed) -> Feed:
    import torch

    given = [torch.from_numpy(feed[one.name]) for one in network.inputs]
    return {network.output: network.call(module, *given).numpy()}


def _names(name: str) -> list[str]:
    """What a file may call a tensor."""
    pairs = [(new, old) for new, old in EARLIER.items() if f".{new}." in name]
    return [name, *(name.replace(f".{new}.", f".{old}.") for new, old in pairs)]
