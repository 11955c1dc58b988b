"""`graftline run --latents`: what a decoder of latents makes, written to a file."""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from graftline.commands import screen
from graftline.commands.opening import open_decoder
from graftline.errors import RequestError

if TYPE_CHECKING:
    import numpy.typing as npt

    from graftline.commands.options.once import Decoded

OWN = ("bundle", "latents", "condition", "out", "seed", "threads", "stats")
"""Parameters of `run` that a decoder of latents takes."""
ONLY = ("condition", "out", "steps", "guidance", "rises", "sample_rate", "value_range")
"""Those that nothing else takes."""
_SAID = {"prompt": "a prompt", "value_range": "--range"}


def check_given(ctx: typer.Context, latents: Path | None) -> None:
    """Raise RequestError for options that are given and mean nothing beside the others."""
    names = given(ctx)
    if latents is None:
        refuse([n for n in names if n in ONLY], "needs --latents FILE.npy")
    else:
        refuse(
            [n for n in names if n not in (*OWN, *ONLY)],
            "is for decoders of text, not for --latents",
        )


def given(ctx: typer.Context) -> list[str]:
    """The parameters of a command that were given."""
    sources = {n: ctx.get_parameter_source(n) for n in ctx.params}
    return [n for n, s in sources.items() if s and s.name not in ("DEFAULT", "DEFAULT_MAP")]


def refuse(names: Collection[str], why: str) -> None:
    """Raise RequestError for the first of these parameters."""
    for name in names:
        said = _SAID.get(name, f"--{name.replace('_', '-')}")
        raise RequestError(f"{said} {why}")


def decode(
    bundle: Path,
    latents: Path,
    how: Decoded,
    seed: int,
    threads: int | None,
    stats: bool,
) -> None:
    """Decode the latents of a file into another; the ids that a recogniser writes, or of a canvas
    that is filled, are printed where no file is named, those of a row in each line. Raises
    RequestError."""
    from graftline.commands.media import check_classes, check_out, write_classes, write_media
    from graftline.facts import CanvasFacts, QueryDecoderFacts, RecogniserFacts
    from graftline.runtimes.one_pass.recognise import is_spectrogram

    lowest, highest = read_range(how.value_range)
    out, rate = how.out, how.sample_rate
    array = read_array(latents, "--latents")
    told = read_conditions(how.condition or ())
    guided = _guidance(how)
    with screen.steps(quiet=not sys.stderr.isatty()) as watch:
        engine = open_decoder(bundle, watch, threads)
        if guided and not isinstance(engine.facts, CanvasFacts):
            raise RequestError(
                f"--guidance is of filling a canvas; {bundle} is a {engine.facts.kind}, whose "
                "guidance is part of its graph or spec"
            )
        if out is not None and isinstance(engine.facts, CanvasFacts) and out.suffix != ".npy":
            raise RequestError(f"--out {out}: a canvas holds ids; name a .npy file")
        of_places = isinstance(engine.facts, QueryDecoderFacts)
        if out is not None and of_places:
            check_classes(out, engine.output)
        elif out is not None:
            spectrogram = is_spectrogram(engine.output)
            check_out(out, rate, 0 if spectrogram else len(engine.output.shape) - 2)
        elif not isinstance(engine.facts, RecogniserFacts | CanvasFacts):
            kinds = "out.npy or out.png" if of_places else "out.npy, out.wav or out.png"
            raise RequestError(f"name a file for what is made: -o {kinds}")
        watch(f"decoding {list(array.shape)}")
        began = time.perf_counter()
        if out is not None or isinstance(engine.facts, CanvasFacts):
            made: Any = engine.make(array, seed=seed, steps=how.steps, **guided, **told)
        else:
            made = engine.recognise(array, **told)
        seconds = time.perf_counter() - began
    if out is not None and of_places and out.suffix == ".png":
        write_classes(out, made)
    elif out is not None:
        write_media(out, made, rate, lowest, highest)
    else:
        sys.stdout.write("".join(" ".join(map(str, ids)) + "\n" for ids in made))
    if stats:
        sys.stderr.write(f"{list(array.shape)} in {seconds * 1e3:.0f} ms\n")


def _guidance(how: Decoded) -> dict[str, Any]:
    """What `fill` is told of guidance. Raises RequestError for a rise to nothing."""
    if how.guidance is None:
        if how.rises:
            raise RequestError("--rises grows to a guidance; add --guidance SCALE")
        return {}
    return {"guidance": how.guidance, **({"rises": True} if how.rises else {})}


def read_array(file: Path, option: str) -> npt.NDArray[Any]:
    """An array of a .npy file; nothing in it is executed. Raises RequestError."""
    import numpy as np

    try:
        return np.asarray(np.load(file, allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise RequestError(f"{option} {file}: not a .npy file of numbers ({error})") from error


def read_conditions(pairs: Sequence[str]) -> dict[str, Any]:
    """`NAME=FILE.npy` options as arrays by name. Raises RequestError."""
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, file = pair.partition("=")
        if not equals or not name or name in found:
            raise RequestError(f"--condition {pair}: use NAME=FILE.npy, once for each name")
        found[name] = read_array(Path(file), f"--condition {name}")
    return found


def read_range(text: str) -> tuple[float, float]:
    """`LOW,HIGH` as numbers. Raises RequestError."""
    try:
        lowest, highest = (float(part) for part in text.split(","))
    except ValueError:
        lowest = highest = 0.0
    if not lowest < highest:
        raise RequestError(f"--range {text}: use LOW,HIGH, as 0,1")
    return lowest, highest
