"""The command line: one verb, one call. No logic of its own; heavy imports happen inside the verbs.

stdout carries results, stderr progress and errors. Exit codes: 0 done, 1 failed, 2 bad input, 130 stopped by Ctrl-C.
"""

import logging
import sys
from typing import Annotated

import typer

from rolekd_ray import __version__
from rolekd_ray.cli.checks import check, doctor
from rolekd_ray.cli.console import out, progress, say
from rolekd_ray.cli.diagnosis import diagnose
from rolekd_ray.cli.networks import evaluate, train
from rolekd_ray.cli.runs import resume, run, search, status
from rolekd_ray.cli.schedules import export_, import_
from rolekd_ray.cli.views import views
from rolekd_ray.errors import RolekdError

EXAMPLE = """Search the augmentation with which a teacher network teaches a student network best.

\b
  rolekd run                                   all of it on digits: minutes
  rolekd check cifar10_reduced                 what it means; touches nothing
  rolekd search -c cifar10_reduced --name a1   the search alone, into runs/a1
  rolekd resume runs/a1                        on after a stop, or for longer
  rolekd export runs/a1 --format torchvision -o augment.py
  rolekd train student -c cifar10_reduced -o net \\
      --schedule runs/a1/best/schedule.yaml --teacher runs/a1/best/teacher
  rolekd evaluate net

CONFIG is a YAML file, or the name of one that comes along: quickstart, cifar10_reduced, cifar10_pba, cifar100_rolekd,
cifar100_rk2020, cifar10_agents, cifar100_cutmixpick.
"""

app = typer.Typer(add_completion=False, no_args_is_help=True, help=EXAMPLE, rich_markup_mode=None)
for verb in (run, search, resume, status, export_, import_, train, evaluate, diagnose, views, check, doctor):
    app.command(verb.__name__.rstrip("_"))(verb)


def _version(wanted: bool) -> None:
    if wanted:
        say(out, f"rolekd_ray {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """What stands before a verb."""


def main() -> None:
    """Run the command line; turn our errors into one message and an exit code."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s: %(message)s")
    try:
        app()
    except RolekdError as error:
        for line in str(error).splitlines():
            say(progress, f"error: {line}", style="red")
        for hint in getattr(error, "__notes__", ()):
            say(progress, hint)
        sys.exit(error.exit_code)
