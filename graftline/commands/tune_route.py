"""`graftline tune --recipes self-skip`: the route that pays most on these prompts."""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from graftline.errors import BundleError, GraftlineError
from graftline.route import ROUTE, text_of
from graftline.targets import CPU

if TYPE_CHECKING:
    import onnx_ir as ir

    from graftline.bundle.reader import Bundle
    from graftline.runtimes.control.costs import Costs
    from graftline.runtimes.request import Ints
    from graftline.runtimes.study.routes import Skipped, Tried

Watch = Callable[[str], None]


@dataclass(frozen=True)
class Routed:
    """The best route found, as `--skip` says it, what was measured of it and of the route that the
    bundle had, and whether the bundle is another one now."""

    skip: str
    found: Tried
    before: Tried
    changed: bool


def tune_route(
    bundle: Bundle, texts: Sequence[tuple[Ints, int]], costs: Costs, threads: int, watch: Watch
) -> Routed:
    """Search the parts of blocks that a route skips by the target's own answers: `texts` are
    prompts with their answers, and how long each prompt is. Make the bundle again with the best.

    What was measured is kept in the bundle until then, so that a search that was interrupted goes
    on where it was. Raises GraftlineError for a bundle without a route, or blocks that are no sums.
    """
    from graftline.bundle.manifest import CANONICAL
    from graftline.bundle.store import load_graph
    from graftline.passes.grafts.keep_parts import keep_parts
    from graftline.runtimes.study.routes import Search

    _check(bundle)
    model = load_graph(bundle.graph(CANONICAL))
    work = keep_parts(model)
    measured = Agreement(bundle, texts, Gated(model, threads), len(work.parts))
    one = costs.of(1)
    search = Search(work.parts, work.whole, lambda rows: costs.of(rows) / one, measured)
    current = _parts(bundle)
    best, before = search.run(current, watch), search.tried(current)
    skip, changed = skip_text(best.skipped), best.skipped != current
    if changed:
        _remake(bundle, skip, watch)
    return Routed(skip, best, before, changed)


def _parts(bundle: Bundle) -> Skipped:
    """The parts that the bundle's route skips."""
    from graftline.facts import as_decoder
    from graftline.passes import GRAFTS, Pipeline
    from graftline.passes.grafts.layer_skip import LayerSkip
    from graftline.route import Route

    stages = bundle.manifest.stages
    grafts = Pipeline.parse(stages[ROUTE].pipeline, GRAFTS).grafts
    (skip,) = [g for g in grafts if isinstance(g, LayerSkip)]
    count = as_decoder(bundle.manifest.facts).layers
    way = Route.of(count, skip.layers, skip.attention, skip.mlp)
    return frozenset({*(2 * b for b in way.attention), *(2 * b + 1 for b in way.mlp)})


