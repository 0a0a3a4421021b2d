"""Label noise: labels replaced by a rule that looks at one image's number alone."""

from collections.abc import Callable

import torch
from torch import Tensor

from rolekd_ray.augment.randomness import below, stream_key, uniforms
from rolekd_ray.config import NoiseSettings
from rolekd_ray.errors import DataError

# kind -> (labels, uniforms, number of classes) -> what a label is replaced by
_REPLACEMENTS: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "symmetric": lambda labels, uniform, classes: below(uniform, classes),
    "symmetric_other": lambda labels, uniform, classes: (labels + 1 + below(uniform, classes - 1)) % classes,
    "pair_flip": lambda labels, uniform, classes: (labels + 1) % classes,
}


def noisy_labels(labels: Tensor, num_classes: int, settings: NoiseSettings) -> Tensor:
    """Return the labels with noise; each with chance `rate` replaced.

    `symmetric`: by one of all classes, the true one included. `symmetric_other`: by one of the others. `pair_flip`: by
    the next class, the last by the first.

    The label of image i follows from (settings, label i, i): which other images there are changes nothing. Under one
    seed a higher rate replaces what a lower one does, by the same labels, and more. No draw of the run's seed or the
    split's is used.

    Args:
        labels: (N,) int64 in 0..num_classes-1, in the order of the file; not changed.
        num_classes: at least 2.
        settings: kind, rate, seed.

    Returns:
        (N,) int64.

    Raises:
        DataError: there is one class alone.

    Source: `symmetric` as the code of the authors of arXiv 2007.01922 has it; we draw by counters, they from one
    generator with a fixed seed, so the images that are hit are others. Pair flip as in Co-teaching (arXiv 1804.06872).
    """
    if num_classes < 2:
        raise DataError(f"data.noise: got {num_classes} class; expected at least 2")
    drawn = uniforms(stream_key("label noise", settings.seed), torch.arange(len(labels)), 2)
    hit = drawn[:, 0].double() < settings.rate  # in float32 the rate would be rounded
    return torch.where(hit, _REPLACEMENTS[settings.kind](labels, drawn[:, 1], num_classes), labels)


def expected_wrong_share(num_classes: int, settings: NoiseSettings) -> float:
    """Return the share of labels that noise is expected to make wrong: below `rate` where the true one may be drawn."""
    return settings.rate * (num_classes - 1) / num_classes if settings.kind == "symmetric" else settings.rate
