"""Draws the pictures of README and docs from a bundle: pictures.py BUNDLE [--out docs].

The page of `graftline inspect --html` and the timeline of `graftline run --timeline`, as a real
Chromium shows them.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.inspection.browser import browser, opened

PROMPT = "Write a short poem about the sea. Then write the same poem again, word for word."
WINDOW = {"width": 1280, "height": 800}


def command(*words: object) -> None:
    """Run `graftline` and wait for it."""
    code = "from graftline.commands.cli import main; main()"
    subprocess.run([sys.executable, "-c", code, *map(str, words)], check=True)


def shot(page: Any, path: Path, **options: Any) -> None:
    """A screenshot of what the window shows."""
    page.screenshot(path=path, **options)
    print(f"{path}: {path.stat().st_size / 1024:.0f} kB")


def main() -> None:
    """Make the pages, open them, and take the pictures."""
    given = argparse.ArgumentParser(description=__doc__)
    given.add_argument("bundle", type=Path)
    given.add_argument("--out", type=Path, default=Path("docs"))
    asked = given.parse_args()
    with tempfile.TemporaryDirectory() as folder, browser() as chromium:
        page, timeline = Path(folder, "page.html"), Path(folder, "timeline.html")
        command("inspect", asked.bundle, "--html", page)
        command("run", asked.bundle, PROMPT, "--max-new-tokens", 96, "--timeline", timeline)
        one = opened(chromium, page, viewport=WINDOW).page
        one.locator(".steps button", has_text="kv-cache").first.click()
        one.locator("#graph").scroll_into_view_if_needed()
        shot(one, asked.out / "inspect.png")
        one.locator(".node", has_text="TensorScatter").first.click()
        shot(one, asked.out / "inspect-node.png")
        dark = opened(chromium, page, viewport=WINDOW, color_scheme="dark").page
        for name in ("costs", "weights"):
            dark.locator(f"section#{name}").screenshot(path=asked.out / f"inspect-{name}.png")
        shot(opened(chromium, timeline, viewport=WINDOW).page, asked.out / "timeline.png")


if __name__ == "__main__":
    main()
