"""The command line: one verb, one call. No logic of its own; heavy imports happen inside the verbs.

stdout carries results, stderr progress and errors. Exit codes: 0 done, 1 failed, 2 bad input, 130 stopped by Ctrl-C.
"""

import json
import logging
import shlex
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console

from rolekd_ray.errors import ConfigError, InputError, PopulationLostError, RolekdError, RunDirectoryError
from rolekd_ray.roles import Role
from rolekd_ray.storage import Place, check_storage, children, place

if TYPE_CHECKING:
    from rolekd_ray.config import Settings
    from rolekd_ray.policy.schedule import Schedule
    from rolekd_ray.search.run_directory import RunDirectory

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
cifar100_rk2020.
"""

app = typer.Typer(add_completion=False, no_args_is_help=True, help=EXAMPLE, rich_markup_mode=None)
out, progress = Console(), Console(stderr=True)


class ExportFormat(StrEnum):
    """Formats that others read."""

    YAML = "yaml"
    PBA = "pba"
    TORCHVISION = "torchvision"
    RAY = "ray"


class ImportFormat(StrEnum):
    """Formats that others publish."""

    PBA = "pba"
    ROLEKD = "rolekd"
    RAY = "ray"


class Combine(StrEnum):
    """How several checkpoints answer as one."""

    PROBABILITIES = "probabilities"
    LOGITS = "logits"


class Variant(StrEnum):
    """How a schedule is replayed."""

    ORDERED = "ordered"
    FLATTENED = "flattened"
    LAST = "last"


Config = Annotated[
    str, typer.Option("--config", "-c", metavar="CONFIG", help="YAML file, or name of one that comes along.")
]
Overrides = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, as in search.epochs=30. Repeatable."),
]
Storage = Annotated[
    str, typer.Option(metavar="FOLDER", help="Folder of run directories; or an object store: s3://bucket/prefix.")
]
Name = Annotated[str | None, typer.Option(help="Name of the run; default: the time of the start.")]
Seed = Annotated[int | None, typer.Option(help="Run seed; the same as --set seed=N.")]
Local = Annotated[bool, typer.Option("--local", help="Everything in this process, without Ray.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Default: stdout.")]
Combined = Annotated[Combine | None, typer.Option(help="Of several checkpoints: which mean; default: probabilities.")]
Run = Annotated[str, typer.Argument(metavar="RUN", help="A run directory, or its address: s3://bucket/prefix/run.")]


@app.command()
def run(
    config: Config = "quickstart",
    overrides: Overrides = [],  # noqa: B006 - Typer reads the default, nobody changes it
    storage: Storage = "runs",
    name: Name = None,
    seed: Seed = None,
    local: Local = False,
) -> None:
    """The main job: teacher, search, final distillation, evaluation."""
    _start("run", config, overrides, storage, name, seed, local)


@app.command()
def search(
    config: Config = "quickstart",
    overrides: Overrides = [],  # noqa: B006
    storage: Storage = "runs",
    name: Name = None,
    seed: Seed = None,
    local: Local = False,
) -> None:
    """The population search alone."""
    _start("search", config, overrides, storage, name, seed, local)


@app.command()
def resume(
    run: Run,
    epochs: Annotated[int | None, typer.Option(help="Prolong the student's search to this many epochs.")] = None,
    local: Local = False,
) -> None:
    """Go on after a stop, a crash, on another machine, or for longer."""
    from rolekd_ray.search.run_directory import open_run

    directory = open_run(place(run))
    _execute(directory, directory.environment()["verb"], local, epochs)


@app.command()
def status(
    run: Run,
    watch: Annotated[bool, typer.Option("--watch", help="Again every 2 seconds until the end.")] = False,
) -> None:
    """Where a run stands."""
    from rolekd_ray.reporting.status import show_status
    from rolekd_ray.search.run_directory import open_run

    show_status(open_run(place(run)).path, out, watch=watch)


@app.command("export")
def export_(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run directory, or a schedule file.")],
    format: Annotated[ExportFormat, typer.Option()] = ExportFormat.YAML,
    output: Output = None,
    role: Annotated[Role, typer.Option(help="Whose policies, for pba and torchvision.")] = Role.STUDENT,
    variant: Annotated[Variant, typer.Option(help="flattened: order lost; last: its last policy.")] = Variant.ORDERED,
) -> None:
    """The best schedule, for others to use."""
    from rolekd_ray.policy.formats import export_pba, export_ray, schedule_spec
    from rolekd_ray.policy.schedule import schedule_text

    schedule = _variant(_best_schedule(place(run)), variant)
    if role not in schedule.roles and format in (ExportFormat.PBA, ExportFormat.TORCHVISION):
        raise InputError(f"--role: got {str(role)!r}; expected {' or '.join(schedule.roles)}, which the schedule holds")
    if format == ExportFormat.TORCHVISION:
        from rolekd_ray.augment.torchvision_transform import export_source

        text = export_source(schedule_spec(schedule, role) | _fill(place(run)))
    else:
        writers: dict[ExportFormat, Callable[[], str]] = {
            ExportFormat.YAML: lambda: schedule_text(schedule),
            ExportFormat.PBA: lambda: export_pba(schedule, role),
            ExportFormat.RAY: lambda: export_ray(schedule),
        }
        text = writers[format]()
    _write(text, output)


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="The published file.")],
    format: Annotated[ImportFormat, typer.Option()],
    epochs: Annotated[int, typer.Option(min=1, help="Length of the search that wrote it; the file does not say.")],
    output: Output = None,
    role: Annotated[Role, typer.Option(help="Whose policies they shall be.")] = Role.STUDENT,
) -> None:
    """Bring in a schedule that others published."""
    from rolekd_ray.errors import ScheduleError
    from rolekd_ray.files import read_text
    from rolekd_ray.policy.formats import import_schedule
    from rolekd_ray.policy.schedule import schedule_text

    text = read_text(file, ScheduleError)
    _write(schedule_text(import_schedule(text, format=format.value, epochs=epochs, role=role, where=str(file))), output)


@app.command()
def train(
    role: Annotated[Role, typer.Argument(help="Which network.")],
    output: Annotated[str, typer.Option("--output", "-o", metavar="FOLDER", help="Gets the checkpoint.")],
    schedule: Annotated[
        str | None, typer.Option(metavar="FILE", help="Schedule to replay, stretched to length.")
    ] = None,
    config: Config = "quickstart",
    overrides: Overrides = [],  # noqa: B006
    seed: Seed = None,
    teacher: Annotated[
        list[str],
        typer.Option(metavar="FOLDER", help="Checkpoint to distil from; default: labels. Repeatable: an ensemble."),
    ] = [],  # noqa: B006
    combine: Combined = None,
    assistant: Annotated[
        list[str],
        typer.Option(metavar="MODEL", help="Network between teacher and student. Repeatable: large to small."),
    ] = [],  # noqa: B006
    generations: Annotated[
        int, typer.Option(help="Of the student, each taught by the one before; the last is the result.")
    ] = 1,
    residual: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Network that learns what the student lacks; both are the result."),
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Length; default: the configuration's.")] = None,
    model: Annotated[str | None, typer.Option(help="Another network than the configuration's.")] = None,
    variant: Annotated[Variant, typer.Option(help="flattened: order lost; last: its last policy.")] = Variant.ORDERED,
) -> None:
    """Replay a schedule on full data, another network, another length."""
    from rolekd_ray.policy.schedule import load_schedule

    extra = [f"final.epochs={epochs}"] * (epochs is not None) + [f"{role}.model={model}"] * (model is not None)
    extra += [f"teacher.combine={combine}"] * (combine is not None)
    settings = _settings(config, [*overrides, *extra], seed)
    if role == Role.TEACHER:
        _check_teacher_alone(teacher=teacher, assistant=assistant, generations=generations != 1, residual=residual)
    _check_combine(combine, teacher)
    loaded = _variant(load_schedule(schedule), variant) if schedule is not None else None
    if loaded is not None and role not in loaded.roles:
        raise ConfigError(f"--schedule: {schedule} holds policies of {', '.join(loaded.roles)}; expected the {role}'s")

    from rolekd_ray.search.preflight import check_inputs, check_links, check_names, check_teachers
    from rolekd_ray.training.chain import chain_of, check_chain, train_chain
    from rolekd_ray.training.conditions import condition_lines, describe_run_images
    from rolekd_ray.training.final import FinalTraining
    from rolekd_ray.training.losses import needs_frozen_teacher

    folder, teachers = place(output), tuple(map(place, teacher))
    wanted = FinalTraining(settings, role, folder, loaded, teachers or None)
    trainings = [wanted]
    if role == Role.STUDENT:
        trainings = chain_of(wanted, assistants=assistant, generations=generations, residual=residual)
    if teachers and not needs_frozen_teacher(settings.distill.losses):
        check_names(settings, layers=False)
        raise ConfigError(
            f"--teacher: got {', '.join(teacher)}; expected none, for none of {', '.join(settings.distill.losses)} "
            "learns from a finished teacher here"
        )
    data = check_inputs(settings, local=True, layers=False)  # they depend on the teacher that is given here
    check_teachers(teachers, settings.data, data)
    if role == Role.STUDENT:
        check_links(trainings, data)
    check_storage(folder)
    check_chain(trainings)
    for line in condition_lines(describe_run_images(data, settings)["final"]):
        _say(progress, line)
    try:
        with progress.status("") as status:
            metrics = train_chain(
                trainings,
                lambda t: status.update(f"training {t.settings.network(role).model} for {t.epochs} epochs: {t.folder}"),
            )
    except KeyboardInterrupt:
        _stopped("the same command again")
    for training, found in zip(trainings, metrics):
        where = output if training.folder == folder else training.folder
        _say(out, f"validation accuracy {found['validation_accuracy']:.4f}, {found['seconds']:.1f} s; {where}")


@app.command()
def evaluate(
    checkpoint: Annotated[
        list[str],
        typer.Argument(help="A network's checkpoint, or a member's state in a run; of several the ensemble."),
    ],
    role: Annotated[Role, typer.Option(help="Whose network, where there are two.")] = Role.STUDENT,
    teacher: Annotated[
        list[str], typer.Option(metavar="FOLDER", help="Checkpoint to compare answers with. Repeatable: an ensemble.")
    ] = [],  # noqa: B006
    combine: Combined = None,
    data: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where the dataset lies now, if it moved.")
    ] = None,
    robustness: Annotated[
        bool, typer.Option("--robustness", help="Also attacks, decision boundaries and corruptions: minutes.")
    ] = False,
    corruptions: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="CIFAR-10-C's files; default: built-in corruptions.")
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(metavar="A,B:C", help="Layers to compare with the teacher's (B with its C); default: stages."),
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="The first N test images, for the last three.")] = 1000,
    as_json: Annotated[bool, typer.Option("--json", help="All numbers as JSON.")] = False,
) -> None:
    """Accuracy, calibration, agreement with a teacher, robustness, on test images."""
    from rolekd_ray.reporting.evaluation_tables import evaluation_tables
    from rolekd_ray.search.evaluation import evaluate_checkpoint

    _check_combine(combine, checkpoint, teacher)
    with progress.status("opening") as status:
        results = evaluate_checkpoint(
            tuple(map(place, checkpoint)),
            role=role,
            teacher=tuple(map(place, teacher)) or None,
            combine=(combine or Combine.PROBABILITIES).value,
            moved=data,
            robustness=robustness,
            corruptions=corruptions,
            layers=_layer_pairs(layers) if layers is not None else None,
            images=images,
            tell=status.update if progress.is_terminal else lambda text: _say(progress, text),
        )
    if as_json:
        _say(out, json.dumps(results))
        return
    for table in evaluation_tables(" + ".join(checkpoint), results):
        out.print(table)


@app.command()
def check(
    file: Annotated[str | None, typer.Argument(help="YAML file, or name of one that comes along.")] = None,
    overrides: Overrides = [],  # noqa: B006
    layers: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Instead: the layers of a network that losses can name.")
    ] = None,
) -> None:
    """Parse a configuration, print what it means; touches nothing."""
    if layers is not None:
        if file is not None or overrides:
            raise ConfigError("--layers: got a configuration or --set beside it; expected the network's name alone")
        _show_layers(layers)
        return
    if file is None:
        raise ConfigError("check: got nothing; expected a configuration, or --layers and a network's name")
    from rolekd_ray.config import settings_text

    settings = _settings(file, overrides, None)

    from rolekd_ray.search.preflight import check_names, check_search, cost

    check_names(settings)
    check_search(settings)
    _say(out, f"{settings_text(settings)}# {cost(settings)}")


@app.command()
def doctor(
    storage: Storage = "runs",
    cluster: Annotated[bool, typer.Option("--cluster", help="Every node of the cluster RAY_ADDRESS names.")] = False,
    nodes: Annotated[int, typer.Option(min=1, help="With --cluster: wait until so many have joined.")] = 1,
) -> None:
    """What this machine or cluster can do, and what is missing."""
    if cluster:
        from rolekd_ray.search.cluster_doctor import examine_cluster

        table, problems = examine_cluster(place(storage), nodes)
        out.print(table)
        if problems:
            raise RolekdError("\n".join(problems))
        return

    from rolekd_ray.search.doctor import examine

    table, healthy = examine(place(storage))
    out.print(table)
    raise typer.Exit(0 if healthy else 1)


def main() -> None:
    """Run the command line; turn our errors into one message and an exit code."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s: %(message)s")
    try:
        app()
    except RolekdError as error:
        for line in str(error).splitlines():
            _say(progress, f"error: {line}", style="red")
        for hint in getattr(error, "__notes__", ()):
            _say(progress, hint)
        sys.exit(error.exit_code)


