"""What is checked of the distillation's settings before anything is written or started."""

from rolekd_ray.config import Settings
from rolekd_ray.distill.losses import check_losses, check_options
from rolekd_ray.distill.registry import known_methods
from rolekd_ray.errors import unknown_name
from rolekd_ray.models.zoo import build_network
from rolekd_ray.roles import Role
from rolekd_ray.training.data import TrainingData
from rolekd_ray.training.losses import new_losses


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
    return problems


def check_layers(settings: Settings, data: TrainingData) -> None:
    """Check layers and shapes by building the losses once, for only the networks know them.

    Raises:
        ConfigError: with every problem.
    """
    image_set = data.image_set
    sizes = {"num_classes": image_set.num_classes, "channels": image_set.channels}
    student, teacher = (
        build_network(settings.network(role).model, **sizes, seed=0) for role in (Role.STUDENT, Role.TEACHER)
    )
    new_losses(
        settings.distill,
        student,
        teacher,
        labels=image_set.labels,
        trained_on=data.train,
        image_size=image_set.image_size,
        key="check",
        **sizes,
    )
