"""A real Chromium that opens pages from disk, and what it saw."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

PATIENCE = 120_000
"""Milliseconds that a browser may take beside whatever else a machine does."""
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


@dataclass
class Opened:
    """A page in a browser; `told` are console errors, exceptions and requests, which ought to be
    the page itself alone."""

    page: Any
    told: list[str] = field(default_factory=list[str])


@contextmanager
def browser() -> Iterator[Any]:
    """Chromium by Playwright; skips, with the reason, where either is missing."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed (apt-get install)")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield started
        started.close()


def opened(chromium: Any, path: Path, **options: Any) -> Opened:
    """The page at `path`, in a window of 1280 x 900 unless `options` say otherwise."""
    options = {"viewport": {"width": 1280, "height": 900}, **options}
    one = Opened(chromium.new_page(**options))
    one.page.on("console", lambda m: one.told.append(m.text) if m.type == "error" else None)
    one.page.on("pageerror", lambda error: one.told.append(str(error)))
    one.page.on("request", lambda r: None if r.url == path.as_uri() else one.told.append(r.url))
    one.page.set_default_timeout(PATIENCE)
    one.page.goto(path.as_uri())
    one.page.wait_for_selector("html[data-ready=yes]")
    return one


OVERLAPS = """() => [...document.querySelectorAll('.canvas svg')].map(svg => {
  const boxes = [...svg.querySelectorAll('.node > rect, .pill > rect')]
    .map(r => r.getBoundingClientRect());
  let count = 0;
  boxes.forEach((a, i) => boxes.slice(i + 1).forEach(b => {
    const apart = a.right <= b.left || b.right <= a.left || a.bottom <= b.top || b.bottom <= a.top;
    if (!apart) count++;
  }));
  return count;
}).reduce((a, b) => a + b, 0)"""
"""How many pairs of boxes of one drawing overlap."""
SPILLS = """() => [...document.querySelectorAll('.node')].filter(g => {
  const box = g.querySelector('rect').getBoundingClientRect();
  return [...g.querySelectorAll('text')].some(t => {
    const text = t.getBoundingClientRect();
    return text.left < box.left - 1 || text.right > box.right + 1;
  });
}).length"""
"""How many nodes have a text that is wider than their box."""
