"""Building a TensorRT engine from a lowered graph, ahead of time and without a GPU where it can be.

One builder for TensorRT and TensorRT-RTX: their Python API is the same, and `FLAVOURS` says what
differs. The library is imported when a build begins, never before. An engine cannot be run or
opened here without a GPU; `EngineFile` therefore says what is inside.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Event, Thread
from typing import Any

from graftline.build.tensorrt.options import BuildOptions, Shapes
from graftline.build.tensorrt.plugins import for_parser, plugin_names
from graftline.build.tensorrt.target import Target
from graftline.build.tensorrt.watch import engine_writer, error_log, progress_monitor
from graftline.errors import BackendError
from graftline.ports import Port

Watch = Callable[[str], None]
POLL = 0.1
"""Seconds between two looks at a running build."""


@dataclass(frozen=True)
class EngineFile:
    """A built engine: where it is, for what, and how it was made."""

    path: Path
    size: int
    target: str
    library: str
    """Package and version that built it, and that must run it."""
    profiles: Mapping[str, Shapes]
    options: BuildOptions
    seconds: float
    peak_memory: int
    """Bytes by which the build made this process grow, at most; 0 where they cannot be read."""
    plugins: Mapping[str, str] = field(default_factory=dict[str, str])
    """The plugins inside, by name, and the fingerprint of each (plugins/fingerprint.py)."""

    def facts(self) -> dict[str, Any]:
        """For the manifest: everything but the path."""
        return {k: v for k, v in asdict(self).items() if k != "path"}


def build(
    graph: Path,
    ports: Sequence[Port],
    target: str,
    out: Path,
    options: BuildOptions | None = None,
    watch: Watch | None = None,
) -> EngineFile:
    """Build the lowered graph for `target` ("trt-rtx:sm89+sm120") and write the engine to `out`.

    Plugins that it holds must be registered in this process (plugins/quick_plugin.py).
    `watch` is told each step in words, in the caller's thread. Ctrl-C stops the builder at its next
    step and raises KeyboardInterrupt. Raises BackendError with TensorRT's own words.
    """
    options, say = options or BuildOptions(), watch or _silent
    aim = Target.parse(target)
    profiles = options.profiles(ports)
    trt = library(aim)
    aim.check_machine()
    options.check_machine()
    began, before = time.perf_counter(), _resident()
    log = error_log(trt)
    log.clear()
    builder = trt.Builder(log)
    plugins = bool(plugin_names(graph))
    with for_parser(graph) as file:
        network, parser = _network(trt, builder, file, aim, plugins)
    config = _config(trt, builder, aim, options, profiles)
    if plugins:
        config.set_preview_feature(trt.PreviewFeature.ALIASED_PLUGIN_IO_10_03, True)
    peak = _run(trt, builder, network, config, out, aim, say)
    del parser  # until here it owned the weights that the network points into
    _keep_timings(config, options)
    return EngineFile(
        path=out,
        size=out.stat().st_size,
        target=str(aim),
        library=f"{aim.flavour.package} {trt.__version__}",
        profiles=profiles,
        options=options,
        seconds=time.perf_counter() - began,
        peak_memory=max(0, peak - before),
    )


def library(aim: Target) -> Any:
    """The flavour's Python module. Raises BackendError with the command that installs it."""
    try:
        return importlib.import_module(aim.flavour.module)
    except ImportError as error:
        raise BackendError(
            f"{aim}: {aim.flavour.module} cannot be imported ({error}); "
            f"pip install {aim.flavour.package}"
        ) from error


