"""Verbs about networks: train and evaluate."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rolekd_ray.cli.console import out, progress, say, stopped
from rolekd_ray.cli.inputs import read_settings, varied
from rolekd_ray.cli.options import (
    Combine,
    Combined,
    Config,
    Overrides,
    Seed,
    Variant,
)
from rolekd_ray.errors import ConfigError
from rolekd_ray.roles import Role
from rolekd_ray.storage import check_storage, place

if TYPE_CHECKING:
    from rolekd_ray.config import Settings
    from rolekd_ray.policy.schedule import Schedule


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
        typer.Option(
            metavar="FOLDER",
            help="Checkpoint to distil from; default: the configuration's, or labels. Repeatable: an ensemble.",
        ),
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
    epochs_factor: Annotated[
        float | None, typer.Option(help="Prolonged: times so many epochs; milestones and schedule grow along.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Another network than the configuration's.")] = None,
    variant: Annotated[Variant, typer.Option(help="flattened: order lost; last: its last policy.")] = Variant.ORDERED,
) -> None:
    """Replay a schedule on full data, another network, another length."""
    from rolekd_ray.policy.schedule import load_schedule

    extra = [f"final.epochs={epochs}"] * (epochs is not None) + [f"{role}.model={model}"] * (model is not None)
    extra += [f"final.epochs_factor={epochs_factor}"] * (epochs_factor is not None)
    extra += [f"teacher.combine={combine}"] * (combine is not None)
    settings = read_settings(config, [*overrides, *extra], seed)
    if role == Role.TEACHER:
        _check_teacher_alone(teacher=teacher, assistant=assistant, generations=generations != 1, residual=residual)
    _check_combine(combine, teacher)
    loaded = varied(load_schedule(schedule), variant) if schedule is not None else None
    if loaded is not None and role not in loaded.roles:
        raise ConfigError(f"--schedule: {schedule} holds policies of {', '.join(loaded.roles)}; expected the {role}'s")

    from rolekd_ray.search.agents_check import schedule_problems, untaught_problems
    from rolekd_ray.search.preflight import check_inputs, check_links, check_names, check_teachers
    from rolekd_ray.training.chain import chain_of, check_chain, train_chain
    from rolekd_ray.training.conditions import condition_lines, describe_run_images
    from rolekd_ray.training.final import FinalTraining
    from rolekd_ray.training.losses import needs_frozen_teacher

    folder, teachers = place(output), tuple(map(place, teacher))
    if role == Role.STUDENT and not teachers:
        teachers = settings.teacher.checkpoints
    wanted = FinalTraining(settings, role, folder, loaded, teachers or None)
    trainings = [wanted]
    if role == Role.STUDENT:
        trainings = chain_of(wanted, assistants=assistant, generations=generations, residual=residual)
    if teachers and not needs_frozen_teacher(settings.distill.losses):
        check_names(settings, layers=False)
        raise ConfigError(
            f"--teacher: got {', '.join(map(str, teachers))}; expected none, for of the losses "
            f"{', '.join(settings.distill.losses)} none learns from a finished teacher (mutual has a peer, one itself)"
        )
    if loaded is not None and (problems := schedule_problems(settings, loaded, role, f"--schedule: {schedule}")):
        raise ConfigError(*problems)
    if role == Role.STUDENT and not teachers and (problems := untaught_problems(settings, loaded)):
        raise ConfigError(*problems)
    data = check_inputs(settings, local=True, layers=False)  # they depend on the teacher that is given here
    check_teachers(teachers, settings.data, data)
    if role == Role.STUDENT:
        check_links(trainings, data)
    check_storage(folder)
    check_chain(trainings)
    for line in condition_lines(describe_run_images(data, settings)["final"]):
        say(progress, line)
    if role == Role.STUDENT and not teachers and needs_frozen_teacher(settings.distill.losses):
        say(progress, _without_teacher(generations))
    elif role == Role.STUDENT and loaded is not None and (unused := _unused_weights(loaded, settings)):
        say(progress, f"note: {', '.join(unused)} of the schedule change nothing, for distill.losses has no such loss")
    try:
        with progress.status("") as status:
            metrics = train_chain(
                trainings,
                lambda t: status.update(f"training {t.settings.network(role).model} for {t.epochs} epochs: {t.folder}"),
            )
    except KeyboardInterrupt:
        stopped("the same command again")
    for training, found in zip(trainings, metrics):
        where = output if training.folder == folder else training.folder
        say(out, f"validation accuracy {found['validation_accuracy']:.4f}, {found['seconds']:.1f} s; {where}")


def evaluate(
    checkpoint: Annotated[
        list[str],
        typer.Argument(help="A network's checkpoint, or a member's state in a run; of several the ensemble."),
    ],
    role: Annotated[Role, typer.Option(help="Whose network, where there are two.")] = Role.STUDENT,
    teacher: Annotated[
        list[str],
        typer.Option(
            metavar="FOLDER", help="Checkpoint to compare with; default: its own teacher. Repeatable: an ensemble."
        ),
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
    images: Annotated[int, typer.Option(min=1, help="The first N test images, for these three options.")] = 1000,
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
            tell=status.update if progress.is_terminal else lambda text: say(progress, text),
        )
    if as_json:
        say(out, json.dumps(results))
        return
    for table in evaluation_tables(" + ".join(checkpoint), results):
        out.print(table)


def _check_teacher_alone(**options: object) -> None:
    if given := [f"--{name}" for name, value in options.items() if value]:
        raise ConfigError(f"{', '.join(given)}: a teacher learns from labels alone; expected none")


def _without_teacher(generations: int) -> str:
    who = "the student" if generations == 1 else "the first generation"
    return f"note: no --teacher, so {who} learns from labels alone, whatever distill.losses says"


def _unused_weights(schedule: "Schedule", settings: "Settings") -> list[str]:
    """Return the evolved weights of a student's schedule whose losses the settings lack."""
    evolved = {name for segment in schedule.roles[Role.STUDENT] for name in segment.policy.scalars}
    used = {f"losses.{name}" for name in settings.distill.losses}
    return sorted(name for name in evolved - used if name.startswith("losses."))


def _check_combine(combine: Combine | None, *given: list[str]) -> None:
    if combine is not None and all(len(checkpoints) < 2 for checkpoints in given):
        raise ConfigError(f"--combine: got {combine.value!r} and no two checkpoints to combine; expected several")


def _layer_pairs(text: str) -> list[tuple[str, str]]:
    """Return pairs of names from `A,B:C`; a name alone stands for a layer that both networks have."""
    pairs = [part.strip().partition(":") for part in text.split(",")]
    return [(ours.strip(), theirs.strip() if colon else ours.strip()) for ours, colon, theirs in pairs]
