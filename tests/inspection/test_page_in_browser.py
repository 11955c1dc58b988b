"""The page in a real Chromium: it runs without network, and every part of it works."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from graftline.bundle.reader import COSTS, Bundle
from graftline.inspection.bundle_page import bundle_page
from graftline.inspection.page import render, write_page
from graftline.models.decoder import TinyDecoder
from graftline.runtimes.machine import machine
from tests.commands.calling import call
from tests.inspection.browser import OVERLAPS, SPILLS, browser, opened
from tests.inspection.graphs import hostile, many

STEP = "document.querySelector('.steps [aria-current]').textContent"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as started:
        yield started


@pytest.fixture(scope="module")
def report(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the bundle with every part a page has: its step costs, too, whatever other tests
    of this process measured."""
    folder = tmp_path_factory.mktemp("page")
    copy = shutil.copytree(tiny_bundle, folder / "x.graft", ignore=lambda *_: {COSTS})
    bundle = Bundle.open(copy, verify=False)
    chain = {"1": 10.0, "8": 12.0, "32": 20.0}
    costs = {"chain": chain, "tree": {"1": 10.0, "32": 30.0}, "far": {}}
    assert bundle.write_costs(f"{machine()} threads=2 onnxruntime=1", costs)
    write_page(bundle_page(bundle, None, print), folder / "report.html")
    return folder / "report.html"


def test_it_opens_without_network_and_nothing_overlaps(chromium: Any, report: Path) -> None:
    one = opened(chromium, report)
    assert one.page.locator(".node").count() > 10
    assert one.page.evaluate(OVERLAPS) == 0
    assert one.page.evaluate(SPILLS) == 0
    for part in ("graph", "pipeline", "laws", "exactness", "ports", "weights", "files"):
        assert one.page.locator(f"section#{part}").count() == 1, part
    assert len(set(one.page.screenshot())) > 200, "the picture is not empty"
    assert one.told == []


def test_the_slider_shows_what_each_pass_made(chromium: Any, report: Path) -> None:
    one = opened(chromium, report)
    steps = one.page.locator(".steps button").all_text_contents()
    assert steps[0] == "export"
    assert "canonical" in steps
    assert steps[-1] == "ort-cpu"
    one.page.locator("input[type=range]").fill(str(steps.index("kv-cache")))
    assert one.page.evaluate(STEP) == "kv-cache"
    assert "blocks 0–1" in one.page.locator("details.part[open] summary").all_text_contents()[0]
    assert one.page.locator(".node.hit").count() == 2, "the writes of keys and values"
    assert one.page.locator(".node.later").count() == 0, "what comes later is in the head"
    one.page.locator(".steps button", has_text="canonical").last.click()
    assert one.page.locator(".node.added").count() >= 2
    assert one.page.locator(".node.changed").count() >= 1
    one.page.locator(".steps button").last.click()
    drawn = one.page.locator(".node").count()
    removed = one.page.locator(".node.removed").count()
    assert removed < 10, "in the blocks they would crowd out the rest"
    one.page.locator("input[type=checkbox]").check()
    assert one.page.locator(".node.removed").count() > removed + 10
    assert one.page.locator(".node").count() > drawn
    assert one.page.evaluate(OVERLAPS) == 0
    one.page.locator(".steps button").first.click()
    assert one.page.locator(".node.added, .node.removed, .node.changed").count() == 0
    assert one.told == []


def test_a_click_tells_everything_of_a_node(chromium: Any, report: Path) -> None:
    one = opened(chromium, report)
    one.page.locator(".steps button", has_text="canonical").last.click()
    one.page.locator(".node", has_text="TensorScatter").first.click()
    panel = one.page.locator("#panel")
    told = panel.inner_text()
    for part in ("Made by kv-cache", "axis", "Laws that hold kv-cache", "neutral", "limit"):
        assert part in told, part
    one.page.locator(".node", has_text="MatMul").first.click()
    first = panel.locator("p.mono").inner_text()
    panel.locator("select").select_option(label="block 1")
    assert panel.locator("p.mono").inner_text() != first
    one.page.locator(".steps button").last.click()
    one.page.locator(".node", has_text="FusedMatMul").first.click()
    assert "engine.weights, at " in panel.inner_text()
    assert "KiB" in panel.inner_text()
    panel.locator(".close").click()
    assert "Nothing is selected" in panel.inner_text()
    assert one.told == []


