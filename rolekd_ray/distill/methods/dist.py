"""DIST: the order of classes per image, and of images per class, by correlation instead of exact probabilities."""

from torch import Tensor

from rolekd_ray.distill.features import centred, unit
from rolekd_ray.distill.methods.hinton import check_temperature
from rolekd_ray.distill.registry import method


@method("dist")
def dist(
    logits_student: Tensor, logits_teacher: Tensor, temperature: float = 4.0, *, beta: float = 2.0, gamma: float = 2.0
) -> Tensor:
    """Return T² · (beta inter + gamma intra); its weights are inside.

    Of p = softmax(logits / T), (N, K): inter is the mean over images of 1 - Pearson's correlation of student's and
    teacher's rows, intra the mean over classes of that of their columns. This 1 - correlation is the correlation
    distance. Rows and columns without spread count as uncorrelated, without gradient.

    Args:
        logits_student: (N, K).
        logits_teacher: (N, K).
        temperature: T, above 0.
        beta: weight of inter.
        gamma: weight of intra.

    Raises:
        ConfigError: the temperature is not above 0.

    Source: Huang et al., arXiv 2205.10536; beta and gamma as for CIFAR-100 in their code. That code adds 1e-8 to the
    product of the spreads, which hides classes that no image of the batch is likely to be of; here they count in full.
    """
    check_temperature(temperature)
    own, wanted = (logits_student / temperature).softmax(1), (logits_teacher / temperature).softmax(1)
    inter = 1 - _correlation(own, wanted).mean()
    intra = 1 - _correlation(own.mT, wanted.mT).mean()
    return temperature**2 * (beta * inter + gamma * intra)


def _correlation(first: Tensor, second: Tensor) -> Tensor:
    """Return Pearson's correlation of each row with the other's."""
    return (unit(centred(first)) * unit(centred(second))).sum(1)
