"""Verbs about runs: run, search, resume, status."""

import shlex
from typing import TYPE_CHECKING, Annotated

import typer

from rolekd_ray.cli.console import out, progress, say, stopped
from rolekd_ray.cli.inputs import beginning_with, read_settings
from rolekd_ray.cli.options import (
    Config,
    From,
    Local,
    Name,
    Overrides,
    Run,
    Seed,
    Storage,
)
from rolekd_ray.errors import ConfigError, PopulationLostError, RolekdError, RunDirectoryError
from rolekd_ray.storage import check_storage, place

if TYPE_CHECKING:
    from rolekd_ray.search.run_directory import RunDirectory


def run(
    config: Config = "quickstart",
    overrides: Overrides = [],  # noqa: B006 - Typer reads the default, nobody changes it
    storage: Storage = "runs",
    name: Name = None,
    seed: Seed = None,
    begin: From = None,
    local: Local = False,
) -> None:
    """The main job: teacher, search, final distillation, evaluation."""
    _start("run", config, overrides, storage, name, seed, begin, local)


def search(
    config: Config = "quickstart",
    overrides: Overrides = [],  # noqa: B006
    storage: Storage = "runs",
    name: Name = None,
    seed: Seed = None,
    begin: From = None,
    local: Local = False,
) -> None:
    """The population search alone."""
    _start("search", config, overrides, storage, name, seed, begin, local)


def resume(
    run: Run,
    epochs: Annotated[int | None, typer.Option(help="Prolong the student's search to this many epochs.")] = None,
    local: Local = False,
) -> None:
    """Go on after a stop, a crash, on another machine, or for longer."""
    from rolekd_ray.search.run_directory import open_run

    directory = open_run(place(run))
    _execute(directory, directory.environment()["verb"], local, epochs)


def status(
    run: Run,
    watch: Annotated[bool, typer.Option("--watch", help="Again every 2 seconds until the end.")] = False,
) -> None:
    """Where a run stands."""
    from rolekd_ray.reporting.status import show_status
    from rolekd_ray.search.run_directory import open_run

    show_status(open_run(place(run)).path, out, watch=watch)


def _start(
    verb: str,
    config: str,
    overrides: list[str],
    storage: str,
    name: str | None,
    seed: int | None,
    begin: str | None,
    local: bool,
) -> None:
    # before the imports: a misspelt key is told at once
    settings = read_settings(config, [*overrides, *beginning_with(begin)], seed)

    from rolekd_ray.search.pipeline import hardware
    from rolekd_ray.search.preflight import check_inputs, check_search
    from rolekd_ray.search.run_directory import create_run
    from rolekd_ray.training.conditions import condition_lines, describe_run_images

    where = place(storage)
    check_storage(where)
    data = check_inputs(settings, local=local, evaluated=verb == "run")
    check_search(settings)
    images = describe_run_images(data, settings)
    for line in condition_lines(images["search"]):
        say(progress, line)
    with hardware(settings, local=local, storage=where):
        _execute(create_run(where, name, settings, verb=verb, images=images), verb, local)


def _execute(directory: "RunDirectory", verb: str, local: bool, epochs: int | None = None) -> None:
    from rolekd_ray.reporting.tables import results_table, schedule_table
    from rolekd_ray.search.pipeline import Pipeline, notes_on

    say(progress, f"run directory: {directory.path}")
    go_on = f"rolekd resume {shlex.quote(str(directory.path))}" + " --local" * local
    try:
        outcome = Pipeline(directory, local=local, console=progress).execute(verb, epochs=epochs)
    except KeyboardInterrupt:
        stopped(go_on)
    except (ConfigError, RunDirectoryError, PopulationLostError):
        raise
    except RolekdError as error:
        error.add_note(f"when mended, go on: {go_on}")
        raise
    out.print(schedule_table(outcome.schedule))
    if outcome.rows:
        out.print(results_table(outcome.rows))
    places: dict[str, object] = {"best schedule": directory.schedule, "best member": outcome.best_state}
    if outcome.rows:
        places |= {"networks": directory.schedule.parent, "results": directory.results}
    places["curves"] = f"tensorboard --logdir {directory.path}"
    for what, where in places.items():
        say(out, f"{what + ':':<15}{where}")
    for line in [*outcome.replaced, *notes_on(outcome.rows)]:
        say(progress, f"note: {line}")
    if outcome.dropped:
        raise RolekdError("\n".join(outcome.dropped))