def _start(
    verb: str, config: str, overrides: list[str], storage: str, name: str | None, seed: int | None, local: bool
) -> None:
    settings = _settings(config, overrides, seed)  # before the imports: a misspelt key is told at once

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
        _say(progress, line)
    with hardware(settings, local=local, storage=where):
        _execute(create_run(where, name, settings, verb=verb, images=images), verb, local)


def _execute(directory: "RunDirectory", verb: str, local: bool, epochs: int | None = None) -> None:
    from rolekd_ray.reporting.tables import results_table, schedule_table
    from rolekd_ray.search.pipeline import Pipeline, notes_on

    _say(progress, f"run directory: {directory.path}")
    go_on = f"rolekd resume {shlex.quote(str(directory.path))}" + " --local" * local
    try:
        outcome = Pipeline(directory, local=local, console=progress).execute(verb, epochs=epochs)
    except KeyboardInterrupt:
        _stopped(go_on)
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
        _say(out, f"{what + ':':<15}{where}")
    for line in [*outcome.replaced, *notes_on(outcome.rows)]:
        _say(progress, f"note: {line}")
    if outcome.dropped:
        raise RolekdError("\n".join(outcome.dropped))


def _layer_pairs(text: str) -> list[tuple[str, str]]:
    """Return pairs of names from `A,B:C`; a name alone stands for a layer that both networks have."""
    pairs = [part.strip().partition(":") for part in text.split(",")]
    return [(ours.strip(), theirs.strip() if colon else ours.strip()) for ours, colon, theirs in pairs]


