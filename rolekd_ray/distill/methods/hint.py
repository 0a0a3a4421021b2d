"""FitNets: the student's middle features, brought to the teacher's shape, should equal the teacher's."""

import torch
import torch.nn.functional as F
from torch import Tensor

from rolekd_ray.distill.registry import method


@method("hint", weight=100.0, layers="hint", match=True, same_view=True)
def hint(features_student: list[Tensor], features_teacher: list[Tensor]) -> Tensor:
    """Return the sum over layers of mean (F_s - F_t)²: a scalar.

    Args:
        features_student: (N, …) each, shaped like the teacher's by regressors that learn along.
        features_teacher: (N, …) each.

    Source: Romero et al., arXiv 1412.6550, equation 3, as a term beside the cross-entropy from the first step, as the
    CRD benchmark's code has it (RepDistiller, weight 100). The paper trains on hints alone first; its factor 1/2 and
    its sum over elements are left to the weight. Our regressor has no BatchNorm and no ReLU.
    """
    pairs = zip(features_student, features_teacher, strict=True)
    return torch.stack([F.mse_loss(own, wanted) for own, wanted in pairs]).sum()
