"""`graftline check`: is a bundle still what it was proven to be?"""

from __future__ import annotations

from dataclasses import asdict

from graftline.commands import libraries, screen
from graftline.commands.options.arguments import BundleFolder
from graftline.commands.options.printing import Json, Quiet


def check(
    bundle: BundleFolder,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Re-hash every file, re-run the laws, and compare greedy tokens with the unmodified export.

    The exit code is 0 if everything holds, and 2 on any difference.

    Examples:

    `graftline check smol.graft`

    `graftline check smol.graft -q --json`
    """
    libraries.silence_onnxruntime()
    from graftline.build.check import check as check_bundle

    with screen.steps(quiet) as watch:
        report = check_bundle(bundle, watch)
    if json:
        screen.write_json({**asdict(report), "holds": report.holds})
    else:
        words = {"held": "holds", "measured": "measured", "not_run": "not run"}
        rows = [
            (words[f.status] if f.holds else "BROKEN", f.what, f.found) for f in report.findings
        ]
        screen.console().print(screen.table(str(bundle), ("", "checked", "found"), rows))
    if not report.holds:
        wrong = next(f for f in report.findings if not f.holds)
        from graftline.errors import BundleError

        raise BundleError(f"{bundle} is not what it was: {wrong.what}: {wrong.found}")
