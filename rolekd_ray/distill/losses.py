"""The losses of a run: weighted methods, the layers they look at, and the state that some of them keep."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rolekd_ray.distill.layers import LOGITS, LayerPairs
from rolekd_ray.distill.outputs import Outputs
from rolekd_ray.distill.registry import Method, known_methods
from rolekd_ray.distill.regressor import Regressor
from rolekd_ray.distill.standardise import standardise as standardised
from rolekd_ray.errors import ConfigError, unknown_name

ELSEWHERE = {
    "ce": "cross_entropy",
    "kl": "hinton",
    "kd": "hinton",
    "at": "attention",
    "sp": "similarity",
    "cc": "correlation_congruence",
    "fitnet": "hint",
    "fitnets": "hint",
    "reviewkd": "review",
    "kdsvd": "svd",
    "dml": "mutual",
}
"""Methods by the short names of RepDistiller, mdistiller and papers; suggested, and not taken as names."""

_OWN = " Methods of your own: ROLEKD_METHODS names their modules."


class Losses(nn.Module):
    """Methods by name with what they need to be called; a module, so that their state is trained and saved.

    Its parameters see the whole batch on every worker, so their gradients are whole there and must not be summed.

    Args:
        names: methods.
        options: of methods, beside their defaults.
        layers: of methods that take features, as `Capture` names them, or `logits`.
        standardise: whether methods that soften both networks' logits, that is take both and a temperature, are given
            standardised ones. Not `cross_entropy`, whose logits face labels, nor `one`, whose branches share a trunk,
            nor `bss`, which softens logits of images of its own.
        built_with: values for constructors, by names of `registry.BUILT_WITH`; shapes by layer name instead:
            `shapes_student` and `shapes_teacher` map layers to shapes.

    Raises:
        ConfigError: a method lacks layers, or their shapes do not fit together.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        options: Mapping[str, Mapping[str, Any]] | None = None,
        layers: Mapping[str, LayerPairs] | None = None,
        standardise: bool = False,
        built_with: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        known = known_methods()
        self.methods = {name: known[name] for name in names}
        self.options = {name: dict((options or {}).get(name, {})) for name in names}
        self.standardise = standardise
        self.layers = {name: pairs for name, pairs in (layers or {}).items() if name in self.methods}
        self.state = nn.ModuleDict()
        self.regressors = nn.ModuleDict()
        for method in self.methods.values():
            self._build(method, built_with or {})

    def _build(self, method: Method, built_with: Mapping[str, Any]) -> None:
        """Make the regressors and the module of a method, where it has any."""
        student, teacher = self.layers.get(method.name, ((), ()))
        shapes = {
            "shapes_student": [tuple(built_with.get("shapes_student", {}).get(layer, ())) for layer in student],
            "shapes_teacher": [tuple(built_with.get("shapes_teacher", {}).get(layer, ())) for layer in teacher],
        }
        if method.match:
            pairs = zip(shapes["shapes_student"], shapes["shapes_teacher"], strict=True)
            self.regressors[method.name] = nn.ModuleList(
                Regressor(own, wanted) if own != wanted else nn.Identity() for own, wanted in pairs
            )
            shapes["shapes_student"] = shapes["shapes_teacher"]
        if method.stateful:
            values = {**built_with, **shapes, "layers_student": list(student)}
            own_options = {key: value for key, value in self.options[method.name].items() if key in method.options}
            self.state[method.name] = method.make(**{key: values[key] for key in method.built_with}, **own_options)

    @property
    def needs_teacher(self) -> bool:
        """Whether some method needs a teacher network."""
        return any(method.needs_teacher for method in self.methods.values())

    def takes(self, name: str) -> bool:
        """Whether some method is given this."""
        return any(name in method.takes for method in self.methods.values())

    @property
    def online(self) -> str | None:
        """Whether a `peer` learns along, or the student teaches it`self`; see `Method.online`."""
        kinds = {method.online for method in self.methods.values()}
        return "peer" if "peer" in kinds else "self" if "self" in kinds else None

    def layers_of(self, network: Literal["student", "teacher"]) -> list[str]:
        """Return all layers to capture of a network."""
        found: list[str] = []
        for name, (student, teacher) in self.layers.items():
            alone = self.methods[name].online == "self"  # its teacher's layers are the student's
            found += student if network == "student" else () if alone else teacher
        return [layer for layer in dict.fromkeys(found) if layer != LOGITS]

    def forward(self, outputs: Outputs, weights: Mapping[str, float]) -> dict[str, Tensor]:
        """Return each method's loss, unweighted; those of weight 0 are not computed.

        Raises:
            ConfigError: a method needs what the batch lacks, such as a teacher.
        """
        return {name: self._loss(self.methods[name], outputs) for name, weight in weights.items() if weight != 0}

    def _loss(self, method: Method, outputs: Outputs) -> Tensor:
        given = {name: self._given(method, name, outputs) for name in method.takes}
        missing = [name for name, value in given.items() if value is None]
        if missing:
            teacher = "teacher" in missing[0] or missing[0] in ("networks", "view")
            expected = "a teacher network" if teacher else f"a batch with {', '.join(missing)}"
            raise ConfigError(f"losses.{method.name}: got no {', '.join(missing)}; expected {expected}")
        options = self.options[method.name]
        if not method.stateful:
            return method.make(**(given | options))
        return self.state[method.name](**(given | {key: options[key] for key in options if key in method.takes}))

    def _given(self, method: Method, name: str, outputs: Outputs) -> Any:
        if not name.startswith("features_"):
            value = getattr(outputs, name)
            softened = {"logits_student", "logits_teacher", "temperature"} <= set(method.takes)
            softened = softened and "networks" not in method.takes  # those are to choose by, others are softened
            if self.standardise and softened and name.startswith("logits_") and value is not None:
                return standardised(_float(value))  # widened first: bfloat16 would round the differences
            return value
        side = name.removeprefix("features_")
        layers = self.layers[method.name][1 if side == "teacher" else 0]
        found = getattr(outputs, name)
        if any(layer != LOGITS and layer not in found for layer in layers):
            return None
        features = [getattr(outputs, f"logits_{side}") if layer == LOGITS else found[layer] for layer in layers]
        if any(value is None for value in features):
            return None
        if side == "student" and method.match:
            regressors = list(self.regressors[method.name].children())
            features = [regressor(_float(value)) for regressor, value in zip(regressors, features, strict=True)]
        return features


