"""An engine as an object of an app's: it can be sent to another process, and dropped."""

from __future__ import annotations

import gc
import pickle
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from graftline.errors import RequestError
from graftline.runtimes.engine import Engine
from graftline.runtimes.load import load


@pytest.fixture
def no_collection() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


def test_an_engine_is_pickled_as_its_path(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_bundle.parent)
    engine = load(tiny_bundle.name, capacity=100, max_batch=3, recipe="suffix", prefix_cache=0)
    data = pickle.dumps(engine)
    assert len(data) < 2000
    monkeypatch.chdir("/")
    again: Engine = pickle.loads(data)
    assert again.session is not engine.session
    assert (again.session.capacity, again.recipe.name) == (100, "suffix")
    assert (again._scheduler.seats, again._scheduler.prompts.prefixes) == (3, None)
    want = engine.generate([1, 2, 3], max_new_tokens=6).tokens
    assert again.generate([1, 2, 3], max_new_tokens=6).tokens == want
    assert pickle.dumps(engine.sibling()) == data
    code = "import sys, pickle; e = pickle.load(sys.stdin.buffer)\n"
    code += "print(e.generate([1, 2, 3], max_new_tokens=6).tokens)"
    done = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=True)
    assert done.stdout.decode().strip() == str(want)


def test_an_engine_made_by_hand_has_no_path(make_engine: Callable[..., Engine]) -> None:
    with pytest.raises(RequestError, match="not made by load, so it has no path to pickle"):
        pickle.dumps(make_engine())


def test_a_dropped_engine_is_gone_without_a_collection(
    tiny_bundle: Path, load_freezes: None, no_collection: None
) -> None:
    """`load` freezes what is alive, so garbage of an engine that needs a collection would stay."""
    gc.unfreeze()
    engine = load(tiny_bundle)
    assert gc.get_freeze_count() > 1000
    engine.generate([1, 2, 3], max_new_tokens=3)
    engine.generate([[1, 2], [5]], max_new_tokens=3, batch=1)
    engine.branches([1, 2], [[3], [4]], max_new_tokens=2)
    engine.submit([1, 2, 3], max_new_tokens=40).close()
    passes = engine.passes([1, 2, 3], max_new_tokens=40)
    next(passes)
    passes.close()
    session = weakref.ref(engine.session)
    prefixes = engine._scheduler.prompts.prefixes
    assert prefixes is not None
    kept = weakref.ref(prefixes._root.following[0])
    gone = [weakref.ref(engine.sibling().session), weakref.ref(engine), session, kept]
    load(tiny_bundle)  # freezes what is alive now
    del engine, passes, prefixes
    assert [one() for one in gone] == [None] * 4
