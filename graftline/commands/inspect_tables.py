"""The tables of `graftline inspect`; each fits a terminal of 100 columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from graftline.commands import screen
from graftline.files import told_size
from graftline.law import summary
from graftline.owners import TARGET
from graftline.recipe import claimed

if TYPE_CHECKING:
    import onnx_ir as ir

    from graftline.bundle.manifest import Manifest
    from graftline.bundle.reader import Bundle
    from graftline.law import LawRow
    from graftline.ports import Assumption, Port

STRUCTURAL = ("typed", "wellformed", "interface", "alike")


def first_screen(bundle: Bundle) -> Any:
    """What it is, what was grafted, whether it is exact, how fast it is here, how large."""
    return screen.table(str(bundle.path), ("", " "), list(_answers(bundle)))


def _answers(bundle: Bundle) -> Iterator[tuple[str, str]]:
    from graftline.facts import DecoderFacts
    from graftline.inspection.speed import Speed
    from graftline.passes import GRAFTS

    manifest = bundle.manifest
    facts, speed = manifest.facts, Speed(bundle)
    size = f", {facts.parameters:,} parameters" if facts.parameters else ""
    yield "what", f"{facts.kind} of {facts.source or 'a graph'}, {facts.told()}{size}"
    yield "target", f"{manifest.target}, {manifest.dtype}"
    passes = [text.strip() for text in manifest.main.pipeline.split(" | ")]
    names = {text: GRAFTS.get(text.partition("{")[0]) for text in passes}
    grafted = [text for text, graft in names.items() if graft and graft.stage in ("graft", "fuse")]
    by = f", for the recipe {claimed(manifest.recipe)}" if manifest.recipe else ""
    yield "grafted", (", ".join(grafted) or "nothing") + by
    if isinstance(facts, DecoderFacts):
        yield "exact", _exact(manifest)
    yield "laws", summary(manifest.laws)
    if isinstance(facts, DecoderFacts):
        yield "fast here", speed.told
    yield "large", screen.sizes(*bundle.sizes())


def _exact(manifest: Manifest) -> str:
    exact = manifest.exactness
    if exact is None:
        return "not measured"
    worst = f"the worst difference of a row is {exact.worst:.2g}"
    if exact.row_invariant:
        return f"yes, row-invariant: drafts change no token ({worst})"
    told = f"not row-invariant: drafts may change tokens ({worst})"
    if exact.min_rows is None:
        return told
    return f"{told}; exact with --exact, in steps of {exact.min_rows} rows or more"


def print_tables(
    bundle: Bundle | None, model: ir.Model, origin: str, name: str, shown: Any
) -> None:
    """Everything else, on the console `shown`."""
    from dataclasses import asdict

    from graftline.facts import FACTS_KEY, read_facts
    from graftline.ports import read_assumptions, read_ports

    if bundle is not None:
        shown.print(_bundle_table(bundle))
    if FACTS_KEY in model.metadata_props:
        facts = asdict(read_facts(model))
        shown.print(screen.table("facts", ("", " "), list(facts.items())))
    shown.print(_ports_table(read_ports(model), model))
    if assumptions := read_assumptions(model):
        shown.print(_assumptions_table(assumptions))
    shown.print(_anchors_table(model, origin, name))
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
    files = [(rel, told_size(f.size), f.sha256[:12]) for rel, f in bundle.manifest.files.items()]
    shown.print(screen.table("files", ("file", "size#", "sha256"), files))


def _engine_table(engine: Mapping[str, Any], ports: tuple[Port, ...]) -> Any:
    """What the manifest says of the engine: nothing is opened, so no GPU is needed."""
    from graftline.ports import slot_ports
    from graftline.roles import MAIN
    from graftline.runtimes.one_pass.feeding import main_port

    memory = f"{told_size(engine['peak_memory'])} of memory"
    options = engine["options"]
    flags = [name.replace("_", "-") for name, value in options.items() if value is True]
    slots = {p.shape[2] for p in slot_ports(ports)}
    of_slots = f" of {', '.join(map(str, slots))} slots" if slots else ""
    once = any(p.role in MAIN for p in ports)
    sides = [sum(p.direction == side for p in ports) for side in ("in", "out")]
    aliased = sum(p.mirror is not None for p in ports)
    plugins = [f"{name} {digest[:12]}" for name, digest in engine.get("plugins", {}).items()]
    rows = [
        ("built from", f"the graph {engine['graph']}"),
        ("file", f"{engine['file']}, {told_size(engine['size'])}"),
        ("runs on", f"{engine['target']}, with {engine['library']}"),
        ("built in", f"{engine['seconds']:.0f} s, {memory}"),
        ("takes", f"{options['batch']} {'rows' if once else 'sequences'}{of_slots}"),
        *([("options", ", ".join(flags))] if flags else []),
        ("tensors", f"{sides[0]} inputs, {sides[1]} outputs, {aliased} of them written in place"),
        ("plugins", ", ".join(plugins) or "none"),
    ]
    for name, shapes in engine["profiles"].items():
        first = next(p for p in ports if p.direction == "in" and not p.state)
        port = main_port(ports) if once else first
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
    rows = [
        ("pipeline", manifest.main.pipeline),
        *((f"stage {name}", f"{told}; see --stage {name}") for name, told in beside(manifest)),
        *([("defaults", read_defaults(manifest.generation).words)] if manifest.generation else []),
        *((name, f"{value:.4g}") for name, value in manifest.quality.items()),
        *([("packed", "for an app: without the export and the source")] if manifest.packed else []),
        ("created", manifest.created),
        ("versions", ", ".join(f"{k} {v}" for k, v in manifest.versions.items())),
        ("rebuild", manifest.rebuild),
    ]
    return screen.table("how it was made", ("", " "), rows)


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
    from graftline.inspection.blocks import alike, anchors
    from graftline.inspection.places import span

    rows = [(role, str(len(names)), _few(names)) for role, names in anchors(model).items()]
    for these in alike(model):
        rows.append((span(b.name for b in these), str(len(these)), these[0].picture))
    title = f"blocks and anchors of {name} ({len(model.graph)} nodes; {origin})"
    return screen.table(title, ("", "count#", "nodes"), rows)


def _few(names: tuple[str, ...] | list[str], most: int = 6) -> str:
    shown = names if len(names) <= most else [*names[:3], "…", names[-1]]
    return ", ".join(shown)
