"""Reading features of a network by forward hooks on named modules; the network's code stays as it is."""

import re
from collections.abc import Iterable, Mapping
from functools import partial
from types import TracebackType
from typing import Any

from torch import Tensor, nn

from rolekd_ray.errors import ConfigError, unknown_name

INPUT = ".input"
_PART = re.compile(r"^(?P<layer>.+)\[(?P<part>[^\[\]]+)\]$")


class Capture:
    """Keeps what named layers put out in the forward passes made while it is entered; may be entered again and again.

    A layer is named as `network.named_modules()` does; `<name>.input` is what the module takes (its first argument).
    Where a layer puts out a tuple or a dict, `<name>[0]` or `<name>[key]` says which part. Of a module that is called
    several times, the last call counts.

    Args:
        network: any module.
        layers: names.

    Raises:
        ConfigError: unknown layers; names the nearest.
    """

    def __init__(self, network: nn.Module, layers: Iterable[str]):
        self.layers = list(dict.fromkeys(layers))
        self._found: dict[str, tuple[Tensor, int]] = {}
        self._hooks: list[Any] = []
        problems = layer_problems(network, self.layers)
        if problems:
            raise ConfigError(*problems)
        modules = dict(network.named_modules())
        self._places = {layer: _resolve(modules, layer) for layer in self.layers}

    @property
    def features(self) -> dict[str, Tensor]:
        """Layer names to tensors.

        Raises:
            ConfigError: a layer was not called, or what it put out has been changed in place.
        """
        missing = [layer for layer in self.layers if layer not in self._found]
        if missing:
            raise ConfigError(
                *(f"layers: {layer!r} was called in no forward pass; expected another" for layer in missing)
            )
        changed = [layer for layer, (tensor, version) in self._found.items() if _version(tensor) != version]
        if changed:
            hint = "by what follows it, such as an activation in place; expected that one's name"
            raise ConfigError(*(f"layers: {layer!r} is overwritten {hint}" for layer in changed))
        return {layer: tensor for layer, (tensor, _) in self._found.items()}

    def __enter__(self) -> "Capture":
        self._found.clear()
        for layer, (module, is_input, part) in self._places.items():
            keep = partial(self._keep, layer, part)
            if is_input:
                self._hooks.append(module.register_forward_pre_hook(lambda module, args, keep=keep: keep(args[0])))
            else:
                self._hooks.append(module.register_forward_hook(lambda module, args, out, keep=keep: keep(out)))
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def clear(self) -> None:
        """Forget the tensors, and with them the graph they hang on."""
        self._found.clear()

    def _keep(self, layer: str, part: str | None, value: Any) -> None:
        tensor = _tensor(layer, value, part)
        self._found[layer] = tensor, _version(tensor)


def layer_problems(network: nn.Module, layers: Iterable[str], where: str = "layers") -> list[str]:
    """Return the problems of layers that a network does not have."""
    modules, problems = dict(network.named_modules()), []
    for layer in layers:
        try:
            _resolve(modules, layer)
        except KeyError:
            problems.append(unknown_name(where, "layer", layer, [name for name in modules if name]))
    return problems


def _version(tensor: Tensor) -> int:
    """Return how often a tensor was changed in place; torch does not count it in inference mode."""
    return 0 if tensor.is_inference() else tensor._version


def _tensor(layer: str, value: Any, part: str | None) -> Tensor:
    """Return the tensor, or the named part of a tuple or a dict."""
    if isinstance(value, Tensor) and part is None:
        return value
    if isinstance(value, list | tuple):
        parts: dict[str, Any] = {str(place): item for place, item in enumerate(value)}
    elif isinstance(value, Mapping):  # an ordered dict, or a model's output class
        parts = {str(key): item for key, item in value.items()}
    else:
        raise ConfigError(f"layer {layer!r}: puts out a {type(value).__name__}; expected a tensor, a tuple or a dict")
    if part is None or not isinstance(parts.get(part), Tensor):
        names = ", ".join(f"{layer.split('[')[0]}[{name}]" for name, item in parts.items() if isinstance(item, Tensor))
        raise ConfigError(f"layer {layer!r}: puts out a {type(value).__name__}; expected one of {names}")
    return parts[part]


def _resolve(modules: Mapping[str, nn.Module], layer: str) -> tuple[nn.Module, bool, str | None]:
    """Return (module, whether its input is meant, part)."""
    part = None
    if layer not in modules and (match := _PART.match(layer)):
        layer, part = match["layer"], match["part"]
    is_input = layer not in modules and layer.endswith(INPUT)
    return modules[layer.removesuffix(INPUT) if is_input else layer], is_input, part
