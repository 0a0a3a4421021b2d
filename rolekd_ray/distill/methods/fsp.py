"""Flow of solution procedure: how the features of one stage go together with those of the next."""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor

from rolekd_ray.distill.features import map_pairs, same_size, total
from rolekd_ray.distill.registry import method
from rolekd_ray.errors import ConfigError


@method("fsp", weight=50.0, layers="stages", match=True)
def fsp(features_student: list[Tensor], features_teacher: list[Tensor]) -> Tensor:
    """Return the sum over neighbouring layers of mean (G_s - G_t)², G = F_l F_(l+1)ᵀ / (h w) (N, C_l, C_(l+1)).

    Args:
        features_student: (N, C, H, W) each, two or more, in the order of the network. Of two neighbours the larger map
            is max-pooled to the smaller; before that, of student and teacher likewise.
        features_teacher: (N, C, H', W') each, of the same channels; in a run regressors see to that, and where shapes
            differ to the teacher's size, by averaging or interpolation.

    Raises:
        ConfigError: fewer than two layers, channels that differ, features that are no maps.

    Source: Yim et al., CVPR 2017, section 3.2, there for the first and the last layer of each stage, and as a first
    phase of training; here it stands beside the other losses. Weight of RepDistiller.
    """
    if len(features_student) < 2:
        raise ConfigError(f"distill.layers.fsp: got {len(features_student)} layer; expected at least 2")
    for own, wanted in zip(features_student, features_teacher, strict=True):
        if own.shape[1] != wanted.shape[1]:
            raise ConfigError(
                f"distill.layers.fsp: got {own.shape[1]} channels; expected the teacher's {wanted.shape[1]}"
            )
    pairs = map_pairs("fsp", features_student, features_teacher, F.adaptive_max_pool2d)
    flows = [(_flow(own, next_own), _flow(wanted, next_wanted))
             for (own, wanted), (next_own, next_wanted) in pairwise(pairs)]  # fmt: skip
    return total([(own - wanted).square().mean() for own, wanted in flows])


def _flow(first: Tensor, second: Tensor) -> Tensor:
    first, second = same_size(first, second, F.adaptive_max_pool2d)
    places = first.shape[2] * first.shape[3]
    return first.flatten(2) @ second.flatten(2).mT / places
