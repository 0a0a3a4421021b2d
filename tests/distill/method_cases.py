"""Everything that any method may be given, made up, for tests over the whole registry."""

import copy
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor, nn

from rolekd_ray.distill.capture import Capture
from rolekd_ray.distill.layers import feature_shapes, pairs_for
from rolekd_ray.distill.losses import Losses
from rolekd_ray.distill.outputs import Networks, Outputs, Shards, Whole
from rolekd_ray.distill.registry import known_methods
from rolekd_ray.models.zoo import build_network

CLASSES, FILE = 10, 40
IMAGES = (3, 8, 8)
OURS = (
    "attention", "bss", "correlation_congruence", "dist", "dkd", "fsp", "nst", "pkt", "rkd", "rkd_angle",
    "rkd_distance", "similarity",
)  # fmt: skip
EVERY = sorted(known_methods())
FEATURES = [name for name in OURS if "features_student" in known_methods()[name].takes]


@cache
def _pair() -> tuple[nn.Module, nn.Module]:
    student = build_network("wrn_10_2", num_classes=CLASSES, channels=3, seed=0).train()
    teacher = build_network("resnet14", num_classes=CLASSES, channels=3, seed=1).eval().requires_grad_(False)
    return student, teacher


def networks(shards: Shards | None = None) -> Networks:
    """A student of other widths and depth than its teacher's."""
    student, teacher = copy.deepcopy(_pair())
    return Networks(student, teacher, torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.25]), shards or Whole())


def build(name: str, of: Networks) -> Losses:
    """One method on its default layers."""
    method = known_methods()[name]
    layers = {} if method.layers == "none" else {name: pairs_for(method, of.student, of.teacher)}
    student, teacher = layers.get(name, ((), ()))
    generator = torch.Generator().manual_seed(5)
    with torch.random.fork_rng():
        torch.manual_seed(6)
        return Losses(
            [name],
            layers=layers,
            options={"bss": {"steps": 2}},
            built_with={
                "shapes_student": feature_shapes(of.student, student, channels=3, image_size=IMAGES[1:]),
                "shapes_teacher": feature_shapes(of.teacher, teacher, channels=3, image_size=IMAGES[1:]),
                "num_classes": CLASSES,
                "labels_of": torch.randint(CLASSES, (FILE,), generator=generator),
                "trained_on": torch.arange(FILE),
                "student": of.student,
            },
        )


def passed(network: nn.Module, layers: Sequence[str], images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    with Capture(network, layers) as capture:
        logits = network(images)
        return logits, dict(capture.features)


def case(name: str, *, count: int = 8, seed: int = 0) -> tuple[Losses, Outputs]:
    """A method and a batch; logits and features of the student are leaves that carry a gradient."""
    of = networks()
    losses = build(name, of)
    generator = torch.Generator().manual_seed(seed)
    view = torch.randn(count, *IMAGES, generator=generator)
    with torch.no_grad():
        logits_student, features_student = passed(of.student, losses.layers_of("student"), view)
        logits_self, features_self = passed(of.student, losses.layers_of("student"), view.flip(3))
        logits_teacher, features_teacher = passed(of.teacher, losses.layers_of("teacher"), view)
    outputs = Outputs(
        logits_student.requires_grad_(),
        logits_teacher,
        torch.randint(CLASSES, (count,), generator=generator),
        temperature=4.0,
        progress=0.25,
        indices=torch.randperm(FILE, generator=generator)[:count],
        generator=torch.Generator().manual_seed(seed),
        features_student={layer: value.requires_grad_() for layer, value in features_student.items()},
        features_teacher=features_teacher,
        logits_self=logits_self,
        features_self=features_self,
        view=view,
        networks=of,
    )
    return losses, outputs


def leaves(losses: Losses, outputs: Outputs) -> list[Tensor]:
    """What a loss may have a gradient for."""
    own = [outputs.logits_student, *outputs.features_student.values(), *losses.parameters()]
    return own + list(outputs.networks.student.parameters()) if outputs.networks else own


def loss_and_gradients(name: str, losses: Losses, outputs: Outputs) -> tuple[Tensor, list[Tensor]]:
    """The loss, and its gradient for every leaf, 0 where it has none."""
    loss = losses(outputs, {name: 1.0})[name]
    places = leaves(losses, outputs)
    found = torch.autograd.grad(loss, places, allow_unused=True)
    return loss.detach(), [torch.zeros_like(p) if g is None else g for p, g in zip(places, found, strict=True)]
