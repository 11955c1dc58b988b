"""`graftline inspect`: what a bundle or a graph holds, what was rewritten, and why it is safe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftline.commands import libraries, screen
from graftline.commands import options as o
from graftline.errors import GraftlineError
from graftline.law import summary
from graftline.owners import TARGET

if TYPE_CHECKING:
    import onnx_ir as ir

    from graftline.bundle.reader import Bundle
    from graftline.inspection.blocks import Block
    from graftline.law import LawRow
    from graftline.ports import Assumption, Port

STRUCTURAL = ("typed", "wellformed", "interface", "alike")


def inspect(
    path: o.BundleOrGraph,
    stage: o.ShownStage = None,
    graph: o.Picture = False,
    nodes: o.Nodes = None,
    json: o.Json = False,
) -> None:
    """Show facts, ports, blocks and anchors, what each pass added and why, laws and sizes.

    Examples:

    `graftline inspect smol.graft`

    `graftline inspect smol.graft --graph --stage canonical`

    `graftline inspect model.onnx --nodes 0`
    """
    from graftline.bundle.reader import Bundle

    bundle: Bundle | None = None
    if path.suffix == ".onnx" and not path.is_dir():
        if stage is not None:
            raise GraftlineError("--stage is for bundles, and this is a single graph; leave it out")
        if not path.is_file():
            raise GraftlineError(f"{path}: no such file")
        file = path
    else:
        bundle = Bundle.open(path, verify=False)
        file = bundle.graph(stage or bundle.manifest.target)
    libraries.silence_onnxruntime()
    from graftline.inspection.blocks import block, stamped

    model, origin = stamped(file)
    if nodes is not None:
        _show_nodes(block(model, nodes), json)
    elif graph:
        _show_picture(model, json)
    elif json:
        screen.write_json(_summary(bundle, model, origin))
    else:
        _show_summary(bundle, model, origin, file)


def _show_nodes(found: Block, json: bool) -> None:
    from graftline.inspection.blocks import node_rows

    columns = ("operator", "name", "makes", "role", "made by")
    rows = node_rows(found)
    if json:
        screen.write_json([dict(zip(columns, row, strict=True)) for row in rows])
        return
    title = f"block {found.name}: {len(rows)} nodes"
    screen.console().print(screen.table(title, columns, rows))


def _show_picture(model: ir.Model, json: bool) -> None:
    from graftline.inspection.blocks import blocks

    found = blocks(model)
    if json:
        screen.write_json(
            [
                {"block": b.name, "nodes": len(b.nodes), "picture": b.picture, "made_by": b.made_by}
                for b in found
            ]
        )
        return
    for one in found:
        print(f"{one.name:>9}  {len(one.nodes):4d} nodes  {one.picture}")


def _summary(bundle: Bundle | None, model: ir.Model, origin: str) -> dict[str, Any]:
    from graftline.inspection.blocks import anchors, blocks
    from graftline.ports import read_ports

    manifest = asdict(bundle.manifest) if bundle is not None else {}
    return {
        **manifest,
        "graph": {
            "nodes": len(model.graph),
            "weights": len(model.graph.initializers),
            "ports": [asdict(p) for p in read_ports(model)],
            "anchors": anchors(model),
            "anchors_are": origin,
            "blocks": {b.name: len(b.nodes) for b in blocks(model)},
        },
    }


def _show_summary(bundle: Bundle | None, model: ir.Model, origin: str, file: Path) -> None:
    from graftline.facts import FACTS_KEY, read_facts
    from graftline.ports import read_assumptions, read_ports

    shown = screen.console()
    if bundle is not None:
        shown.print(_bundle_table(bundle))
    if FACTS_KEY in model.metadata_props:
        facts = asdict(read_facts(model))
        shown.print(screen.table("facts", ("", " "), list(facts.items())))
    shown.print(_ports_table(read_ports(model), model))
    if assumptions := read_assumptions(model):
        shown.print(_assumptions_table(assumptions))
    shown.print(_anchors_table(model, origin, file.name))
    if bundle is None:
        return
    for _, engine in bundle.manifest.built():
        ports = bundle.manifest.stages[engine["graph"]].ports
        shown.print(_engine_table(engine, ports))
    passes = bundle.manifest.passes
    rows = [
        (
            _owned(p.owner, p.text), f"{p.nodes_before} → {p.nodes_after}", f"{p.seconds:.2f}",
            _few(p.added), p.why,
        )
        for p in passes
    ]  # fmt: skip
    columns = ("pass", "nodes", "seconds#", "added", "why")
    shown.print(screen.table("passes", columns, rows))
    laws = _law_rows(bundle.manifest.laws)
    columns, title = ("after", "law", "what was compared"), summary(bundle.manifest.laws)
    shown.print(screen.table(f"laws: {title}", columns, laws))
    files = [(rel, screen.size(f.size), f.sha256[:12]) for rel, f in bundle.manifest.files.items()]
    shown.print(screen.table("files", ("file", "size#", "sha256"), files))


def _engine_table(engine: Mapping[str, Any], ports: tuple[Port, ...]) -> Any:
    """What the manifest says of the engine: nothing is opened, so no GPU is needed."""
    from graftline.ports import slot_ports

    memory = f"{screen.size(engine['peak_memory'])} of memory"
    options = engine["options"]
    flags = [name.replace("_", "-") for name, value in options.items() if value is True]
    slots = {p.shape[2] for p in slot_ports(ports)}
    of_slots = f" of {', '.join(map(str, slots))} slots" if slots else ""
    sides = [sum(p.direction == side for p in ports) for side in ("in", "out")]
    aliased = sum(p.mirror is not None for p in ports)
    plugins = [f"{name} {digest[:12]}" for name, digest in engine.get("plugins", {}).items()]
    rows = [
        ("built from", f"the graph {engine['graph']}"),
        ("file", f"{engine['file']}, {screen.size(engine['size'])}"),
        ("runs on", f"{engine['target']}, with {engine['library']}"),
        ("built in", f"{engine['seconds']:.0f} s, {memory}"),
        ("takes", f"{options['batch']} sequences{of_slots}"),
        *([("options", ", ".join(flags))] if flags else []),
        ("tensors", f"{sides[0]} inputs, {sides[1]} outputs, {aliased} of them written in place"),
        ("plugins", ", ".join(plugins) or "none"),
    ]
    for name, shapes in engine["profiles"].items():
        port = next(p for p in ports if p.direction == "in" and not p.state)
        least, _, most = shapes[port.name]
        rows.append((f"profile {name}", f"{port.role} {least} to {most}"))
    return screen.table("engine", ("", " "), rows)


def _law_rows(laws: tuple[LawRow, ...]) -> list[tuple[str, str, str]]:
    """One row per law; the structural ones, the same after every pass, are one row together."""
    structural = [law for law in laws if law.law in STRUCTURAL]
    grafts = len({law.graft for law in structural})
    told = f"{len(structural)} checks on the whole graph, after each of {grafts} passes"
    rows = [("every pass", ", ".join(STRUCTURAL), told)] if structural else []
    others = [w for w in laws if w.law not in STRUCTURAL]
    return rows + [(_owned(w.owner, w.graft), w.law, w.text) for w in others]


def _owned(owner: str, text: str) -> str:
    """A pass or law, and whose it is where it is not the target's."""
    return text if owner == TARGET else f"{owner}: {text}"