def _show_layers(model: str) -> None:
    from rolekd_ray.models import build_network, default_layers, layer_table
    from rolekd_ray.reporting.tables import layers_table

    network = build_network(model, num_classes=10, channels=3, seed=0)
    try:
        size = 32
        rows = layer_table(network, 3, (size, size))
    except ConfigError:  # made for larger images
        size = 224
        rows = layer_table(network, 3, (size, size))
    out.print(layers_table(f"{model}: 10 classes, 3x{size}x{size}", rows))
    if defaults := default_layers(network):
        _say(out, f"stages: {', '.join(defaults.stages)}; embedding: {defaults.embedding}")


def _stopped(go_on: str) -> NoReturn:
    _say(progress, f"\nstopped; nothing but the intervals under way is lost. Go on:\n{go_on}")
    sys.exit(130)


def _settings(config: str, overrides: list[str], seed: int | None) -> "Settings":
    from rolekd_ray.config import load_settings

    return load_settings(config, [*overrides, *([f"seed={seed}"] if seed is not None else [])])


def _best_schedule(path: Place) -> "Schedule":
    """Return a schedule file's schedule, or a run's best one so far."""
    from rolekd_ray.policy.schedule import load_schedule

    if path.is_file():
        return load_schedule(path)
    from rolekd_ray.search.pipeline import schedule_so_far
    from rolekd_ray.search.run_directory import open_run

    return schedule_so_far(open_run(path))


