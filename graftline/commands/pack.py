"""`graftline pack`: what an app ships of a bundle."""

from __future__ import annotations

from dataclasses import asdict

from graftline.commands import libraries, screen
from graftline.commands.options.arguments import BundleFolder
from graftline.commands.options.printing import Json, Quiet
from graftline.commands.options.showing import PackedOut
from graftline.files import told_size


def pack(
    bundle: BundleFolder,
    out: PackedOut,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Make what an app ships: engine, tokenizer, manifest and report, without the source weights.

    The result loads and runs like the bundle, and is verified like it. `graftline check` of it says
    what it can no longer compare. An older packed bundle at DIR or FILE.tar is replaced.

    Examples:

    `graftline pack smol.graft -o app/smol`

    `graftline pack smol.graft -o smol.tar`
    """
    libraries.silence_onnxruntime()
    with screen.steps(quiet) as watch:
        from graftline.bundle.pack import pack as pack_bundle

        made = pack_bundle(bundle, out, watch)
    if json:
        screen.write_json({**asdict(made), "path": str(out)})
        return
    print(f"{out}: {told_size(made.size)} of {told_size(made.before)}")
    if out.suffix == ".tar":
        print(f"unpack it with: tar -xf {out}")
