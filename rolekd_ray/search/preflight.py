"""What is checked before anything is written or started, so that a run does not fail after an hour."""

from collections.abc import Callable

import torch

from rolekd_ray.config import DataSettings, Settings
from rolekd_ray.data.sources import SOURCES
from rolekd_ray.distill.losses import check_losses
from rolekd_ray.errors import CheckpointError, ConfigError, DataError
from rolekd_ray.models.zoo import build_network, check_network
from rolekd_ray.roles import Role
from rolekd_ray.training.data import TrainingData, open_training_data
from rolekd_ray.training.networks import load_network


def check_names(settings: Settings) -> None:
    """Check the names of networks and losses; reads no file.

    Raises:
        ConfigError: with every unknown name and the nearest known one.
    """
    problems = list(check_losses(settings.distill.losses, "distill.losses"))
    problems += _network_problems(settings, lambda name: build_network(name, num_classes=10, channels=3, seed=0))
    if problems:
        raise ConfigError(*problems)


def check_inputs(settings: Settings, *, local: bool = False, evaluated: bool = False) -> TrainingData:
    """Check everything a run reads: names, training data, the given teacher. Return the data.

    Args:
        settings: of the run.
        local: it trains in this process, so the GPUs it asks for must be here; Ray counts the cluster's itself.
        evaluated: it ends on the test split, which must then be there; it stays closed.

    Raises:
        InputError: with what is wrong.
    """
    check_names(settings)
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
    if problems:
        raise ConfigError(*problems)
    if settings.teacher.checkpoint is not None:
        try:
            load_network(settings.teacher.checkpoint, Role.TEACHER, model=settings.teacher.model, **sizes)
        except CheckpointError as error:
            raise CheckpointError(*(f"teacher.checkpoint: {problem}" for problem in error.problems)) from error
    return data


def check_device(settings: Settings) -> None:
    """Check that this process can train where the settings say.

    Raises:
        ConfigError: they ask for a GPU and this machine has none.
    """
    if settings.slots.gpus and not torch.cuda.is_available():
        raise ConfigError(f"slots.gpus: got {settings.slots.gpus:g}; expected 0, for this machine has no GPU for torch")


def _check_test_split(data: DataSettings) -> None:
    if data.path is not None:  # the digits are bundled
        SOURCES[data.source](data.path, "test", data.download)


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
    searches = 2 if search.protocol == "sequential" and settings.teacher.checkpoint is None else 1
    intervals = -(-search.epochs // search.perturbation_interval_epochs)
    slots = settings.slots
    what = f"{slots.cpus:g} CPUs" + (f" and {slots.gpus:g} GPUs" if slots.gpus else "")
    return (
        f"{searches} search{'es' if searches > 1 else ''} of {search.population_size} members x {search.epochs} epochs "
        f"({search.population_size * intervals} intervals each), slots: {slots.count} of {what}"
    )
