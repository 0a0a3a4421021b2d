"""The image ops a policy may use, by name.

Each takes images (N, C, H, W) uint8 with C = 1 or 3, magnitudes (N,) with their sign in the op's unit
(`policy.space.OP_UNITS`), centres (N, 2) float32 in [0, 1) which only `cutout` reads, and the colour (C,) uint8 of
uncovered pixels; it returns new or the same images and never writes into what it was given. A sample's result depends
on that sample alone.
"""

from collections.abc import Callable

from torch import Tensor

from rolekd_ray.augment import colour, geometry

Op = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

OPS: dict[str, Op] = {
    "rotate": geometry.rotate,
    "translate_x": geometry.translate_x,
    "translate_y": geometry.translate_y,
    "brightness": colour.brightness,
    "color": colour.color,
    "invert": colour.invert,
    "sharpness": colour.sharpness,
    "posterize": colour.posterize,
    "shear_x": geometry.shear_x,
    "solarize": colour.solarize,
    "shear_y": geometry.shear_y,
    "equalize": colour.equalize,
    "auto_contrast": colour.auto_contrast,
    "cutout": colour.cutout,
    "contrast": colour.contrast,
}
