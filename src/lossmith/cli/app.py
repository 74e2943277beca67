"""The program ``lossmith``: its commands, and how an error or an interrupt ends it."""

from __future__ import annotations

import sys

import click

from lossmith import __version__
from lossmith.cli.bench import bench
from lossmith.cli.compare import compare
from lossmith.cli.data import data
from lossmith.cli.doctor import doctor
from lossmith.cli.reproduce import reproduce
from lossmith.cli.screen import reason_of
from lossmith.cli.toy import toy
from lossmith.cli.train import predict, train
from lossmith.errors import InputError


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="lossmith")
@click.pass_context
def cli(context: click.Context) -> None:
    """Train the metric you report."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def main() -> None:
    """Run a command. Bad input is one line on standard error and exit code 2; an interrupt is 130."""
    try:
        cli.main(prog_name="lossmith", standalone_mode=False)
    except (InputError, click.UsageError) as error:
        text = error.format_message() if isinstance(error, click.UsageError) else str(error)
        print(f"lossmith: {' '.join(text.split())}", file=sys.stderr)
        raise SystemExit(2) from None
    except BrokenPipeError:  # the reader of our output has gone
        raise SystemExit(1) from None
    except OSError as error:
        print(f"lossmith: {reason_of(error)}", file=sys.stderr)
        raise SystemExit(2) from None
    except (click.Abort, KeyboardInterrupt) as error:
        print(f"lossmith: {str(error) or 'stopped'}", file=sys.stderr)
        raise SystemExit(130) from None


for _command in (compare, train, predict, reproduce, data, toy, bench, doctor):
    cli.add_command(_command)
