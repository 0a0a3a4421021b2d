"""Attention transfer: where in the image the stages are active."""

from torch import Tensor

from rolekd_ray.distill.features import map_pairs, total, unit
from rolekd_ray.distill.registry import method


@method("attention", weight=1000.0, layers="stages", same_view=True)
def attention(features_student: list[Tensor], features_teacher: list[Tensor]) -> Tensor:
    """Return the sum over pairs of mean (a_s - a_t)², a the unit vector of a map's mean square over channels.

    Args:
        features_student: (N, C_s, H, W) each; channels may differ from the teacher's. Where sizes differ, the larger
            map is averaged down to the smaller first.
        features_teacher: (N, C_t, H', W') each.

    Raises:
        ConfigError: features that are no maps.

    Source: Zagoruyko and Komodakis, arXiv 1612.03928, section 3.1, with p = 2; mean and weight as RepDistiller's.
    """
    pairs = map_pairs("attention", features_student, features_teacher)
    return total([(_attention(own) - _attention(wanted)).square().mean() for own, wanted in pairs])


def _attention(maps: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, H W), of length 1."""
    return unit(maps.square().mean(1).flatten(1))