def _bundle_table(bundle: Bundle) -> Any:
    from graftline.bundle.report import beside
    from graftline.runtimes.defaults import read_defaults

    manifest = bundle.manifest
    exactness = "not measured"
    if manifest.exactness is not None:
        invariant = "yes" if manifest.exactness.row_invariant else "no"
        exactness = f"row-invariant: {invariant} (worst {manifest.exactness.worst:.2g})"
    rows = [
        ("recipe", manifest.recipe),
        ("target", f"{manifest.target}, {manifest.dtype}"),
        ("pipeline", manifest.main.pipeline),
        *((f"stage {name}", f"{told}; see --stage {name}") for name, told in beside(manifest)),
        ("exactness", exactness),
        *([("defaults", read_defaults(manifest.generation).words)] if manifest.generation else []),
        *((name, f"{value:.4g}") for name, value in manifest.quality.items()),
        *([("packed", "for an app: without the export and the source")] if manifest.packed else []),
        ("size", screen.sizes(*bundle.sizes())),
        ("created", manifest.created),
        ("versions", ", ".join(f"{k} {v}" for k, v in manifest.versions.items())),
        ("rebuild", manifest.rebuild),
    ]
    return screen.table(str(bundle.path), ("", " "), rows)


def _ports_table(ports: tuple[Port, ...], model: ir.Model) -> Any:
    """Ports in order; those that differ only in their layer are one row."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for port in ports:
        shape = f"[{', '.join(map(str, port.shape))}] {port.dtype}"
        rows.setdefault((port.direction, port.role, shape), []).append(port.name)
    if not ports:
        graph = model.graph
        for direction, values in (("in", graph.inputs), ("out", graph.outputs)):
            for value in values:
                rows[(direction, "no role", f"{value.shape} {value.dtype}")] = [value.name or ""]
    listed = [(*key, _few(names)) for key, names in rows.items()]
    return screen.table("ports", ("", "role", "shape", "names"), listed)


def _assumptions_table(assumptions: tuple[Assumption, ...]) -> Any:
    """What stands in place of inputs of the export; inputs of one kind are one row."""
    rows: dict[tuple[str, str, str], list[str]] = {}
    for a in assumptions:
        rows.setdefault((a.role, a.value, a.why), []).append(a.input)
    listed = [(_few(names), *key) for key, names in rows.items()]
    return screen.table("assumptions", ("inputs of the export", "are", "taken as", "why"), listed)


def _anchors_table(model: ir.Model, origin: str, name: str) -> Any:
    from graftline.inspection.blocks import anchors, blocks, same

    rows = [(role, str(len(names)), _few(names)) for role, names in anchors(model).items()]
    numbered = [b for b in blocks(model) if b.name.isdigit()]
    for first, last, picture in same(b.picture for b in numbered):
        span = f"block {first}" if first == last else f"blocks {first}-{last}"
        rows.append((span, str(last - first + 1), picture))
    title = f"blocks and anchors of {name} ({len(model.graph)} nodes; {origin})"
    return screen.table(title, ("", "count#", "nodes"), rows)


def _few(names: tuple[str, ...] | list[str], most: int = 6) -> str:
    shown = names if len(names) <= most else [*names[:3], "…", names[-1]]
    return ", ".join(shown)
