"""The ``iommukit`` command: finding commands, and one line for whatever goes wrong."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import click

from iommukit import __version__

COMMANDS: dict[str, str] = {
    "matrix": "iommukit.cli.matrix",
    "run": "iommukit.cli.run",
    "boot": "iommukit.cli.boot",
    "diff": "iommukit.cli.diff",
    "walk": "iommukit.cli.walk",
    "oracle": "iommukit.cli.oracle",
    "plugins": "iommukit.cli.plugins",
    "schema": "iommukit.cli.schema",
}
"""Each command's module, which holds it as ``command``; in the order of the help."""

BAD_INPUT = 2
INTERRUPTED = 130
BROKEN_PIPE = 141
LONGEST = 1000
"""Characters of an error message."""


class Commands(click.Group):
    """Commands that are imported when they are needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command's module."""
        module = COMMANDS.get(cmd_name)
        if module is None:
            return None
        command: click.Command = importlib.import_module(module).command
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with a guess at what a misspelt command was meant to be."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            close = difflib.get_close_matches(args[0], COMMANDS, n=1)
            guess = f"did you mean {close[0]}?" if close else f"there are {', '.join(COMMANDS)}"
            raise click.UsageError(f"no command {args[0]!r}; {guess}", ctx)
        return super().resolve_command(ctx, args)

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run, and exit: 0 fine, 1 a finding, 2 bad input."""
        alone = extra.pop("standalone_mode", True)
        extra.update(standalone_mode=False, prog_name=extra.get("prog_name") or "iommukit")
        if not alone:
            return super().main(*args, **extra)
        try:
            code = super().main(*args, **extra)
            if sys.stdout is not None:
                sys.stdout.flush()
        except click.exceptions.Abort:
            complain("interrupted")
            code = INTERRUPTED
        except click.ClickException as error:
            context = getattr(error, "ctx", None)
            hint = f" (see {context.command_path} --help)" if context is not None else ""
            complain(error.format_message().rstrip(".") + hint)
            code = BAD_INPUT
        except (BrokenPipeError, SystemExit):
            # click leaves with SystemExit(1), a finding, when nobody reads any more.
            drop_output()
            code = BROKEN_PIPE
        except OSError as error:
            complain(f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error))
            drop_output()
            code = BAD_INPUT
        except Exception as error:
            from iommukit.errors import InputError, NotApplicable

            if not isinstance(error, InputError | NotApplicable):
                raise
            complain(str(error))
            code = BAD_INPUT
        sys.exit(code if isinstance(code, int) else 0)


def complain(message: str) -> None:
    """One line on stderr, whatever the message holds; the middle of an endless one is left out."""
    from iommukit.report.page import visible

    text = " ".join(message.split())
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]} … {text[-LONGEST // 2 :]}"
    print(visible(f"iommukit: {text}"), file=sys.stderr)


def drop_output() -> None:
    """Nobody can read standard output any more: keep the interpreter from failing when it closes the stream."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        return


@click.command("iommukit", cls=Commands, context_settings={"help_option_names": ["-h", "--help"]}, invoke_without_command=True)
@click.version_option(__version__, prog_name="iommukit", message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """How Linux decides and enforces DMA protection, as a model that runs.

    Exit codes: 0 fine, 1 a finding, 2 bad input.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main() -> None:
    """Start the command line."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character gets its escape, not a traceback.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    cli()
