"""How alike two networks represent the same images: linear centred kernel alignment of their layers."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rolekd_ray.distill.capture import Capture
from rolekd_ray.progress import advance
from rolekd_ray.training.evaluation import BATCH


def linear_cka(one: Tensor, other: Tensor) -> float | None:
    """Return the linear CKA of two representations of the same N images, in [0, 1]; None if one is constant.

    1 means that one is the other turned, mirrored, shifted and scaled; wide representations of few images are alike by
    chance, so compare values for equal N only.

    Args:
        one: (N, …) floats.
        other: (N, …) floats, of any shape behind N.

    Source: Kornblith et al., arXiv 1905.00414, eq. 3 to 5, of all N images at once. With K = X Xᵀ and L = Y Yᵀ of
    centred columns, ‖Yᵀ X‖² = ⟨K, L⟩: N x N matrices, however wide the features.
    """
    return _alignment(_gram(one), _gram(other))


def layer_similarity(
    student: nn.Module, teacher: nn.Module, images: Tensor, pairs: Sequence[tuple[str, str]]
) -> list[float | None]:
    """Return the linear CKA of pairs of layers.

    Args:
        student: in evaluation mode.
        teacher: in evaluation mode.
        images: (N, C, H, W), what both networks take; at most a few thousand, since N x N numbers are held per layer.
        pairs: names of a layer of the student and one of the teacher, as `Capture` takes them.

    Raises:
        ConfigError: unknown layers.
    """
    grams = [
        _layer_grams(network, images, [pair[side] for pair in pairs]) for side, network in enumerate((student, teacher))
    ]
    return [_alignment(grams[0][one], grams[1][other]) for one, other in pairs]


def _layer_grams(network: nn.Module, images: Tensor, layers: list[str]) -> dict[str, Tensor]:
    """Return each layer's centred Gram matrix; one layer's features at a time are held for all images."""
    grams = {}
    for layer in dict.fromkeys(layers):
        capture, parts = Capture(network, [layer]), []
        with torch.no_grad(), capture:
            for part in images.split(BATCH):
                network(part)
                parts.append(capture.features[layer].flatten(1))
                advance()
        grams[layer] = _gram(torch.cat(parts))
    return grams


def _gram(features: Tensor) -> Tensor:
    """Return the inner products (N, N) float64 of all pairs of images' features, from their mean."""
    gram = torch.zeros(len(features), len(features), dtype=torch.float64, device=features.device)
    for columns in features.flatten(1).split(4096, dim=1):  # float64 copies of a few columns, not of all
        columns = columns.double()
        columns -= columns.mean(0)
        gram += columns @ columns.T
    return gram


def _alignment(one: Tensor, other: Tensor) -> float | None:
    lengths = (one.norm() * other.norm()).item()
    return (one * other).sum().item() / lengths if lengths > 0 else None
