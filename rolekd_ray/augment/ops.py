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

_MATRICES: dict[str, geometry.Matrices] = {
    "rotate": geometry.rotate,
    "translate_x": geometry.translate_x,
    "translate_y": geometry.translate_y,
    "shear_x": geometry.shear_x,
    "shear_y": geometry.shear_y,
}
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


def _moving(matrices: geometry.Matrices) -> Op:
    def op(images: Tensor, magnitudes: Tensor, centres: Tensor, fill: Tensor) -> Tensor:
        return geometry.moved(images, matrices(magnitudes, *images.shape[-2:]), fill)

    return op


OPS: dict[str, Op] = {name: _COLOUR[name] if name in _COLOUR else _moving(_MATRICES[name]) for name in OP_UNITS}

_GROUPS = (None, *_MATRICES, *_COLOUR)  # geometry side by side: its five ops are one call
_NAMES = (None, *OP_UNITS)
_RANKS = torch.tensor([_GROUPS.index(name) for name in _NAMES])


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
    ranks = _RANKS.to(ops.device)[ops + 1]
    at = None  # which image lies where; rows move rarely, as gathering them costs as much as a cheap op
    for step in range(ops.shape[1]):
        rank = ranks[:, step] if at is None else ranks[at, step]
        if not rank.any():
            continue
        order = rank.argsort()
        at = order if at is None else at[order]
        sizes = torch.bincount(rank, minlength=len(_GROUPS)).tolist()
        images = images.index_select(0, order)
        _apply_to_groups(images, sizes, magnitudes[at, step], centres[at, step], fill)
    return images if at is None else images.index_select(0, at.argsort())


def _apply_to_groups(images: Tensor, sizes: list[int], magnitudes: Tensor, centres: Tensor, fill: Tensor) -> None:
    """Apply ops to consecutive images in place: `sizes[i]` images get the op `_GROUPS[i]`."""
    groups = list(zip(_GROUPS, images.split(sizes), magnitudes.split(sizes), centres.split(sizes)))
    first, last = sizes[0], sum(sizes[: len(_MATRICES) + 1])
    if last > first:
        matrices = [_MATRICES[op](some, *images.shape[-2:]) for op, _, some, _ in groups[1 : len(_MATRICES) + 1]]
        images[first:last] = geometry.moved(images[first:last], torch.cat(matrices), fill)
    for op, part, magnitude, centre in groups[len(_MATRICES) + 1 :]:
        if len(part):
            part.copy_(_COLOUR[op](part, magnitude, centre, fill))
