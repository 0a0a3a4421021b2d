"""What is checked of the distillation's settings before anything is written or started."""

from torch import nn

from rolekd_ray.config import Settings
from rolekd_ray.distill.losses import check_losses, check_options
from rolekd_ray.distill.registry import known_methods
from rolekd_ray.errors import ConfigError, unknown_name
from rolekd_ray.models.zoo import build_network
from rolekd_ray.roles import Role
from rolekd_ray.training.data import TrainingData
from rolekd_ray.training.losses import layer_pairs, new_losses


def distillation_problems(settings: Settings) -> list[str]:
    """Return what is wrong with the distillation's settings, as far as names and combinations tell."""
    distill = settings.distill
    problems = check_losses(distill.losses, "distill.losses")
    problems += check_options(distill.options, distill.losses, "distill.options")
    known = {name: method for name, method in known_methods().items() if name in distill.losses}
    takes_layers = [name for name, method in known.items() if method.layers != "none"]
    problems += [
        unknown_name("distill.layers", "method of distill.losses with layers", name, takes_layers)
        for name in distill.layers
        if name not in takes_layers
    ]
    problems += [
        f"distill.view_mode: got {distill.view_mode!r}; expected shared_student or shared_teacher for {name}, which "
        "compares places in the image: both networks must see one view"
        for name, method in known.items()
        if method.same_view and distill.view_mode in ("independent", "teacher_clean")
    ]
    online = [name for name, method in known.items() if method.online == "peer"]
    if online and settings.teacher.checkpoint is not None:
        problems.append(f"teacher.checkpoint: got a trained network; expected none, for {online[0]} trains a peer")
    if distill.clip_to_task and all(method.distils or not distill.losses[n] for n, method in known.items()):
        problems.append("distill.clip_to_task: got no loss of labels to clip to; expected cross_entropy with a weight")
    return problems + _evolving_problems(settings)


def _evolving_problems(settings: Settings) -> list[str]:
    """Return the problem of a labels' weight that may evolve to 0, where distillation is clipped to the labels'."""
    distill, known = settings.distill, known_methods()
    labels = {f"losses.{name}" for name in distill.losses if name in known and not known[name].distils}
    low = {scalar.name: scalar.low for scalar in settings.search_space().scalars if scalar.name in labels}
    if not distill.clip_to_task or len(low) < len(labels) or not low or max(low.values()) > 0:
        return []
    return [
        f"space.scalars.{name}: got a range from {value:g}; expected one above 0, for distill.clip_to_task clips to it"
        for name, value in low.items()
    ]


def layer_problems(settings: Settings) -> list[str]:
    """Return the problems of layers' names, as far as the settings name the networks.

    None while a network's own name is unknown, of which others tell, and of an ensemble, whose members decide.
    """
    known = known_methods()
    methods = {name: known[name] for name in settings.distill.losses if name in known}
    if len(settings.teacher.checkpoints) > 1 or all(method.layers == "none" for method in methods.values()):
        return []
    try:
        student, teacher = (
            build_network(settings.network(role).model, num_classes=10, channels=3, seed=0)
            for role in (Role.STUDENT, Role.TEACHER)
        )
    except ConfigError:
        return []
    try:
        layer_pairs(methods, settings.distill, student, teacher)
    except ConfigError as error:
        return list(error.problems)
    return []


def check_layers(
    settings: Settings, data: TrainingData, teacher: nn.Module | None = None, *, alone: bool = False
) -> None:
    """Check layers and shapes by building the losses once, for only the networks know them.

    Args:
        settings: of the run.
        data: its images.
        teacher: the network that teaches; None: a fresh one of the settings' model.
        alone: there is none.

    Raises:
        ConfigError: with every problem.
    """
    image_set = data.image_set
    sizes = {"num_classes": image_set.num_classes, "channels": image_set.channels}
    if teacher is None and not alone:
        teacher = build_network(settings.teacher.model, **sizes, seed=0)
    new_losses(
        settings.distill,
        build_network(settings.student.model, **sizes, seed=0),
        teacher,
        labels=image_set.labels,
        trained_on=data.train,
        image_size=image_set.image_size,
        key="check",
        **sizes,
    )
