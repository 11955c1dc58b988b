"""`graftline inspect`: what a bundle or a graph holds, what was rewritten, and why it is safe."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftline.commands import libraries, screen
from graftline.commands.options.arguments import BundleOrGraph
from graftline.commands.options.printing import Json
from graftline.commands.options.showing import (
    ModelExplorer,
    Nodes,
    Page,
    Picture,
    ShownPass,
    ShownStage,
)
from graftline.errors import GraftlineError

if TYPE_CHECKING:
    import onnx_ir as ir

    from graftline.bundle.reader import Bundle
    from graftline.inspection.blocks import Block


def inspect(
    path: BundleOrGraph,
    stage: ShownStage = None,
    graph: Picture = False,
    nodes: Nodes = None,
    made_by: ShownPass = None,
    html: Page = None,
    model_explorer: ModelExplorer = None,
    json: Json = False,
) -> None:
    """Show what a bundle is, what was grafted, whether it is exact, how fast and how large it is;
    then ports, blocks and anchors, what each pass added and why, laws and files.

    Examples:

    `graftline inspect smol.graft`

    `graftline inspect smol.graft --html report.html`

    `graftline inspect smol.graft --graph --stage canonical`

    `graftline inspect smol.graft --pass kv-cache`

    `graftline inspect model.onnx --nodes 0`
    """
    from graftline.bundle.reader import Bundle
    from graftline.inspection.opening import is_graph

    bundle: Bundle | None = None
    if is_graph(path):
        if stage is not None:
            raise GraftlineError("--stage is for bundles, and this is a single graph; leave it out")
        file = path
    else:
        bundle = Bundle.open(path, verify=False)
        file = bundle.graph(stage or bundle.manifest.target)
    libraries.silence_onnxruntime()
    if html is not None:
        _write_page(bundle, path, stage, html)
    if model_explorer is not None:
        _write_model_explorer(bundle, path, stage, model_explorer)
    if html is not None or model_explorer is not None:
        return
    from graftline.inspection.blocks import block, stamped

    model, origin = stamped(file)
    if made_by is not None:
        _show_pass(bundle, model, made_by, json)
    elif nodes is not None:
        _show_nodes(block(model, nodes), json)
    elif graph:
        _show_picture(model, json)
    elif json:
        screen.write_json(_summary(bundle, model, origin))
    else:
        _show_summary(bundle, model, origin, file)


def _write_page(bundle: Bundle | None, path: Path, stage: str | None, html: Path) -> None:
    from graftline.inspection.bundle_page import bundle_page
    from graftline.inspection.graph_page import graph_page
    from graftline.inspection.page import write_page

    with screen.steps(quiet=not sys.stderr.isatty()) as watch:
        if bundle is None:
            watch(f"drawing {path}")
            page = graph_page(path)
        else:
            page = bundle_page(bundle, stage, watch)
        write_page(page, html)
    print(f"wrote {html}; open it in a browser")


def _write_model_explorer(
    bundle: Bundle | None, path: Path, stage: str | None, folder: Path
) -> None:
    from graftline.inspection.model_explorer import write_collections

    with screen.steps(quiet=not sys.stderr.isatty()) as watch:
        watch(f"writing the graphs of {path}")
        written = write_collections(bundle, path, stage, folder)
    print(f"wrote {', '.join(written)} to {folder}; open them in Model Explorer")


def _show_pass(bundle: Bundle | None, model: ir.Model, name: str, json: bool) -> None:
    from graftline.inspection.pass_view import pass_view

    view = pass_view(model, name, None if bundle is None else bundle.manifest)
    if json:
        screen.write_json(asdict(view))
        return
    shown = screen.console()
    for row in view.rows:
        nodes = f"{row.nodes_before} → {row.nodes_after} nodes in {row.seconds:.2f} s"
        shown.print(screen.table(row.text, ("", " "), [("nodes", nodes), ("why", row.why)]))
    columns = ("where", "of each#", "operator", "names")
    shown.print(screen.table(f"nodes that {name} made", columns, view.made))
    if view.laws:
        rows = [(law.law, law.status, law.text) for law in view.laws]
        columns = ("law", "status", "what was compared")
        shown.print(screen.table(f"laws that {name} was held to", columns, rows))


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
    from graftline.inspection.blocks import alike, blocks
    from graftline.inspection.places import span

    if json:
        screen.write_json(
            [
                {"block": b.name, "nodes": len(b.nodes), "picture": b.picture, "made_by": b.made_by}
                for b in blocks(model)
            ]
        )
        return
    for these in alike(model):
        times = f" × {len(these)}" if len(these) > 1 else ""
        name = f"{span(b.name for b in these)}{times}"
        print(f"{name:<18} {len(these[0].nodes):4d} nodes  {these[0].picture}")


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
    from graftline.commands.inspect_tables import first_screen, print_tables

    shown = screen.console()
    if bundle is not None:
        shown.print(first_screen(bundle))
    print_tables(bundle, model, origin, file.name, shown)
