"""torchvision's classes as the independent side: what they draw, and what one op of theirs does."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from rolekd_ray.policy.space import OP_UNITS

NAMES = list(OP_UNITS)
OURS = {
    "Identity": "",
    "ShearX": "shear_x",
    "ShearY": "shear_y",
    "TranslateX": "translate_x",
    "TranslateY": "translate_y",
    "Rotate": "rotate",
    "Brightness": "brightness",
    "Color": "color",
    "Contrast": "contrast",
    "Sharpness": "sharpness",
    "Posterize": "posterize",
    "Solarize": "solarize",
    "AutoContrast": "auto_contrast",
    "Equalize": "equalize",
    "Invert": "invert",
}
Step = tuple[str, float]


def in_our_units(transform_id: str, magnitude: float) -> Step:
    """What torchvision calls an op and its magnitude, as `apply_ops` takes it; see torchvision's own dispatch."""
    name = OURS[transform_id]
    if name in ("brightness", "color", "contrast", "sharpness"):
        magnitude = 1.0 + magnitude
    elif name.startswith("translate"):
        magnitude = -int(magnitude)
    elif name == "posterize":
        magnitude = int(magnitude)
    elif name == "solarize":
        magnitude = 255 * magnitude
    return name, round(float(magnitude), 4) + 0.0  # no minus zero


def steps_of(ops: Sequence[int], magnitudes: Sequence[float]) -> tuple[Step, ...]:
    """One row of an agent's draws, without those that end a chain early."""
    return tuple(("" if op < 0 else NAMES[op], round(m, 4) + 0.0) for op, m in zip(ops, magnitudes))


class Recorded:
    """A torchvision augmentation that notes what it would do, (transform_id, magnitude), and does nothing."""

    def __init__(self, transform: v2.Transform, height: int = 32, width: int = 32):
        self.transform, self.image = transform, torch.zeros(1, height, width, dtype=torch.uint8)
        self.steps: list[tuple[bool, str, float]] = []
        transform._apply_image_or_video_transform = self._note

    def _note(self, image: Tensor, transform_id: str, magnitude: float, **_: object) -> Tensor:
        self.steps.append((image.data_ptr() == self.image.data_ptr(), transform_id, magnitude))
        return image.clone()

    def draw(self, times: int) -> list[list[tuple[bool, str, float]]]:
        """What it would do to so many images; the first of each step says whether it is a chain's first op."""
        drawn = []
        for _ in range(times):
            self.steps = []
            self.transform(self.image)
            drawn.append(self.steps)
        return drawn


def one_op(transform: v2.Transform, images: Tensor, transform_id: str, magnitude: float, fill: Tensor) -> Tensor:
    """torchvision's op on tensors, image by image, nearest neighbours."""
    return torch.stack([_applied(transform, image, transform_id, magnitude, fill) for image in images])


def one_op_in_pillow(
    transform: v2.Transform, images: Tensor, transform_id: str, magnitude: float, fill: Tensor
) -> Tensor:
    """torchvision's op on Pillow images, which its geometry hands to Pillow."""
    pictures = [F.to_pil_image(image) for image in images]
    done = [_applied(transform, picture, transform_id, magnitude, fill) for picture in pictures]
    return torch.stack([F.pil_to_tensor(picture) for picture in done])


def _applied(transform: v2.Transform, image, transform_id: str, magnitude: float, fill: Tensor):
    colour = {type(image): fill.tolist()}
    act: Callable = transform._apply_image_or_video_transform
    return act(image, transform_id, magnitude, interpolation=v2.InterpolationMode.NEAREST, fill=colour)
