"""What is checked before anything is written or started, so that a run does not fail after an hour."""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from rolekd_ray.config import DataSettings, Settings
from rolekd_ray.data.sources import SOURCES
from rolekd_ray.errors import CheckpointError, ConfigError, DataError
from rolekd_ray.models.zoo import build_network, check_network
from rolekd_ray.roles import Role
from rolekd_ray.search.agents_check import agent_problems
from rolekd_ray.search.distillation_check import check_layers, distillation_problems, layer_problems
from rolekd_ray.search.initial import first_policies
from rolekd_ray.storage import Place
from rolekd_ray.training.data import TrainingData, open_training_data
from rolekd_ray.training.final import FinalTraining
from rolekd_ray.training.losses import teacher_role_counts
from rolekd_ray.training.networks import load_network, load_teacher
from rolekd_ray.training.precision import compute_dtype


def check_names(settings: Settings, *, layers: bool = True) -> None:
    """Check the names of networks, losses and, in the networks that the settings name, `layers`; reads no file.

    Raises:
        ConfigError: with every unknown name and the nearest known one.
    """
    problems = distillation_problems(settings) + agent_problems(settings) + (layer_problems(settings) if layers else [])
    problems += _network_problems(settings, lambda name: build_network(name, num_classes=10, channels=3, seed=0))
    if problems:
        raise ConfigError(*problems)


def check_inputs(
    settings: Settings, *, local: bool = False, evaluated: bool = False, layers: bool = True
) -> TrainingData:
    """Check everything a run reads: names, training data, the given teacher. Return the data.

    Args:
        settings: of the run.
        local: it trains in this process, so the GPUs it asks for must be here; Ray counts the cluster's itself.
        evaluated: it ends on the test split, which must then be there; it stays closed.
        layers: whether losses must find their layers in the networks that the settings name.

    Raises:
        InputError: with what is wrong.
    """
    check_names(settings, layers=layers)
    if local:
        check_device(settings)
    data = open_training_data(settings.data, train=settings.data.train)
    if settings.final.train is not None:
        open_training_data(settings.data, train=settings.final.train)
    if evaluated:
        _check_test_split(settings.data)
    if len(data.train) < 2:
        raise DataError(f"data.train: got {len(data.train)} images; expected at least 2")
    sizes = {"num_classes": data.image_set.num_classes, "channels": data.image_set.channels}
    problems = _network_problems(
        settings, lambda name: check_network(name, **sizes, image_size=data.image_set.image_size)
    )
    problems += _cutout_problems(settings, data.image_set.image_size)
    if problems:
        raise ConfigError(*problems)
    given, teacher = settings.teacher.checkpoints, None
    try:
        check_teachers(given, settings.data, data, model=settings.teacher.model if len(given) == 1 else None)
        if len(given) > 1:
            teacher = load_teacher(given, num_classes=sizes["num_classes"], channels=sizes["channels"])
    except CheckpointError as error:
        raise CheckpointError(*(f"teacher.checkpoint: {problem}" for problem in error.problems)) from error
    if layers:
        check_layers(settings, data, teacher)
    return data


def check_teachers(
    folders: Sequence[Place], settings: DataSettings, data: TrainingData, *, model: str | None = None
) -> None:
    """Check each of an ensemble's checkpoints as `check_teacher` does.

    Raises:
        CheckpointError: with the problems of all of them.
    """
    problems: list[str] = []
    for folder in folders:
        try:
            check_teacher(folder, settings, data, model=model)
        except CheckpointError as error:
            problems += error.problems
    if problems:
        raise CheckpointError(*problems)


def check_links(trainings: Sequence[FinalTraining], data: TrainingData) -> None:
    """Check the networks of trainings that build on one another, and that their losses find their layers in them.

    Raises:
        ConfigError: with the problems of all of them.
    """
    image_set = data.image_set
    num_classes, channels = image_set.num_classes, image_set.channels
    models = {training.folder: training.settings.student.model for training in trainings}
    problems: list[str] = []
    for training in trainings:
        taught_by = training.teacher
        try:
            check_network(
                training.settings.student.model,
                num_classes=num_classes,
                channels=channels,
                image_size=image_set.image_size,
            )
            teacher: nn.Module | None = None
            if isinstance(taught_by, Place) and taught_by in models:  # not there yet
                teacher = build_network(models[taught_by], num_classes=num_classes, channels=channels, seed=0)
            elif taught_by is not None:
                teacher = load_teacher(taught_by, num_classes=num_classes, channels=channels)
            check_layers(training.settings, data, teacher, alone=teacher is None)
        except ConfigError as error:
            problems += [problem for problem in error.problems if problem not in problems]
    if problems:
        raise ConfigError(*problems)


