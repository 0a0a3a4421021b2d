"""Neuron selectivity transfer: where the channels look, as a distribution over channels."""

from torch import Tensor

from rolekd_ray.distill.features import map_pairs, total, unit
from rolekd_ray.distill.registry import method


@method("nst", weight=50.0, layers="stages", same_view=True)
def nst(features_student: list[Tensor], features_teacher: list[Tensor]) -> Tensor:
    """Return the sum over pairs of the mean over images of the squared MMD between student's and teacher's channels.

    A channel is its map as a unit vector; MMD² = mean k(t, t') + mean k(s, s') - 2 mean k(s, t) over all pairs of
    channels, with k(x, y) = (x·y)². It is 0 if each network's channels are the other's in another order.

    Args:
        features_student: (N, C_s, H, W) each; channels may differ from the teacher's. Where sizes differ, the larger
            map is averaged down to the smaller first.
        features_teacher: (N, C_t, H', W') each.

    Raises:
        ConfigError: features that are no maps.

    Source: Huang and Wang, arXiv 1707.01219, with the polynomial kernel of order 2 and offset 0. Pooling and weight
    as RepDistiller's.
    """
    losses = []
    for own, wanted in map_pairs("nst", features_student, features_teacher):
        own, wanted = unit(own.flatten(2), dim=2), unit(wanted.flatten(2), dim=2)  # (N, C, H W)
        losses.append(_kernel(wanted, wanted) + _kernel(own, own) - 2 * _kernel(own, wanted))
    return total(losses)


def _kernel(first: Tensor, second: Tensor) -> Tensor:
    return (first @ second.mT).square().mean()
