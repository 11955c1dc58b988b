"""A user's own ONNX file: read without its weights, its paths and sizes checked first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common

from graftline.contrib_ops.operands import MICROSOFT
from graftline.errors import CheckpointError
from graftline.facts import DecoderFacts, write_facts
from graftline.files import file_state
from graftline.models.graph_facts import facts_of_graph
from graftline.models.hf import generation, tokenizer_files
from graftline.models.host import Host, Watch, silent
from graftline.models.mask_token import mask_token

CONFIG = "config.json"
_KNOWN_TO_RUNTIME = frozenset({"SimplifiedLayerNormalization", "LayerNormalization"})
"""Operators that ONNX Runtime has in the standard domain where the standard has none."""


@dataclass(frozen=True)
class OnnxCheckpoint:
    """One .onnx file, with or without external data beside it; its tokenizer and configuration are
    beside it too, or one folder up where the file lies in onnx/."""

    path: Path

    def host(self, full_export: bool = False, watch: Watch | None = None) -> Host:
        """Read the graph as it is; `full_export` changes nothing."""
        tell = watch or silent
        tell(f"reading {self.path.name}")
        states = {self.path: file_state(self.path)}
        proto = self._proto()
        for tensor in _external(proto):
            file = self._check_external(tensor)
            states.setdefault(file, file_state(file))
            # onnx_ir refuses relative data with several hard links, which a bundle of it makes
            for row in (row for row in tensor.external_data if row.key == "location"):
                row.value = str(file.absolute())
        self._check_graph(proto)
        model = ir.from_proto(proto)
        common.LiftSubgraphInitializersToMainGraphPass()(model)
        folder = companion(self.path)
        facts = facts_of_graph(model, self.path.name)
        if isinstance(facts, DecoderFacts):
            facts = replace(facts, mask_token=mask_token(folder))
        write_facts(model, facts)
        files = tokenizer_files(folder)
        held = {file: state for file, state in states.items() if state is not None}
        defaults = generation(folder)
        return Host(model, facts, files, defaults, own=self.path, states=held)

    def _proto(self) -> onnx.ModelProto:
        try:
            proto = onnx.load(self.path, load_external_data=False)
        except Exception as error:
            raise CheckpointError(
                f"{self.path}: truncated or not an ONNX model; export it again"
            ) from error
        if not proto.graph.node or not proto.graph.output:
            raise CheckpointError(f"{self.path}: an empty graph; export it again")
        return proto

    def _check_external(self, tensor: onnx.TensorProto) -> Path:
        """The file that a tensor lies in. Raises CheckpointError where it cannot lie there."""
        entry = {row.key: row.value for row in tensor.external_data}
        location = entry.get("location", "")
        parts = PureWindowsPath(location).parts
        absolute = PurePosixPath(location).is_absolute() or PureWindowsPath(location).anchor
        if not location or absolute or ".." in parts:
            raise CheckpointError(
                f"{self.path}: tensor '{tensor.name}' lies at {location!r}, outside the model's "
                "folder; save the model with its data beside it"
            )
        file = self.path.parent / location
        if not file.is_file():
            raise CheckpointError(f"{self.path}: its data file {location} is missing; copy it here")
        if file.is_symlink() and not _hub_link(file):
            raise CheckpointError(f"{self.path}: its data file {location} is a link; copy it here")
        offset, length = int(entry.get("offset") or 0), int(entry.get("length") or 0)
        if offset < 0 or offset + length > file.stat().st_size:
            raise CheckpointError(
                f"{self.path}: {location} is truncated ({file.stat().st_size} bytes, tensor "
                f"'{tensor.name}' ends at {offset + length}); copy it again"
            )
        return file

    def _check_graph(self, proto: onnx.ModelProto) -> None:
        """The structural check of onnx, with external weights stood in for by inputs."""
        light = onnx.ModelProto()
        light.CopyFrom(proto)
        del light.graph.initializer[:]
        known = {value.name for value in light.graph.input}
        for tensor in proto.graph.initializer:
            if tensor.name not in known:
                light.graph.input.append(
                    onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
                )
        for node in light.graph.node:
            if node.op_type in _KNOWN_TO_RUNTIME and node.domain in ("", "ai.onnx"):
                node.domain = MICROSOFT
        if all(row.domain != MICROSOFT for row in light.opset_import):
            light.opset_import.append(onnx.helper.make_opsetid(MICROSOFT, 1))
        try:
            onnx.checker.check_model(light)
        except Exception as error:
            reason = str(error).strip().splitlines()[0]
            raise CheckpointError(f"{self.path}: not a valid graph ({reason})") from error


def companion(file: Path) -> Path:
    """The folder of a graph's tokenizer and configuration: its own, or the one above where a
    checkpoint keeps its graphs in a folder of their own."""
    own = file.parent
    above = own.resolve().parent
    bare = not tokenizer_files(own) and not (own / CONFIG).is_file()
    return above if bare and tokenizer_files(above) and (above / CONFIG).is_file() else own


def _hub_link(file: Path) -> bool:
    """True for the Hugging Face cache's layout: snapshots/<commit>/file -> ../../blobs/<hash>."""
    blobs = [parent.parent / "blobs" for parent in file.parents if parent.name == "snapshots"]
    return any(file.resolve().parent == b.resolve() for b in blobs)


def _external(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    graphs = [proto.graph]
    while graphs:
        graph = graphs.pop()
        yield from (t for t in graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL)
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    graphs.append(attribute.g)
                graphs.extend(attribute.graphs)
                if attribute.t.data_location == onnx.TensorProto.EXTERNAL:
                    yield attribute.t
