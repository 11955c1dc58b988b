"""`optimize`: checkpoint in, bundle out. The one place where models, passes and runtime meet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from graftline.build.assemble import write_bundle
from graftline.build.compiled import Compiler, Watch, compile_stages
from graftline.build.composed import composed
from graftline.build.head_plan import HeadPlan
from graftline.build.heads import (
    check_recipe,
    check_tap,
    exit_of,
    head_hosts,
    heads_on_target,
    open_draft_head,
    own_passes,
    planned,
    recipe_of,
)
from graftline.build.plan import Plan
from graftline.bundle.manifest import EXPORT, stage_name
from graftline.bundle.reader import Bundle
from graftline.bundle.writer import BundleWriter, check_target
from graftline.draft import check_vocabulary
from graftline.errors import GraftlineError
from graftline.exits import exits_of
from graftline.facts import DecoderFacts, as_decoder, decoder_facts
from graftline.files import reading
from graftline.kinds import kind_of
from graftline.kinds.decoder.kind import Decoder
from graftline.memory import give_back_memory
from graftline.owners import DRAFT
from graftline.passes import GRAFTS, Pipeline
from graftline.recipe import recipe as named

if TYPE_CHECKING:
    from graftline.models.heads.head import Head
    from graftline.models.host import Host


def optimize(
    checkpoint: str | Path,
    out: str | Path,
    recipe: str | None = None,
    passes: str | None = None,
    target: str = "ort-cpu",
    dtype: str = "fp32",
    weights: Literal["link", "copy"] = "link",
    full_export: bool = False,
    quantizer: str | None = None,
    draft: str | None = None,
    draft_depths: Sequence[int] = (),
    engine: str = "",
    step: str = "host",
    head: str | None = None,
    skip: str | None = None,
    speedup: float | None = None,
    exits: Sequence[int] = (),
    spec: str | Path | None = None,
    steps: Sequence[int] = (),
    answer_prefix: str | None = None,
    watch: Watch | None = None,
) -> Bundle:
    """Export `checkpoint`, graft and lower it, prove it, and write the bundle `out`, all or
    nothing.

    `recipe` None is the one that its kind of host has: prompt-lookup for a decoder. `passes`
    replaces the recipe's own; `quantizer` names the algorithm of `dtype` int8 or int4.
    `draft` puts a draft engine in: "int4" or "int8" (the same weights quantized), or the path of a
    checkpoint of the same vocabulary, optionally "PATH:int4". `draft_depths` (12, 20) puts the
    draft's first 12 and first 20 blocks beside it, as drafts of the same weights. `engine` are
    options of a TensorRT target ("rows=1+64,capacity=4096"). `step` "fused" puts a second graph in,
    over the same weights, whose step drafts, verifies and commits by itself; a TensorRT engine is
    built from that one. `head` puts a published draft head in: the path of its folder or its file;
    "PATH:int8" says in which precision. `recipe` None is then the recipe of such heads. `skip`
    ("10-20", "attention=8-15,mlp=12") puts a route in: the target without these blocks, or parts of
    blocks, over the same weights and caches; beside a `draft` of the same weights, in its
    precision. `speedup` 1.5 is how many times as fast a recipe is to decode that skips blocks by
    it, in place of what the recipe says. `exits` (6, 12) let the target draft after its first 6 or
    12 blocks, and verify with the others alone, over the same weights and caches. `spec` is a TOML
    file of what the structure of a denoiser's graph cannot say, its scheduler above all
    (models/spec.py); `steps` (1, 2, 4) are the numbers of steps of its sampling loop: the first is
    the engine's, the others are forms of it over the same weights. `answer_prefix` is a text that
    every answer begins with, latent tokens above all: it is read with the prompt. `watch` is told
    each step in words. Raises GraftlineError; then `out` is as it was.
    """
    from graftline.models.checkpoint import open_checkpoint
    from graftline.models.spec import read_spec

    say = _economical(watch or _silent)
    heads = None if head is None else HeadPlan.parse(head, dtype)
    drafting = None if heads is None else open_draft_head(heads.path, say)
    chosen = recipe or (Decoder().recipe if drafting is None else recipe_of(drafting))
    if heads is not None and drafting is not None:
        check_recipe(drafting, named(chosen))
        heads = planned(drafting, heads)
        passes = own_passes(drafting, named(chosen)) if passes is None else passes
        exits = exits_of(exits, exit_of(drafting), heads.path)
    plan = Plan.of(
        chosen, passes, target, dtype, quantizer, draft, draft_depths, engine, step, heads,
        skip=skip, speedup=speedup, exits=exits, spec=None if spec is None else str(spec),
        steps=tuple(steps), answer_prefix=answer_prefix,
    )  # fmt: skip
    check_target(Path(out))
    say(f"reading {checkpoint}")
    host = open_checkpoint(checkpoint).host(full_export=full_export, watch=say)
    said = host.spec if spec is None else partial(read_spec, spec)
    if said is not None:
        host = composed(host, said(), plan.one_pass(), say)
    plan = plan.for_kind(kind_of(host.facts), recipe, host.model.graph)
    if isinstance(host.facts, DecoderFacts):
        plan.check_route(as_decoder(host.facts))
        plan.check_placeholders(as_decoder(host.facts))
        plan.check_exits(as_decoder(host.facts))
        host = _beginning(host, answer_prefix)
    other, source = host, plan.source
    if source is not None and source.checkpoint is not None:
        say(f"reading the draft {source.checkpoint}")
        other = open_checkpoint(source.checkpoint).host(full_export=full_export, watch=say)
        if _states_sizes(host, other):
            sizes = as_decoder(host.facts), as_decoder(other.facts)
            _check_draft(host, sizes[0], other, sizes[1], source.checkpoint, say)
    if source is not None:
        plan.check_draft(as_decoder(other.facts))
    with reading({**host.states, **other.states}):
        rebuild = plan.command(checkpoint, out, engine)
        _write(host, other, drafting, plan, out, rebuild, weights, say)
    return Bundle.open(out, verify=False)


def _write(
    host: Host,
    other: Host,
    head: Head | None,
    plan: Plan,
    out: str | Path,
    rebuild: str,
    weights: Literal["link", "copy"],
    say: Watch,
) -> None:
    """Compile, prove and write the bundle; `other` is the checkpoint of its draft, where that has
    one of its own."""
    hosts = {EXPORT: host} if other is host else {EXPORT: host, stage_name(DRAFT, EXPORT): other}
    compilers = {name: Compiler(one.model, say) for name, one in hosts.items()}
    if head is not None:
        front = Pipeline.parse(plan.stages[0].text, GRAFTS)
        hosts |= head_hosts(head, compilers[EXPORT].canonical(front).model, host.config, say)
        own = {n: h.model for n, h in hosts.items() if n not in compilers}
        compilers |= {name: Compiler(model, say, model) for name, model in own.items()}
        compilers[EXPORT].heads = heads_on_target(head, hosts)
    made, source = compile_stages(compilers, plan), plan.source
    if head is not None:
        check_tap(head, made[plan.target].lowered)
    if source is not None and source.checkpoint is not None and not _states_sizes(host, other):
        ours, theirs = (decoder_facts(made[name].canonical) for name in (plan.target, DRAFT))
        _check_draft(host, ours, other, theirs, source.checkpoint, say)
    with BundleWriter(out, watch=say) as writer:
        manifest = write_bundle(writer, hosts, plan, made, weights, say)
        say("hashing and closing the bundle")
        writer.finish(replace(manifest, rebuild=rebuild))


def _beginning(host: Host, prefix: str | None) -> Host:
    """The host with how its answers begin, among what its checkpoint asks for. Raises
    GraftlineError without a tokenizer, which reads it."""
    from graftline.runtimes.defaults import ANSWER_PREFIX

    if not prefix:
        return host
    if not host.tokenizer_files:
        raise GraftlineError("--answer-prefix is a text, and the checkpoint has no tokenizer")
    return replace(host, generation={**host.generation, ANSWER_PREFIX: prefix})


def _states_sizes(host: Host, other: Host) -> bool:
    """Whether both checkpoints say how many tokens they know; a graph says so once canonical."""
    return all(as_decoder(one.facts).vocabulary for one in (host, other))


def _economical(say: Watch) -> Watch:
    """Every step begins with the memory given back that the one before it has freed."""

    def tell(line: str) -> None:
        give_back_memory()
        say(line)

    return tell


def _check_draft(
    host: Host, ours: DecoderFacts, other: Host, theirs: DecoderFacts, source: Path, say: Watch
) -> None:
    """Raise GraftlineError unless ids of the draft `other` mean the target's tokens."""
    files = host.tokenizer_files, other.tokenizer_files
    sizes = ours.vocabulary, theirs.vocabulary
    if note := check_vocabulary(*files, sizes, str(source), theirs.mask_token):
        say(note)


def _silent(line: str) -> None:
    """Watch nothing."""