def test_search_and_keyboard(chromium: Any, report: Path) -> None:
    one = opened(chromium, report)
    keys = one.page.keyboard
    keys.press("ArrowLeft")
    assert one.page.evaluate(STEP) != "ort-cpu"
    keys.press("ArrowRight")
    assert one.page.evaluate(STEP) == "ort-cpu"
    keys.press("/")
    keys.type("groupquery")
    assert one.page.locator(".results button").count() >= 1
    keys.press("ArrowDown")
    keys.press("Enter")
    assert "GroupQueryAttention" in one.page.locator("#panel h3").first.inner_text()
    assert one.page.locator(".node.selected").count() == 1
    keys.press("ArrowDown")
    keys.press("Enter")
    assert "GroupQueryAttention" not in one.page.locator("#panel h3").first.inner_text()
    keys.press("Escape")
    assert one.page.locator(".node.selected").count() == 0
    keys.press("/")
    keys.type("no node is called this")
    assert "nothing of that name" in one.page.locator(".results").inner_text()
    assert one.told == []


@pytest.mark.parametrize("options", [
    {"color_scheme": "dark"},
    {"viewport": {"width": 420, "height": 800}},
    {"viewport": {"width": 320, "height": 800}},
])  # fmt: skip
def test_dark_and_narrow_windows(chromium: Any, report: Path, options: dict[str, Any]) -> None:
    one = opened(chromium, report, **options)
    # the page itself does not scroll sideways, once it is laid out; its policy forbids the page to
    # evaluate a condition of ours, so it is asked from here
    for _ in range(100):
        if fits := one.page.evaluate("document.documentElement.scrollWidth <= innerWidth"):
            break
        one.page.wait_for_timeout(100)
    assert fits
    assert one.page.locator("svg.chart").count() == 2, "costs, and what is expected of them"
    colours = one.page.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    )
    lightness = [sum(int(c) for c in text[4:-1].split(",")) for text in colours]
    assert abs(lightness[0] - lightness[1]) > 500, "text stands out"
    assert (lightness[0] < lightness[1]) == ("color_scheme" in options)
    assert one.told == []


def test_it_prints_with_everything_open(chromium: Any, report: Path) -> None:
    one = opened(chromium, report)
    one.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    one.page.emulate_media(media="print")
    assert one.page.locator("details:not([open])").count() == 0
    assert not one.page.locator("nav").is_visible()
    assert len(one.page.pdf()) > 20_000
    assert one.told == []


def test_hostile_names_are_text(chromium: Any, tmp_path: Path) -> None:
    ir.save(hostile(), tmp_path / "hostile.onnx")
    done = call("inspect", tmp_path / "hostile.onnx", "--html", tmp_path / "page.html")
    assert done.exit_code == 0, done.output
    one = opened(chromium, tmp_path / "page.html")
    one.page.locator(".node").first.click()
    assert "<img src=x" in one.page.locator("#panel").inner_text()
    one.page.keyboard.press("/")
    one.page.keyboard.type("script")
    assert one.page.locator(".results button").count() == 3
    assert one.page.evaluate("window.hit") is None
    assert one.page.locator("img").count() == 0
    assert one.told == []


def test_a_page_with_a_foreign_script_does_not_run_it(chromium: Any, tmp_path: Path) -> None:
    data = {"title": "t", "subtitle": "s", "tracks": [], "scenes": [], "weights": []}
    text = render(data).replace("</main>", "</main><script>window.hit = 1</script>")
    (tmp_path / "page.html").write_text(text, encoding="utf-8")
    page = chromium.new_page()
    page.goto((tmp_path / "page.html").as_uri())
    assert page.evaluate("window.hit") is None


def test_ten_thousand_nodes_open(chromium: Any, tmp_path: Path) -> None:
    ir.save(many(10_000), tmp_path / "many.onnx")
    done = call("inspect", tmp_path / "many.onnx", "--html", tmp_path / "page.html")
    assert done.exit_code == 0, done.output
    one = opened(chromium, tmp_path / "page.html")
    assert one.page.locator("details.part").count() == 67
    one.page.locator("details.part summary").last.click()
    one.page.wait_for_selector("details.part:last-child .node")
    assert one.page.evaluate(OVERLAPS) == 0
    assert one.told == []


def test_eighty_layers_are_small_and_quick(chromium: Any, tmp_path: Path) -> None:
    decoder = TinyDecoder(vocabulary=64, hidden=16, head_size=8, layers=80)
    ir.save(decoder.build(), tmp_path / "deep.onnx")
    done = call("inspect", tmp_path / "deep.onnx", "--html", tmp_path / "page.html")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "page.html").stat().st_size < 2_000_000
    one = opened(chromium, tmp_path / "page.html")
    assert any("× 80" in t for t in one.page.locator("summary").all_text_contents())
    assert one.page.locator(".node").count() < 150, "equal blocks are drawn once"
    assert one.told == []