def skip_text(skipped: Skipped) -> str:
    """Skipped parts as `--skip` says them."""
    attention = {part // 2 for part in skipped if part % 2 == 0}
    mlp = {part // 2 for part in skipped if part % 2}
    parts = {"layers": attention & mlp, "attention": attention - mlp, "mlp": mlp - attention}
    return ",".join(f"{name}={text_of(blocks)}" for name, blocks in parts.items() if blocks)


class Gated:
    """A graph with an input that says which parts count, opened to read whole texts."""

    def __init__(self, model: ir.Model, threads: int) -> None:
        from graftline.runtimes.ort.held import open_model

        self._model, self._session = model, open_model(model, threads)

    def best(self, tokens: Ints, keep: Any) -> Any:
        """The best token after each of `tokens` [N] with the parts `keep` [2 L]."""
        import numpy as np

        from graftline.passes.grafts.keep_parts import KEEP
        from graftline.passes.grafts.kv_cache import empty_caches
        from graftline.passes.grafts.tree_mask import causal_mask
        from graftline.passes.graph.ports import roles_of

        count, start, roles = len(tokens), np.zeros(1, np.int64), roles_of(self._model)
        every = np.arange(count, dtype=np.int64)[None]
        mask = causal_mask(start, count, count)
        given = {"tokens": np.asarray(tokens, np.int64)[None], "positions": every, "rows": every}
        feed = roles.feed(**given, write_index=start, mask=mask)
        feed |= empty_caches(self._model, 1, count) | {KEEP: keep}
        name = "argmax" if "argmax" in roles.outputs else "logits"
        (found,) = self._session.run([roles.outputs[name]], feed)
        return found[0] if name == "argmax" else found[0].argmax(-1)


@dataclass
class Agreement:
    """Share of the tokens of the target's answers that a route finds best too, each behind what
    the target wrote; known ones are read from the bundle."""

    bundle: Bundle
    texts: Sequence[tuple[Ints, int]]
    graph: Gated
    parts: int
    known: dict[str, float] = field(init=False)

    def __post_init__(self) -> None:
        said = repr([(list(map(int, text)), start) for text, start in self.texts])
        self._key = f"routes {hashlib.sha256(said.encode()).hexdigest()[:16]}"
        self.known = dict(self.bundle.read_costs(self._key) or {})

    def __call__(self, skipped: Skipped) -> float:
        import numpy as np

        key = ",".join(map(str, sorted(skipped)))
        if key not in self.known:
            keep = np.ones(self.parts, np.float32)
            keep[sorted(skipped)] = 0.0
            same = [
                self.graph.best(text[:-1], keep)[start - 1 :] == text[start:]
                for text, start in self.texts
            ]
            self.known[key] = float(np.mean(np.concatenate(same)))
            self.bundle.write_costs(self._key, self.known)
        return self.known[key]


def _check(bundle: Bundle) -> None:
    """Raise where a bundle has no route, or cannot be made again with another."""
    from graftline.bundle.manifest import EXPORT

    manifest = bundle.manifest
    again = f"rebuild it with another --skip: {manifest.rebuild}"
    if manifest.target != CPU or ROUTE not in manifest.stages:
        raise GraftlineError(
            f"{bundle.path} has no route to tune; build one: graftline optimize CHECKPOINT "
            "--recipe self-skip"
        )
    if EXPORT not in manifest.stages or bundle.without_source():
        raise BundleError(
            f"{bundle.path} is without its source weights, which a route is searched on; tune the "
            f"bundle that it was packed from, or {again}"
        )
    if other := [n for n, s in manifest.stages.items() if s.made_of not in ("", EXPORT)]:
        raise GraftlineError(f"{bundle.path} has {other[0]}, made of another checkpoint; {again}")


def routed(pipeline: str, skip: str) -> str:
    """The pipeline of a route with other options of layer-skip."""
    from graftline.passes import GRAFTS, Pipeline

    text = re.sub(r"layer-skip\{[^}]*\}", f"layer-skip{{{skip}}}", pipeline)
    return str(Pipeline.parse(text, GRAFTS))


def _remake(bundle: Bundle, skip: str, watch: Watch) -> None:
    """Compile, prove and write the bundle with another route, in its own place."""
    from graftline.build.assemble import write_bundle
    from graftline.build.compiled import Compiler, compile_stages
    from graftline.build.pipelines import StagePlan
    from graftline.build.plan import Plan
    from graftline.bundle.manifest import EXPORT
    from graftline.bundle.store import load_graph
    from graftline.bundle.writer import BundleWriter
    from graftline.models.host import Host
    from graftline.recipe import recipe

    manifest = bundle.manifest
    watch(f"making the bundle again with --skip {skip}")
    compiler = Compiler(load_graph(bundle.graph(EXPORT)), watch)
    files = [bundle.path / rel for rel in manifest.tokenizer]
    host = Host(compiler.raw, manifest.facts, files, dict(manifest.generation))
    made = [(name, s) for name, s in manifest.stages.items() if s.made_of]
    stages = [
        StagePlan(
            name, s.role, routed(s.pipeline, skip) if name == ROUTE else s.pipeline, s.dtype,
            s.owner, s.made_of, inputs_from=s.inputs_from,
        )
        for name, s in made
    ]  # fmt: skip
    stages.sort(key=lambda s: s.name != manifest.target)
    plan = Plan(recipe(manifest.recipe), manifest.target, tuple(stages))
    compiled = compile_stages({EXPORT: compiler}, plan)
    with BundleWriter(bundle.path, watch=watch) as writer:
        new = write_bundle(writer, {EXPORT: host}, plan, compiled, "link", watch)
        rebuild = f"{_without_skip(manifest.rebuild)} --skip {shlex.quote(skip)}"
        writer.finish(replace(new, name=manifest.name, rebuild=rebuild))


def _without_skip(command: str) -> str:
    words = shlex.split(command)
    if "--skip" in words:
        place = words.index("--skip")
        words[place : place + 2] = []
    return shlex.join(words)
