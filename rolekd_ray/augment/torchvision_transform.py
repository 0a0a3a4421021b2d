"""A schedule of augmentation policies as one torchvision transform.

Stands on its own: needs torch and torchvision only. Per image a number of ops is drawn from `counts`; the settings of
the current epoch are visited in random order, each fires with its probability, until that many have fired; the fired
ops are applied in that order. Random numbers come from torch's default generator, which a DataLoader seeds in each
worker. Put it before the transforms that make floats:

    transform.set_epoch(epoch)  # before each epoch; persistent DataLoader workers keep the epoch they were started with
    view = transform(image)
"""

import json
from collections.abc import Callable
from typing import Any

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

_AFFINE = 0  # PIL.Image.Transform.AFFINE


class ScheduleTransform(v2.Transform):
    """Applies the policy of the current epoch to an image: a PIL image or a uint8 tensor (C, H, W), C = 1 or 3.

    Args:
        spec: `{"epochs": n, "counts": [chance of 0 ops, of 1, …], "segments": [{"epochs": n, "settings": [[op,
            probability, magnitude or null, signed], …]}, …], "flattened": bool}`. Segments follow each other; after
            the last one its policy stays. Flattened: each image draws a segment, weighted by its epochs, whatever the
            epoch. Optional: `"fill"`, the colour of uncovered pixels, a number or one per channel, 128 if missing.

    Raises:
        ValueError: the spec names an unknown op.
        TypeError: a call gets something other than such an image.
    """

    def __init__(self, spec: dict[str, Any]):
        super().__init__()
        unknown = {setting[0] for segment in spec["segments"] for setting in segment["settings"]} - set(_OPS)
        if unknown:
            raise ValueError(f"unknown ops {sorted(unknown)}; expected some of {sorted(_OPS)}")
        self.spec = spec
        self.epoch = 0
        self._counts = torch.tensor(spec["counts"], dtype=torch.float64)
        self._lengths = torch.tensor([segment["epochs"] for segment in spec["segments"]], dtype=torch.float64)

    def set_epoch(self, epoch: int) -> None:
        """Use the policy of an epoch, counted from 0."""
        self.epoch = epoch

    def draw(self) -> list[tuple[str, float]]:
        """Return the ops to apply to one image, in order, with signed magnitudes (0 for ops without strength)."""
        count = int(torch.multinomial(self._counts, 1))
        settings = self._settings()
        drawn: list[tuple[str, float]] = []
        for i in torch.randperm(len(settings)).tolist():
            if len(drawn) == count:
                break
            op, probability, magnitude, signed = settings[i]
            if torch.rand(()) < probability:
                sign = -1 if signed and torch.rand(()) < 0.5 else 1
                drawn.append((op, sign * (magnitude or 0)))
        return drawn

    def _settings(self) -> list[list[Any]]:
        if self.spec["flattened"]:
            segment = int(torch.multinomial(self._lengths, 1))
        else:
            ends = self._lengths.cumsum(0)
            segment = min(int((ends <= self.epoch).sum()), len(ends) - 1)
        return self.spec["segments"][segment]["settings"]

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Return the ops of one call; torchvision's hook."""
        return {"ops": self.draw()}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Return the image with the ops of one call applied, of the kind given; torchvision's hook."""
        if isinstance(inpt, tv_tensors.TVTensor) and not isinstance(inpt, tv_tensors.Image):
            raise TypeError(f"{type(inpt).__name__} cannot be transformed; expected an image")
        if not isinstance(inpt, torch.Tensor):
            if inpt.mode not in ("L", "RGB"):
                inpt = inpt.convert("RGB")
            return F.to_pil_image(self._applied(F.pil_to_tensor(inpt), params["ops"]))
        if inpt.dtype != torch.uint8 or inpt.ndim != 3 or inpt.shape[0] not in (1, 3):
            raise TypeError(f"got {inpt.dtype} {tuple(inpt.shape)}; expected a uint8 image (C, H, W) with C = 1 or 3")
        return tv_tensors.wrap(self._applied(inpt.as_subclass(torch.Tensor), params["ops"]), like=inpt)

    def _applied(self, image: torch.Tensor, ops: list[tuple[str, float]]) -> torch.Tensor:
        fill = self.spec.get("fill", 128)
        colour = list(fill) if isinstance(fill, list | tuple) else [fill] * image.shape[0]
        for op, magnitude in ops:
            image = _OPS[op](image, magnitude, colour)
        return image


