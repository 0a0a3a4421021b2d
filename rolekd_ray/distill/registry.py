"""Methods by name: one decorator, and the names of a function's parameters say what it is given."""

import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property, wraps
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from rolekd_ray.errors import ConfigError

T = TypeVar("T", bound=Callable)

GIVEN = {
    "logits_student": "(N, K) of the student network; carries the gradient",
    "logits_teacher": "(N, K) of the teacher network, without gradient",
    "labels": "(N,) int64; with soft_labels also class probabilities (N, K)",
    "features_student": "list of tensors (N, …), one per layer of the method; carries the gradient",
    "features_teacher": "list of tensors (N, …), without gradient; as long as features_student",
    "logits_self": "(N, K) of the student network on the teacher role's view, without gradient",
    "features_self": "list of tensors (N, …) of the student network on the teacher role's view, without gradient",
    "one_view": "bool: whether both networks, or a network and itself, saw the same view",
    "temperature": "float above 0: the run's, which may evolve",
    "progress": "float in [0, 1): share of the training that is done",
    "indices": "(N,) int64 places in the dataset",
    "generator": "torch.Generator on the tensors' device; the same numbers on every worker",
    "view": "(N, C, H, W) float: what both networks saw; needs same_view",
    "networks": "`distill.outputs.Networks`: both networks, to be called on other images",
}
"""What a function, or a module's `forward`, is given if it has a parameter of this name: the whole batch, on every
worker, and never by a copy between device and host."""

BUILT_WITH = {
    "shapes_student": "list of shapes without the batch, one per layer",
    "shapes_teacher": "the same of the teacher's layers",
    "num_classes": "K",
    "labels_of": "(M,) int64 labels of the whole training file, to be looked up by `indices`",
    "trained_on": "(n,) int64 places in the file that are trained on",
    "student": "the student network, to copy from",
    "layers_student": "names of the student's layers",
}
"""What a module's constructor is given if it has a parameter of this name."""

Layers = Literal["none", "stages", "hint", "split", "last", "embedding", "logits"]


@dataclass(frozen=True)
class Method:
    """A distillation method as the registry knows it.

    Attributes:
        name: in a configuration's `distill.losses`.
        make: a plain function, or a class of modules for a method with state.
        weight: what the literature multiplies it with beside a cross-entropy of weight 1; 1.0 where it says nothing.
        layers: which of the networks' features it takes unless the configuration names some: `stages` (the output of
            each stage), `hint` (of the middle stage), `split` (of the last but one), `last`, `embedding` (what the
            last linear layer takes), `logits`, or `none`.
        match: whether the student's features are brought to the teacher's shapes by regressors where they differ.
        same_view: whether it compares places in the image, so both networks must see the same view.
        online: None with a frozen (or co-trained) teacher; `peer`: the teacher network learns from the student, too;
            `self`: there is no teacher network, the student's own branches teach.
        soft_labels: whether its `labels` may be class probabilities (N, K), as those of mixed images are.
        rk2020: options under `distill.compat: rk2020`.
    """

    name: str
    make: Callable[..., Any]
    weight: float = 1.0
    layers: Layers = "none"
    match: bool = False
    same_view: bool = False
    online: Literal["peer", "self"] | None = None
    soft_labels: bool = False
    rk2020: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def stateful(self) -> bool:
        """Whether it is a module."""
        return isinstance(self.make, type)

    @cached_property
    def takes(self) -> list[str]:
        """What it is given for each batch: names of `GIVEN`."""
        function = self.make.forward if self.stateful else self.make  # type: ignore[attr-defined]
        return [name for name in inspect.signature(function).parameters if name in GIVEN]

    @cached_property
    def built_with(self) -> list[str]:
        """What its constructor is given: names of `BUILT_WITH`."""
        return [name for name in inspect.signature(self.make).parameters if name in BUILT_WITH] if self.stateful else []

    @cached_property
    def options(self) -> dict[str, Any]:
        """Options and their defaults: keyword-only parameters that are not among those that are given."""
        found = inspect.signature(self.make).parameters.values()
        given = {**GIVEN, **BUILT_WITH}
        return {p.name: p.default for p in found if p.kind is p.KEYWORD_ONLY and p.name not in given}

    @cached_property
    def needs_teacher(self) -> bool:
        """Whether there must be a teacher network."""
        return bool({"logits_teacher", "features_teacher", "networks"} & set(self.takes))

    @cached_property
    def distils(self) -> bool:
        """Whether it is more than learning from labels."""
        return self.needs_teacher or self.online is not None


_METHODS: dict[str, Method] = {}


def method(name: str, **about: Any) -> Callable[[T], T]:
    """Make a function of tensors, or a class of modules, a method that configurations can name.

    It computes in float32 at least, whatever the networks computed in, and outside of autocast.

    Args:
        name: its name.
        about: fields of `Method`.

    Raises:
        ConfigError: the name is taken, or a peer's method takes features.
    """

    def register(make: T) -> T:
        if name in _METHODS:
            raise ConfigError(f"method {name!r}: registered twice; expected another name")
        if about.get("online") == "peer" and about.get("layers", "none") != "none":
            raise ConfigError(f"method {name!r}: got layers; expected none, for peers swap logits alone")
        if isinstance(make, type):
            make.forward = _precise(make.forward)  # type: ignore[attr-defined]
        else:
            make = _precise(make)  # type: ignore[assignment]
        _METHODS[name] = Method(name, make, **about)
        return make

    return register


def known_methods() -> dict[str, Method]:
    """Return every method by name: those of `distill/methods/`, and of the modules that `ROLEKD_METHODS` names.

    The variable holds names of importable modules, separated by commas. It is the user's own, as no setting of a run
    could be: a run of unknown origin must not make anybody import code.

    Raises:
        ConfigError: a module cannot be imported.
    """
    _import_all(os.environ.get("ROLEKD_METHODS", ""))
    return dict(_METHODS)


@cache
def _import_all(own: str) -> None:
    folder = import_module("rolekd_ray.distill.methods")
    for module in iter_modules(folder.__path__, f"{folder.__name__}."):
        import_module(module.name)
    for name in filter(None, map(str.strip, own.split(","))):
        try:
            import_module(name)
        except Exception as error:  # somebody's code runs here: any error can come out of it
            raise ConfigError(
                f"ROLEKD_METHODS: cannot import {name!r}: {error}; expected a module on PYTHONPATH"
            ) from error


def _precise(function: T) -> T:
    """Wrap a function so that float tensors arrive as float32 at least, and nothing in it is narrowed by autocast.

    In bfloat16 softmax loses the small classes that distillation is about, and squares of features overflow float16.
    """

    @wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = _wide(args), _wide(kwargs)
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            return function(*args, **kwargs)

    return wrapped  # type: ignore[return-value]


def _wide(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point() and not isinstance(value, nn.Parameter):
        return value.to(torch.promote_types(value.dtype, torch.float32))
    if isinstance(value, list | tuple):
        return type(value)(_wide(item) for item in value)
    if isinstance(value, dict):
        return {key: _wide(item) for key, item in value.items()}
    return value