def check_search(settings: Settings) -> None:
    """Check that what evolves can have an effect and where it begins, and say what the hardware is slow at.

    Raises:
        ConfigError: the student's policy would reach no network.
        InputError: the first policies cannot be read from where they shall come, or do not fit.
    """
    if settings.search.protocol == "sequential" and settings.distill.view_mode == "shared_teacher":
        raise ConfigError(
            "distill.view_mode: got 'shared_teacher'; expected another one for the protocol sequential, whose second "
            "search evolves the student's policy: no network would see its view. Or search.protocol: coevolve."
        )
    for roles in searches(settings):
        first_policies(settings, roles)
    device = torch.device("cuda" if settings.slots.resources_per_worker.gpus else "cpu")
    compute_dtype(settings.training.precision, device)  # warns here


def searches(settings: Settings) -> list[tuple[Role, ...]]:
    """Return the roles of each search that a run makes, in order."""
    if settings.search.protocol == "coevolve":
        return [tuple(Role)]
    two = settings.teacher.checkpoint is None and teacher_role_counts(settings.distill)
    return [(Role.TEACHER,), (Role.STUDENT,)] if two else [(Role.STUDENT,)]


def check_teacher(folder: Place, settings: DataSettings, data: TrainingData, *, model: str | None = None) -> None:
    """Check that a teacher was made for these images and has not seen the ones that are held out.

    Args:
        folder: its checkpoint.
        settings: of the data it shall teach on.
        data: these images.
        model: expected architecture; None: any.

    Raises:
        CheckpointError: it is missing, damaged or of another architecture, normalises otherwise, or another part of
            the same dataset was held out from it.
    """
    sizes = {"num_classes": data.image_set.num_classes, "channels": data.image_set.channels}
    _, description = load_network(folder, Role.TEACHER, model=model, **sizes)
    theirs, problems = description["data"], []
    same = theirs["source"] == settings.source and (settings.path is None or theirs["path"] == str(settings.path))
    for key in ("validation", "split_seed") if same else ():
        if theirs[key] != getattr(settings, key):
            problems.append(
                f"{folder}: data.{key}: got {theirs[key]!r}; expected {getattr(settings, key)!r}, or it has learned "
                "from images that are held out here"
            )
    for key, ours in zip(("mean", "std"), data.statistics):
        if not problems and (torch.tensor(description[key]) - ours).abs().max() > 0.01:
            problems.append(f"{folder}: {key} of its images: got {description[key]}; expected {ours.tolist()}")
    if problems:
        raise CheckpointError(*problems)


def check_device(settings: Settings) -> None:
    """Check that this process can train where the settings say.

    Raises:
        ConfigError: they ask for a GPU and this machine has none.
    """
    gpus = settings.slots.resources_per_worker.gpus
    if gpus and not torch.cuda.is_available():
        raise ConfigError(
            f"slots.resources_per_worker.gpus: got {gpus:g}; expected 0, for this machine has no GPU for torch"
        )


def _check_test_split(data: DataSettings) -> None:
    if data.path is not None:  # the digits are bundled
        SOURCES[data.source](data.path, "test", data.download)


def _cutout_problems(settings: Settings, image_size: tuple[int, int]) -> list[str]:
    """Return what is wrong where every view would be blank: the defaults are made for images of 32 pixels."""
    pixels, most = settings.base_augmentation.cutout_pixels, 2 * max(image_size)
    if pixels < most:  # half of the square reaches from any centre to both edges otherwise
        return []
    return [
        f"base_augmentation.cutout_pixels: got {pixels}; expected less than {most} (0: none), for a square "
        f"twice as large as images of {image_size[0]}x{image_size[1]} pixels leaves nothing of them, wherever it lies"
    ]


def _network_problems(settings: Settings, check: Callable[[str], object]) -> list[str]:
    problems: list[str] = []
    for role in Role:
        try:
            check(settings.network(role).model)
        except ConfigError as error:
            problems += [f"{role}.model: {problem}" for problem in error.problems]
    return problems


def cost(settings: Settings) -> str:
    """Return how much work a run's searches are, in words."""
    search = settings.search
    count = len(searches(settings))
    intervals = -(-search.epochs // search.perturbation_interval_epochs)
    slots = settings.slots
    each = slots.resources_per_worker
    what = f"{each.cpus:g} CPUs" + (f" and {each.gpus:g} GPUs" if each.gpus else "")
    if slots.most_workers > 1:
        what = f"{' to '.join(map(str, sorted({slots.fewest_workers, slots.most_workers})))} workers of {what}"
    return (
        f"{count} search{'es' if count > 1 else ''} of {search.population_size} members x {search.epochs} epochs "
        f"({search.population_size * intervals} intervals each), slots: {slots.count} of {what}"
    )