def _cutout(image: torch.Tensor, pixels: float, fill: list[int]) -> torch.Tensor:
    """Paint a square around a random pixel, clipped at the edges."""
    half, (height, width) = int(pixels) // 2, image.shape[-2:]
    y, x = int(torch.randint(height, ())), int(torch.randint(width, ()))
    image = image.clone()
    colour = torch.tensor(fill, dtype=torch.uint8)[:, None, None]
    image[:, max(0, y - half) : y + half, max(0, x - half) : x + half] = colour
    return image


def _moved(image: torch.Tensor, fill: list[int], move: Callable[[Any, Any], Any]) -> torch.Tensor:
    """Apply a geometric op of Pillow, whose nearest neighbours differ from torchvision's at half pixels."""
    return F.pil_to_tensor(move(F.to_pil_image(image), tuple(fill) if len(fill) > 1 else fill[0]))


def _affine(image: torch.Tensor, fill: list[int], *matrix: float) -> torch.Tensor:
    return _moved(image, fill, lambda pil, colour: pil.transform(pil.size, _AFFINE, matrix, fillcolor=colour))


_OPS: dict[str, Callable[[torch.Tensor, float, list[int]], torch.Tensor]] = {
    "rotate": lambda image, m, fill: _moved(image, fill, lambda pil, colour: pil.rotate(m, fillcolor=colour)),
    "translate_x": lambda image, m, fill: _affine(image, fill, 1, 0, m, 0, 1, 0),
    "translate_y": lambda image, m, fill: _affine(image, fill, 1, 0, 0, 0, 1, m),
    "brightness": lambda image, m, fill: F.adjust_brightness(image, m),
    "color": lambda image, m, fill: F.adjust_saturation(image, m),
    "invert": lambda image, m, fill: F.invert(image),
    "sharpness": lambda image, m, fill: F.adjust_sharpness(image, m),
    "posterize": lambda image, m, fill: F.posterize(image, round(m)),
    "shear_x": lambda image, m, fill: _affine(image, fill, 1, m, 0, 0, 1, 0),
    "solarize": lambda image, m, fill: F.solarize(image, m) if m < 256 else image,
    "shear_y": lambda image, m, fill: _affine(image, fill, 1, 0, 0, m, 1, 0),
    "equalize": lambda image, m, fill: F.equalize(image),
    "auto_contrast": lambda image, m, fill: F.autocontrast(image),
    "cutout": _cutout,
    "contrast": lambda image, m, fill: F.adjust_contrast(image, m),
}


# ---- exported up to here ----
def export_source(spec: dict[str, Any]) -> str:
    """Return a Python file that holds this transform and one schedule: `from exported import transform`.

    Args:
        spec: see `ScheduleTransform`; plain JSON data.

    Returns:
        Source text that imports torch and torchvision only.

    Raises:
        ValueError: the spec names an unknown op.
    """
    import inspect
    import sys

    ScheduleTransform(spec)
    source = inspect.getsource(sys.modules[__name__]).partition("\n# ---- exported up to here ----")[0]
    head = json.dumps({key: value for key, value in spec.items() if key != "segments"})
    segments = ",\n  ".join(json.dumps(segment) for segment in spec["segments"])
    text = f'{head[:-1]}, "segments": [\n  {segments}\n]}}'
    return f'{source.rstrip()}\n\n\nSPEC = json.loads(r"""\n{text}\n""")\ntransform = ScheduleTransform(SPEC)\n'