def _check_teacher_alone(**options: object) -> None:
    if given := [f"--{name}" for name, value in options.items() if value]:
        raise ConfigError(f"{', '.join(given)}: a teacher learns from labels alone; expected none")


def _check_combine(combine: Combine | None, *given: list[str]) -> None:
    if combine is not None and all(len(checkpoints) < 2 for checkpoints in given):
        raise ConfigError(f"--combine: got {combine.value!r} and no two checkpoints to combine; expected several")


def _fill(path: Place) -> dict[str, list[int]]:
    """Return the colour that a run fills uncovered pixels with; nothing for a schedule file, which does not know it."""
    from rolekd_ray.errors import CheckpointError
    from rolekd_ray.training.checkpoint import read_description

    states = children(path / "states", "[0-9]*")
    for folder in (path / "best" / "student", path / "best" / "teacher", *states):
        try:
            return {"fill": [round(255 * mean) for mean in read_description(folder)["mean"]]}
        except CheckpointError:
            continue
    return {}


def _variant(schedule: "Schedule", variant: Variant) -> "Schedule":
    if variant == Variant.FLATTENED:
        return schedule.flatten()
    return schedule.last() if variant == Variant.LAST else schedule


def _write(text: str, output: Path | None) -> None:
    from rolekd_ray.files import write_atomically

    if output is None:
        sys.stdout.write(text)
        return
    write_atomically(output, text)
    _say(progress, f"wrote {output}")


def _say(console: Console, text: str, style: str | None = None) -> None:
    """Print text as it is: paths neither wrapped nor read as markup."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)
