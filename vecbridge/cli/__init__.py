"""The command line. Every command documents itself with --help; docs/cli.md has the JSON shapes.

Nothing heavy is imported before a command runs: `vecbridge plan` loads neither numpy nor a driver.
"""

from __future__ import annotations

import io
import logging
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from .._version import __version__
from ..errors import CollectionExists, CollectionNotFound, InputError, PlanError, VecbridgeError
from . import (
    adopting,
    calibrating,
    copying,
    doctor,
    evaluating,
    exporting,
    loading,
    managing,
    models,
    output,
    planning,
    reembedding,
    searching,
)

OK, FAILED, USAGE, NOT_FOUND, INTERRUPTED = 0, 1, 2, 3, 130

# typer brings its own copy of click since 0.20, so the base of usage errors is found instead of imported
_UsageProblem = typer.BadParameter.__mro__[2]


class _Group(TyperGroup):
    """The program, whose help says a whole sentence of each command, however narrow the terminal."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        whole = 1000  # characters
        with formatter.section("Commands"):
            formatter.write_dl([(name, one.get_short_help_str(whole)) for name, one in self.commands.items()])


class _Command(TyperCommand):
    """A command whose usage line shows its arguments as they are typed: [URL]... COLLECTION."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return [piece.removesuffix("...").strip("{}") for piece in super().collect_usage_pieces(ctx)]


app = typer.Typer(
    name="vecbridge",
    cls=_Group,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich's boxes cut names of options, and what is said of them, at 80 columns
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command(cls=_Command)(planning.plan)
app.command(cls=_Command)(models.models)
app.command(cls=_Command)(loading.ingest)
app.command(cls=_Command)(searching.search)
app.command(cls=_Command)(evaluating.evaluate)
app.command(cls=_Command)(evaluating.tune)
app.command(cls=_Command)(evaluating.replan)
app.command(cls=_Command)(copying.copy)
app.command(cls=_Command)(exporting.export)
app.command("import", cls=_Command)(exporting.import_)
app.command(cls=_Command)(adopting.adopt)
app.command(cls=_Command)(reembedding.reembed)
app.command(cls=_Command)(managing.info)
app.command("list", cls=_Command)(managing.collections)
app.command(cls=_Command)(managing.delete)
app.command(cls=_Command)(managing.drop)
app.command(cls=_Command)(calibrating.calibrate)
app.command(cls=_Command)(doctor.doctor)


def _version(wanted: bool) -> None:
    if wanted:
        output.answer(f"vecbridge {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Print a traceback with every error.")] = False,
) -> None:
    """Embeddings into vector stores: plan a layout, load, search, and measure the recall.

    Stores are named by URLs. Where none is typed, those in VECBRIDGE_URL are used, then places in the file
    vecbridge.toml of the working directory, then flat:./vecbridge-data. The file has further defaults.
    """


def main() -> NoReturn:
    """Run the command line and exit with its code."""
    sys.exit(run(sys.argv[1:]))


def run(words: Sequence[str]) -> int:
    """Run one command line, given without the program's name; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # a terminal that is not UTF-8 shows escapes instead of failing on the first accent
            stream.reconfigure(errors="backslashreplace")
    # psycopg also logs what it raises
    logging.getLogger("psycopg").setLevel(logging.CRITICAL)
    options = words[: words.index("--")] if "--" in words else words
    try:
        try:
            code = app(list(words) or ["--help"], prog_name="vecbridge", standalone_mode=False)
        except Exception as error:  # noqa: BLE001 - the outermost place: nothing may escape as a traceback
            return _failed(error, as_json="--json" in options, debug="--debug" in options)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except (output.ReaderGone, SystemExit):
        # rich ends the program by itself where nobody reads what it prints
        return output.BROKEN_PIPE
    if code == INTERRUPTED:
        output.say("interrupted")
        if "--json" in options:
            output.write_json({"error": {"type": "KeyboardInterrupt", "message": "interrupted"}})
    return code if isinstance(code, int) else OK


def _failed(error: Exception, *, as_json: bool, debug: bool) -> int:
    """Tell what went wrong, without passwords; returns the exit code."""
    kind, code = type(error).__name__, FAILED
    if isinstance(error, typer.Abort):
        message, code = "nothing was changed", INTERRUPTED
    elif isinstance(error, _UsageProblem):
        message, code = _usage(error), USAGE
    elif isinstance(error, VecbridgeError):
        message = str(error)
        if isinstance(error, CollectionNotFound):
            code = NOT_FOUND
        elif isinstance(error, InputError | PlanError | CollectionExists):
            code = USAGE
    else:
        message = f"sorry, this is a fault in vecbridge or its surroundings: {kind}: {error}"
        if not debug:
            message += " (vecbridge --debug … shows where)"
    message = output.safe(output.redact(message))
    if debug:
        output.say(output.safe(output.redact("".join(traceback.format_exception(error)))))
    output.say(f"Error: {message}")
    if as_json:
        output.write_json({"error": {"type": kind, "message": message}})
    return code


def _usage(error: Exception) -> str:
    message = str(getattr(error, "format_message", error.__str__)())
    context = getattr(error, "ctx", None)
    if context is None:
        return message
    return f"{message.rstrip('.?')}{'?' if message.endswith('?') else ';'} see {context.command_path} --help"
