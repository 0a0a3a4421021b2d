"""The losses of a training, built for its networks and its data."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from rolekd_ray.augment.randomness import stream_key
from rolekd_ray.config import AgentsSettings, DistillSettings, LayerSettings, RoleAgents, Settings
from rolekd_ray.distill.capture import layer_problems
from rolekd_ray.distill.layers import LOGITS, LayerPairs, feature_shapes, pairs_for
from rolekd_ray.distill.losses import Losses
from rolekd_ray.distill.registry import Method, known_methods
from rolekd_ray.errors import ConfigError
from rolekd_ray.roles import Role

FROM_LABELS = {"cross_entropy": 1.0}
"""What a network without a teacher learns by."""


def trained_roles(losses: Mapping[str, float], roles: tuple[Role, ...]) -> tuple[Role, ...]:
    """Return whose networks are trained where these roles' policies evolve.

    A peer learns wherever the student does; where the student teaches itself, there is no teacher network.
    """
    known, online = known_methods(), _online(losses)
    if Role.STUDENT not in roles or online is None:
        return roles
    if online == "peer":
        return tuple(Role)
    needed = any(known[name].needs_teacher for name in losses)
    return roles if needed else (Role.STUDENT,)


def needs_frozen_teacher(losses: Mapping[str, float]) -> bool:
    """Whether the student learns from a finished teacher, rather than from a peer, itself, or labels alone."""
    known = known_methods()
    return _online(losses) != "peer" and any(known[name].needs_teacher for name in losses if name in known)


def teacher_role_counts(settings: DistillSettings) -> bool:
    """Whether a schedule of the teacher role changes anything: it trains a teacher, or some network sees its view."""
    return needs_frozen_teacher(settings.losses) or settings.view_mode in ("shared_teacher", "independent")


def _online(losses: Mapping[str, float]) -> str | None:
    known = known_methods()
    kinds = [known[name].online for name in losses if name in known and known[name].online]
    return "peer" if "peer" in kinds else kinds[0] if kinds else None


def from_labels(settings: Settings) -> Settings:
    """Return the settings of a student that learns from labels alone, without agents, as its controls do."""
    alone = {"losses": FROM_LABELS, "layers": {}, "options": {}, "branches": None}
    distill = settings.distill.model_copy(update=alone)
    return without_agents(settings).model_copy(update={"distill": distill})


def without_agents(settings: Settings) -> Settings:
    """Return the settings of a training whose views are the base augmentation's alone."""
    none = RoleAgents(chain=("none",))
    return settings.model_copy(update={"agents": AgentsSettings(teacher=none, student=none)})


def weights_of(settings: DistillSettings, *, has_teacher: bool) -> Mapping[str, float]:
    """Return the losses that apply: the settings', or labels alone where they need a teacher and there is none."""
    known = known_methods()
    needed = any(known[name].needs_teacher for name in settings.losses)
    return settings.losses if has_teacher or not needed else FROM_LABELS


def new_losses(
    settings: DistillSettings,
    student: nn.Module,
    teacher: nn.Module | None,
    *,
    labels: Tensor,
    trained_on: Tensor,
    num_classes: int,
    channels: int,
    image_size: tuple[int, int],
    key: object,
) -> Losses:
    """Return a student's losses with fresh state on the student's device; the global generators keep their state.

    Args:
        settings: which, and their layers and options.
        student: the network they will train.
        teacher: frozen or learning along; None: there is none.
        labels: of the whole training file, (M,).
        trained_on: places in it, (n,).
        num_classes: K.
        channels: of the images.
        image_size: height and width in pixels.
        key: names the stream of the state's initial weights.

    Raises:
        ConfigError: with all problems of layers: unknown, not called, of shapes that do not fit, or none given for a
            network without defaults.
    """
    known = known_methods()
    weights = weights_of(settings, has_teacher=teacher is not None)
    pairs = layer_pairs({name: known[name] for name in weights}, settings, student, teacher)
    shapes: list[dict[str, tuple[int, ...]]] = [{}, {}]
    for side, network in enumerate((student, student if teacher is None else teacher)) if pairs else ():
        # of the student's own layers where it is its own teacher, beside another one
        layers = [
            layer for name, pair in pairs.items() if not (side and known[name].online == "self") for layer in pair[side]
        ]
        shapes[side] = feature_shapes(network, layers, channels=channels, image_size=image_size)
    device = next(student.parameters()).device
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(stream_key(key) % 2**63)
        losses = Losses(
            list(weights),
            options={name: _options(known[name], settings) for name in weights},
            layers=pairs,
            standardise=settings.standardise_logits,
            built_with={
                "shapes_student": shapes[0],
                "shapes_teacher": shapes[1],
                "num_classes": num_classes,
                "labels_of": labels,
                "trained_on": trained_on,
                "student": student,
            },
        )
    return losses.to(device)


def _options(method: Method, settings: DistillSettings) -> dict[str, object]:
    published = method.rk2020 if settings.compat == "rk2020" else {}
    return {**published, **settings.options.get(method.name, {})}


def layer_pairs(
    methods: Mapping[str, Method], settings: DistillSettings, student: nn.Module, teacher: nn.Module | None
) -> dict[str, LayerPairs]:
    """Return the layers of those methods that take features; of one that teaches itself, the student's are both.

    Raises:
        ConfigError: with all layers that the networks lack, and methods without layers for networks without defaults.
    """
    problems: list[str] = []
    pairs: dict[str, LayerPairs] = {}
    for name, method in methods.items():
        if method.layers == "none":
            continue
        named = settings.layers.get(name, LayerSettings.model_construct())
        of_teacher = student if teacher is None else teacher
        try:
            pairs[name] = pairs_for(method, student, of_teacher, of_student=named.student, of_teacher=named.teacher)
        except ConfigError as error:
            problems += error.problems
        for role, network, layers in (
            (Role.STUDENT, student, named.student),
            (Role.TEACHER, of_teacher, named.teacher),
        ):
            if layers is not None and (role == Role.STUDENT or method.online != "self"):
                found = [layer for layer in layers if layer != LOGITS]
                problems += layer_problems(network, found, f"distill.layers.{name}.{role}")
    if problems:
        raise ConfigError(*problems)
    return pairs
