"""The image ops a policy may use, by name.

Each takes images (N, C, H, W) uint8 with C = 1 or 3, magnitudes (N,) with their sign in the op's unit
(`policy.space.OP_UNITS`), centres (N, 2) float32 in [0, 1) which only `cutout` reads, and the colour (C,) uint8 of
uncovered pixels. It returns new or the same images and never writes into what it was given. A sample's result depends
on that sample alone. Magnitudes are float32, or float64 where the reference's last bit matters.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from rolekd_ray.augment import colour, geometry
from rolekd_ray.policy.space import OP_UNITS

Op = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

_COLOUR: dict[str, Op] = {
    "brightness": colour.brightness,
    "color": colour.color,
    "invert": colour.invert,
    "sharpness": colour.sharpness,
    "posterize": colour.posterize,
    "solarize": colour.solarize,
    "equalize": colour.equalize,
    "auto_contrast": colour.auto_contrast,
    "cutout": colour.cutout,
    "contrast": colour.contrast,
}


_MOVES = (*geometry.TURNS, *geometry.SHIFTS)


def _moving(name: str, move: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Op:
    is_it = torch.tensor([other == name for other in _MOVES])

    def op(images: Tensor, magnitudes: Tensor, centres: Tensor, fill: Tensor) -> Tensor:
        columns = magnitudes.unsqueeze(1) * is_it.to(magnitudes.device)
        return move(images, geometry.steps(columns, *images.shape[-2:]), fill)

    return op


_MOVING = {name: _moving(name, geometry.turned) for name in geometry.TURNS} | {
    name: _moving(name, geometry.shifted) for name in geometry.SHIFTS
}
OPS: dict[str, Op] = {name: (_COLOUR | _MOVING)[name] for name in OP_UNITS}

# Ops by rank: none, then those that share a call side by side.
_RANKED = ("", *_MOVES, *_COLOUR)
_RANKS = torch.tensor([_RANKED.index(name) for name in ("", *OP_UNITS)])
_MOVE_RANKS = torch.arange(1, len(_MOVES) + 1)
_TURNED, _SHIFTED = slice(1, 1 + len(geometry.TURNS)), slice(1 + len(geometry.TURNS), 1 + len(_MOVES))
# Magnitudes at which an op changes nothing; none for the others, as no number equals nan.
_NEUTRAL = {"posterize": 8, "solarize": 256, "brightness": 1, "color": 1, "sharpness": 1, "contrast": 1}
_NEUTRAL |= dict.fromkeys((*_MOVES, "cutout"), 0)
_NEUTRALS = torch.tensor([_NEUTRAL.get(name, math.nan) for name in ("", *OP_UNITS)], dtype=torch.float64)


def apply_ops(images: Tensor, ops: Tensor, magnitudes: Tensor, centres: Tensor, fill: Tensor) -> Tensor:
    """Apply a row of ops to each image, one after the other; images that need the same op share one call.

    Args:
        images: (N, C, H, W) uint8; not written to.
        ops: places in `OP_UNITS`, -1 for none, (N, K) int64.
        magnitudes: (N, K) float64, signed.
        centres: (N, K, 2) float32.
        fill: (C,) uint8.

    Returns:
        (N, C, H, W) uint8; `images` itself if there is nothing to do.
    """
    if not images.numel() or not ops.numel():
        return images
    result = torch.empty_like(images)  # made outside of inference mode, so that autograd may save it
    with torch.inference_mode():  # a tenth faster: most of the time goes to starting small operations
        device = images.device
        ranks = _RANKS.to(device)[ops + 1] * (magnitudes != _NEUTRALS.to(device)[ops + 1])
        moves = magnitudes.t().unsqueeze(2) * (ranks.t().unsqueeze(2) == _MOVE_RANKS.to(device))
        steps = geometry.steps(moves.flatten(0, 1), *images.shape[-2:]).view(3, 2, -1, len(images))
        place = torch.arange(len(images), device=device)  # of the image that now lies at each place
        for k, rank in enumerate(ranks.t()):
            sizes = torch.bincount(rank, minlength=len(_RANKED)).tolist()
            if sizes[0] == len(images):
                continue
            rank, order = rank.index_select(0, place).sort()
            place = place.index_select(0, order)
            images = images.index_select(0, order)
            strengths, spots = magnitudes[:, k].index_select(0, place), centres[:, k].index_select(0, place)
            _move(images, sizes, steps[:, :, k], place, fill)
            parts = zip(_RANKED, images.split(sizes), strengths.split(sizes), spots.split(sizes))
            for name, part, strength, spot in list(parts)[1 + len(_MOVES) :]:
                if len(part):
                    part.copy_(_COLOUR[name](part, strength, spot, fill))
        return torch.index_select(images, 0, place.argsort(), out=result)


def _move(images: Tensor, sizes: list[int], steps: Tensor, place: Tensor, fill: Tensor) -> None:
    """Apply the ops that move pixels, in place, to images in order of rank; `sizes` is how many have each rank."""
    start = sizes[0]
    for ranks, move in ((_TURNED, geometry.turned), (_SHIFTED, geometry.shifted)):
        count = sum(sizes[ranks])
        if count:
            part = images.narrow(0, start, count)
            part.copy_(move(part, steps.index_select(2, place.narrow(0, start, count)), fill))
        start += count
