"""The command line. An error is one line on stderr and exit code 2; a defect of graftline itself is
one line and exit code 1. `--debug` shows the traceback of either."""

from __future__ import annotations

import errno
import signal
import sys
import traceback
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from graftline.commands import (
    bench,
    catalogue,
    check,
    diff,
    distill,
    doctor,
    inspect,
    libraries,
    optimize,
    pack,
    run,
    screen,
    split,
    train,
    tune,
)
from graftline.commands.options.flat import flat
from graftline.errors import GraftlineError

DEFECT = 1
USAGE_ERROR = 2
INTERRUPTED = 130
WRITING = frozenset(("optimize", "pack", "split", "tune", "bench"))
"""Commands that write files, and only when all is done."""


class Commands(TyperGroup):
    """The commands, with one place where anything that goes wrong becomes one line and a code."""

    debug = False

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """`--debug` may stand anywhere before a `--`."""
        end = args.index("--") if "--" in args else len(args)
        self.debug = "--debug" in args[:end]
        kept = [a for i, a in enumerate(args) if a != "--debug" or i > end]
        return super().parse_args(ctx, kept)

    def invoke(self, ctx: Any) -> Any:
        """Run one command."""
        libraries.silence()
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            written = "nothing was written" if ctx.invoked_subcommand in WRITING else ""
            told = str(stop) or written  # a writer that was done says so
            _fail(f"interrupted; {told}" if told else "interrupted", INTERRUPTED)
        except GraftlineError as error:
            self._trace()
            _fail(" ".join(str(error).splitlines()))
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise  # the reader of stdout left: no error of ours
            self._trace()
            _fail(f"{error.filename or 'system'}: {error.strerror or error}")
        except ImportError as error:
            self._trace()
            _fail(libraries.missing(error))
        except MemoryError:
            self._trace()
            _fail("out of memory; use a smaller model, --capacity or --dtype")
        except Exception as error:
            if isinstance(error, typer.Exit | typer.Abort) or hasattr(error, "format_message"):
                raise  # an orderly end, or a mistake in the command line itself
            self._trace()
            _fail(_defect(error), DEFECT)

    def _trace(self) -> None:
        if self.debug:
            traceback.print_exc()

    def main(self, *args: Any, **options: Any) -> NoReturn:
        """Run a command line and exit; takes what click's `main` takes."""
        options["standalone_mode"] = False
        screen.accept_any_text()
        try:
            code = super().main(*args, **options)
        except typer.Abort:
            code = INTERRUPTED
        except Exception as error:
            code = _usage(error)
            if code is None:
                raise
        sys.exit(code if isinstance(code, int) else 0)


def _usage(error: Exception) -> int | None:
    """Print a mistake in the command line itself and return its exit code; None for another error.

    Told apart by the attributes both click's and typer's usage errors have: neither is public.
    """
    message = getattr(error, "format_message", None)
    context = getattr(error, "ctx", None)
    if message is None:
        return None
    if type(error).__name__ == "NoArgsIsHelpError":
        sys.stderr.write(f"{message()}\n")
        return USAGE_ERROR
    path = getattr(context, "command_path", "graftline")
    text = " ".join(str(message()).split()).rstrip(".")
    sys.stderr.write(f"{path}: {text}; see `{path} --help`\n")
    return USAGE_ERROR


def _defect(error: Exception) -> str:
    """An exception that nothing foresaw, and where it came from."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return (
        f"a defect of graftline: {reason} ({Path(frame.filename).name}, line {frame.lineno}); "
        "please report it with the output of --debug"
    )


def _fail(line: str, code: int = USAGE_ERROR) -> NoReturn:
    sys.stderr.write(f"graftline: {line}\n")
    raise typer.Exit(code)


app = typer.Typer(
    name="graftline",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _version(asked: bool) -> None:
    if asked:
        from importlib import metadata

        sys.stdout.write(f"graftline {metadata.version('graftline')}\n")
        raise typer.Exit


@app.callback()
def root(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error.", is_eager=True)
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Graft parallel decoding onto models that are already exported, and prove it changed nothing.

    Start with:

    `graftline optimize CHECKPOINT -o smol.graft`

    `graftline run smol.graft "Explain speculative decoding."`
    """


for command in (
    optimize.optimize,
    run.run,
    bench.bench,
    tune.tune,
    train.train,
    distill.distill,
    inspect.inspect,
    diff.diff,
    check.check,
    pack.pack,
    split.split,
    catalogue.recipes,
    catalogue.passes,
    doctor.doctor,
):
    app.command()(flat(command))


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    """A polite kill ends like Ctrl-C: what was half-written is removed."""
    raise KeyboardInterrupt


def main() -> NoReturn:
    """The `graftline` program."""
    signal.signal(signal.SIGTERM, _terminate)
    app(prog_name="graftline")
    sys.exit(0)
