"""The page as one file: no server, no network, and nothing of a graph or manifest is run.

Data is JSON in a script element of no executable type, with every "<" written as an escape; the
page's own scripts are named by their digests in a Content-Security-Policy, which allows nothing
else: no other script, no request, no image from outside.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path

from graftline.errors import GraftlineError
from graftline.files import replacing
from graftline.inspection.scene import Json

SCRIPTS = (
    "dagre.min.js", "dom.js", "layout.js", "graph.js", "panel.js", "charts.js", "tables.js",
    "main.js",
)  # fmt: skip
"""The page's own scripts, in order; the first is dagre (MIT, its licence lies beside it)."""


TIMELINE = ("dagre.min.js", "dom.js", "layout.js", "charts.js", "timeline.js")
"""Those of the page that explains an answer, step by step."""


def render(data: Json, names: Sequence[str] = SCRIPTS) -> str:
    """The page as HTML."""
    scripts = [_part(name) for name in names]
    digests = " ".join(f"'sha256-{_digest(text)}'" for text in scripts)
    policy = f"default-src 'none'; script-src {digests}; style-src 'unsafe-inline'; img-src data:"
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return _part("page.html").format(
        title=escape(str(data["title"])),
        policy=escape(policy),
        style=_part("page.css"),
        data=text.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"),
        licence=_part("dagre.LICENSE").strip(),
        scripts="\n".join(f"<script>{script}</script>" for script in scripts),
    )


def write_page(data: Json, path: Path, names: Sequence[str] = SCRIPTS) -> None:
    """Write the page to `path`, whole or not at all. Raises GraftlineError where that fails."""
    try:
        with replacing(path) as rough:
            rough.write_text(render(data, names), encoding="utf-8", newline="\n")
    except OSError as error:
        raise GraftlineError(f"{path} cannot be written ({error.strerror})") from error


def _part(name: str) -> str:
    folder = resources.files("graftline.inspection") / "page_files"
    text = (folder / name).read_text(encoding="utf-8")
    return re.sub(r"^//# sourceMappingURL=.*$", "", text, flags=re.MULTILINE)  # it is a request


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
