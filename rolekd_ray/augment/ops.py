"""The image ops a policy may use, by name.

Each takes images (N, C, H, W) uint8 with C = 1 or 3, magnitudes (N,) with their sign in the op's unit
(`policy.space.OP_UNITS`), centres (N, 2) float32 in [0, 1) which only `cutout` reads, and the colour (C,) uint8 of
uncovered pixels. It returns new or the same images and never writes into what it was given. A sample's result depends
on that sample alone. Magnitudes are float32, or float64 where the reference's last bit matters.
"""

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


_MOVERS = ((geometry.TURNS, geometry.turned), (geometry.SHIFTS, geometry.shifted))  # several ops in one call


def _alone(name: str) -> Op:
    names, move = next(mover for mover in _MOVERS if name in mover[0])
    is_it = torch.tensor([other == name for other in names])

    def op(images: Tensor, magnitudes: Tensor, centres: Tensor, fill: Tensor) -> Tensor:
        return move(images, magnitudes[:, None] * is_it.to(magnitudes.device), fill)

    return op


OPS: dict[str, Op] = {name: _COLOUR[name] if name in _COLOUR else _alone(name) for name in OP_UNITS}

# Ops in the order in which they are applied at one step: none, then those that share a call side by side.
_RANKED = (None, *geometry.TURNS, *geometry.SHIFTS, *_COLOUR)
_RANKS = torch.tensor([_RANKED.index(name) for name in (None, *OP_UNITS)])


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
    result = torch.empty_like(images)  # made outside of inference mode, so that autograd may save it
    with torch.inference_mode():  # a tenth faster: most of the time goes to starting small operations
        ranks = _RANKS.to(ops.device)[ops + 1]
        place = torch.arange(len(images), device=ops.device)  # of the image that now lies at each place
        for step in range(ops.shape[1]):
            sizes = torch.bincount(ranks[:, step], minlength=len(_RANKED)).tolist()
            if sizes[0] == len(images):
                break  # ops are in order of application: none follows
            rank, order = ranks[place, step].sort()
            place = place[order]
            images = images.index_select(0, order)
            _apply_to_groups(images, rank, sizes, magnitudes[place, step], centres[place, step], fill)
        return torch.index_select(images, 0, place.argsort(), out=result)


def _apply_to_groups(
    images: Tensor, ranks: Tensor, sizes: list[int], magnitudes: Tensor, centres: Tensor, fill: Tensor
) -> None:
    """Apply ops, in place, to images in order of their op's rank; `sizes` is how many have each rank."""
    end = sizes[0]
    for names, move in _MOVERS:
        rank = _RANKED.index(names[0])
        own = torch.arange(rank, rank + len(names), device=ranks.device)
        at = slice(end, end + sum(sizes[rank : rank + len(names)]))
        if at.stop > at.start:
            images[at] = move(images[at], magnitudes[at, None] * (ranks[at, None] == own), fill)
        end = at.stop
    for name, size in zip(_COLOUR, sizes[-len(_COLOUR) :]):
        at = slice(end, end + size)
        if size:
            images[at] = _COLOUR[name](images[at], magnitudes[at], centres[at], fill)
        end = at.stop