def weighted_sum(weights: Mapping[str, float], losses: Mapping[str, Tensor]) -> Tensor:
    """Return the weighted sum of losses, a scalar."""
    assert losses, f"no loss has a weight: {dict(weights)}"
    return torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()


def check_losses(weights: Mapping[str, float], where: str) -> list[str]:
    """Return the problems of a section of loss weights: unknown names, weights that are not finite or below 0, none."""
    known = known_methods()
    problems = [
        unknown_name(where, "loss", name, sorted(known), meant=ELSEWHERE.get(name.lower())) + _OWN
        for name in weights
        if name not in known
    ]
    for name, weight in weights.items():
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not number or not math.isfinite(weight) or weight < 0:
            problems.append(f"{where}.{name}: got {weight!r}; expected a finite number of at least 0")
    if not problems and not any(weights.values()):
        problems.append(f"{where}: got {dict(weights)}; expected at least one loss with a weight above 0")
    return problems


def check_options(options: Mapping[str, Mapping[str, Any]], losses: Mapping[str, float], where: str) -> list[str]:
    """Return the problems of a section of options: methods without a weight, unknown names, values of another type."""
    known, problems = known_methods(), []
    for name, values in options.items():
        if name not in losses or name not in known:
            problems.append(unknown_name(where, "method of distill.losses", name, losses))
            continue
        defaults = known[name].options | ({"temperature": 1.0} if "temperature" in known[name].takes else {})
        for key, value in values.items():
            if not defaults:
                problems.append(f"{where}.{name}: got {key!r}; expected nothing, for it has no options")
            elif key not in defaults:
                problems.append(unknown_name(f"{where}.{name}", "option", key, defaults))
            elif not _same_kind(value, defaults[key]):
                expected = f"{_kind(defaults[key])}, as its default {defaults[key]!r}"
                problems.append(f"{where}.{name}.{key}: got {value!r}; expected {expected}")
    return problems


def _same_kind(value: Any, default: Any) -> bool:
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    if isinstance(default, float):
        return isinstance(value, int | float) and math.isfinite(value)
    return isinstance(value, type(default))


def _kind(default: Any) -> str:
    return {bool: "true or false", float: "a number", int: "a whole number", str: "text"}.get(type(default), "another")


def _float(value: Tensor) -> Tensor:
    return value.to(torch.promote_types(value.dtype, torch.float32))
