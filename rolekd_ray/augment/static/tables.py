"""Which ops and strengths the static agents choose among: torchvision's, in this engine's units.

The strengths of `RandAugment`, `TrivialAugmentWide`, `AutoAugment` and `AugMix` as torchvision 0.29 has them.
"""

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from rolekd_ray.augment.randomness import below
from rolekd_ray.policy.space import OP_UNITS

NOTHING = ""
"""The op that changes nothing."""

_Levels = Callable[[int, int, int], Tensor]  # of bins, height and width


def _up_to(most: float) -> _Levels:
    return lambda bins, height, width: torch.linspace(0.0, most, bins)


def _bits(most: int, lost: int) -> _Levels:
    return lambda bins, height, width: (most - torch.arange(bins) / ((bins - 1) / lost)).round()


def _space(
    slope: float, pixels: tuple[_Levels, _Levels], degrees: float, change: float, bits: _Levels
) -> dict[str, _Levels]:
    """Return the strength by bin of each op that has one; the factors' are their distance from 1."""
    factors = dict.fromkeys(("brightness", "color", "contrast", "sharpness"), _up_to(change))
    return {
        "shear_x": _up_to(slope),
        "shear_y": _up_to(slope),
        "translate_x": pixels[0],
        "translate_y": pixels[1],
        "rotate": _up_to(degrees),
        **factors,
        "posterize": bits,
        "solarize": lambda bins, height, width: torch.linspace(1.0, 0.0, bins),  # as a share of white
    }


def _of_size(share: float) -> tuple[_Levels, _Levels]:
    return (
        lambda bins, height, width: torch.linspace(0.0, share * width, bins),
        lambda bins, height, width: torch.linspace(0.0, share * height, bins),
    )


_PLAIN = ("auto_contrast", "equalize")
_AUTO = _space(0.3, _of_size(150 / 331), 30.0, 0.9, _bits(8, 4))
_WIDE = _space(0.99, (_up_to(32.0), _up_to(32.0)), 135.0, 0.99, _bits(8, 6))
_MIX = _space(0.3, _of_size(1 / 3), 30.0, 0.9, _bits(4, 4))
_FACTORS = ("brightness", "color", "contrast", "sharpness")
_TRANSLATIONS = ("translate_x", "translate_y")
_UNSIGNED = ("posterize", "solarize")

# name of the table -> strengths, number of bins, the other ops
_TABLES: dict[str, tuple[dict[str, _Levels], int, tuple[str, ...]]] = {
    "randaugment": (_AUTO, 31, (*_PLAIN, NOTHING)),
    "trivial_augment_wide": (_WIDE, 31, (*_PLAIN, NOTHING)),
    "autoaugment": (_AUTO, 10, (*_PLAIN, "invert")),
    "augmix": (_MIX, 10, _PLAIN),
}


def table_ops(name: str) -> tuple[str, ...]:
    """Return the ops of a table, `NOTHING` among them, in the order of its rows."""
    levels, _, plain = _TABLES[name]
    return (*levels, *plain)


def table_bins(name: str) -> int:
    """Return how many strengths a table has for each op."""
    return _TABLES[name][1]


@lru_cache(maxsize=64)
def table(name: str, height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the ops of one of torchvision's spaces and their magnitudes for images of a size.

    Args:
        name: `randaugment`, `trivial_augment_wide`, `autoaugment` or `augmix`.
        height: rows of the images, of which translations are a share (not TrivialAugmentWide's: up to 32 pixels).
        width: columns of the images.
        device: where the tensors are wanted.

    Returns:
        Ops as places in `OP_UNITS`, -1 for `NOTHING`, (A,) int64; magnitudes in the ops' units as `apply_ops` takes
        them, (A, bins, 2) float64: by bin, then for the sign drawn, plus and minus. Ops without a sign hold the same
        magnitude twice, those without strength 0.

    Source: torchvision 0.29, `transforms.v2`, the four classes' `_AUGMENTATION_SPACE`. A translation by a positive
    magnitude is to the right and down there, to the left and up here; a fraction of a pixel is cut off.
    """
    levels, bins, _ = _TABLES[name]
    names, places = table_ops(name), list(OP_UNITS)
    magnitudes = torch.zeros(len(names), bins, 2, dtype=torch.float64)
    for row, op in enumerate(names):
        if op in levels:
            magnitudes[row] = _in_units(op, levels[op](bins, height, width).double())
    ops = torch.tensor([-1 if op == NOTHING else places.index(op) for op in names])
    return ops.to(device), magnitudes.to(device)


def _in_units(op: str, strengths: Tensor) -> Tensor:
    """Return (bins, 2): the op's magnitudes under plus and minus."""
    if op in _UNSIGNED:
        # Values are compared with a threshold in float32, where 0.8 of white is 204 and no less.
        plus = minus = (strengths * 255).float().double() if op == "solarize" else strengths
    elif op in _TRANSLATIONS:
        plus, minus = -strengths.trunc(), strengths.trunc()
    else:
        neutral = 1.0 if op in _FACTORS else 0.0
        plus, minus = neutral + strengths, neutral - strengths
    return torch.stack([plus, minus], dim=1)


def choose(ops: Tensor, magnitudes: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Return an op and one of its magnitudes for each draw, all equally likely.

    Args:
        ops: (A,) int64.
        magnitudes: (A, …) float64, as `table` gives them or a part of the bins.
        draws: uniforms in [0, 1), any shape.

    Returns:
        Ops and magnitudes, of the shape of `draws`. One draw chooses the op, the bin and the sign.
    """
    choices = magnitudes[0].numel()
    chosen = below(draws, magnitudes.numel())
    return ops[chosen // choices], magnitudes.reshape(-1)[chosen]