def _network(
    trt: Any, builder: Any, graph: Path, aim: Target, plugins: bool
) -> tuple[Any, Any]:
    """The graph as TensorRT's network, strongly typed, and the parser that owns its weights.

    Kernels of `plugins` are compiled into the engine ahead of time: running it needs no Python.
    """
    kinds = trt.NetworkDefinitionCreationFlag
    flags = 1 << int(kinds.STRONGLY_TYPED)
    if plugins:
        flags |= 1 << int(kinds.PREFER_AOT_PYTHON_PLUGINS)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, builder.logger)
    if not parser.parse_from_file(str(graph)):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        said = [f"{e.node_operator()} '{e.node_name()}': {_line(e.desc())}" for e in errors]
        told = "; ".join(said) or builder.logger.last
        raise BackendError(f"{aim}: TensorRT cannot import {graph.name}: {told}")
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            # without a fused kernel (fp32, odd head sizes) the build fails unless this is allowed
            layer.__class__ = trt.IAttentionInputLayer
            layer.attention.decomposable = True
    return network, parser


def _config(
    trt: Any, builder: Any, aim: Target, options: BuildOptions, profiles: Mapping[str, Shapes]
) -> Any:
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # fp32 is fp32: 10 bits of mantissa are not asked for
    if aim.flavour.ahead_of_time:
        config.num_compute_capabilities = len(aim.capabilities)
        for index, number in enumerate(aim.capabilities):
            capability = getattr(trt.ComputeCapability, f"SM{number}")
            if not config.set_compute_capability(capability, index):
                raise BackendError(f"{aim}: TensorRT refuses sm{number}: {builder.logger.last}")
    for name in (*aim.flavour.flags, *options.flags()):
        config.set_flag(getattr(trt.BuilderFlag, name))
    for shapes in profiles.values():
        profile = builder.create_optimization_profile()
        for name, (smallest, usual, largest) in shapes.items():
            profile.set_shape(name, smallest, usual, largest)
        if config.add_optimization_profile(profile) < 0:
            raise BackendError(f"{aim}: a profile was refused: {builder.logger.last}")
    if options.timing_cache:
        file = Path(options.timing_cache)
        known = file.read_bytes() if file.is_file() else b""
        cache = config.create_timing_cache(known) or config.create_timing_cache(b"")
        if not config.set_timing_cache(cache, ignore_mismatch=False):  # of another GPU or release
            config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
    return config


def _run(
    trt: Any, builder: Any, network: Any, config: Any, out: Path, aim: Target, say: Watch
) -> int:
    """Build in a thread of its own, so that this one hears Ctrl-C; returns the most memory seen."""
    monitor, done, failed = progress_monitor(trt), Event(), list[BaseException]()
    config.progress_monitor = monitor
    partial = out.with_name(f"{out.name}.partial")

    def work() -> None:
        try:
            with partial.open("wb") as file:
                writer = engine_writer(trt, file)
                built = builder.build_serialized_network_to_stream(network, config, writer)
            if writer.failure is not None:
                raise writer.failure
            if not built:
                raise BackendError(
                    f"{aim}: the build failed: {builder.logger.last}; another --dtype or target "
                    "may build (`graftline doctor` lists the targets)"
                )
        except BaseException as error:
            failed.append(error)
        finally:
            done.set()

    peak, told = 0, ""
    thread = Thread(target=work, name="tensorrt-build")
    thread.start()
    while not done.is_set():
        try:
            done.wait(POLL)
            peak = max(peak, _resident())
            if monitor.words != told:
                told = monitor.words
                say(f"{aim}: {told}")
        except BaseException as error:  # Ctrl-C, or a watcher that failed: stop the builder first
            monitor.cancelled = True
            failed.insert(0, error)
    thread.join()
    if failed:
        partial.unlink(missing_ok=True)
        raise failed[0]
    os.replace(partial, out)
    return peak


def _keep_timings(config: Any, options: BuildOptions) -> None:
    if options.timing_cache:
        Path(options.timing_cache).write_bytes(bytes(config.get_timing_cache().serialize()))


def _resident() -> int:
    """Resident memory of this process now, bytes; 0 where the system does not say."""
    with suppress(OSError, ValueError, IndexError):
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    return 0


def _line(text: str) -> str:
    """The first line that says something, short."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = [line for line in lines if "catchCudaError" not in line and "Invalid Node" not in line]
    return (told or lines or [""])[0][:300]


def _silent(line: str) -> None:
    """Watch nothing."""
