"""Which layers and activations of a network can be quantised, and which must stay in full precision."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import fx, nn

_LAYERS = (nn.Conv2d, nn.Linear)
_ACTIVATIONS = (nn.ReLU, nn.ReLU6)
_NEUTRAL_MODULES = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d),
    *(nn.Identity, nn.Dropout, nn.Flatten, nn.ChannelShuffle),
)
_NEUTRAL_CALLS = {
    *("add", "iadd", "sub", "floordiv", "ge", "getitem", "getattr", "size"),
    *("cat", "chunk", "view", "reshape", "transpose", "permute", "contiguous", "flatten", "unflatten"),
    *("mean", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "dropout"),
}


@dataclass(frozen=True)
class Quantisable:
    """What was found in a network.

    Args:
        layers: names of the convolutions and linear layers to quantise.
        activations: names of the activations to quantise.
        problems: what cannot be quantised, one line each.
        shared: modules that stand for an activation to quantise and for one to keep, one line each.
    """

    layers: tuple[str, ...] = ()
    activations: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()


def find_quantisable(network: nn.Module) -> Quantisable:
    """Return what of a network is to be quantised, found by tracing its forward pass.

    Left out are the first and the last layer in the order of the pass, and the activations whose values reach the last
    layer unweighted or come after it.
    """
    try:
        graph = fx.Tracer().trace(network)
    except Exception as problem:  # tracing runs the network's own code on symbols: any error can come out of it
        return Quantisable(problems=(f"it cannot be traced: {problem}",))
    modules = {node: network.get_submodule(str(node.target)) for node in graph.nodes if node.op == "call_module"}
    if problems := tuple(_foreign(graph, modules)):
        return Quantisable(problems=problems)
    layers = [node for node, module in modules.items() if isinstance(module, _LAYERS)]
    order = list(modules)
    kept = _unweighted(layers[-1], modules) | set(order[order.index(layers[-1]) :])
    activations = [node for node, module in modules.items() if isinstance(module, _ACTIVATIONS)]
    names, kept_names = (_names(node for node in activations if (node in kept) == inside) for inside in (False, True))
    shared = (
        f"layer {name!r}: got one module for several activations, the last of which must stay; expected one each"
        for name in names
        if name in kept_names
    )
    ends = _names((layers[0], layers[-1]))
    inner = tuple(name for name in _names(layers) if name not in ends)
    return Quantisable(layers=inner, activations=names, shared=tuple(shared))


def _names(nodes: Iterable[fx.Node]) -> tuple[str, ...]:
    """Return the names of modules that are called, each once."""
    return tuple(dict.fromkeys(str(node.target) for node in nodes))


def _foreign(graph: fx.Graph, modules: dict[fx.Node, nn.Module]) -> Iterator[str]:
    """Describe what is neither layer nor activation nor neutral: per kind the first place and how many there are."""
    first: dict[str, str] = {}
    times: Counter[str] = Counter()
    for node in graph.nodes:
        if node in modules:
            module = modules[node]
            kind, place = type(module).__name__, f"layer {str(node.target)!r}"
            known = type(module) in _LAYERS + _ACTIVATIONS + _NEUTRAL_MODULES
        else:
            kind, place = _call(node), _place(node)
            known = node.op in ("placeholder", "output") or kind in _NEUTRAL_CALLS
        if not known:
            first.setdefault(kind, place)
            times[kind] += 1
    for kind, place in first.items():
        more = f", and {times[kind] - 1} more" if times[kind] > 1 else ""
        yield f"{place}: got {kind}{more}; expected convolutions, BatchNorm, pooling and modules ReLU or ReLU6"


def _call(node: fx.Node) -> str:
    """Return the name of a function or method that is called."""
    if node.op == "get_attr":
        return "a tensor of its own"
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return name.strip("_")


def _place(node: fx.Node) -> str:
    """Return the innermost module that makes a call."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return f"layer {stack[-1][0]!r}" if stack and stack[-1][0] else "the network itself"


def _unweighted(layer: fx.Node, modules: dict[fx.Node, nn.Module]) -> set[fx.Node]:
    """Return the activations whose values reach a layer through no other layer and no other activation."""
    found: set[fx.Node] = set()
    waiting, seen = list(layer.all_input_nodes), set()
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        module = modules.get(node)
        if isinstance(module, _ACTIVATIONS):
            found.add(node)
        elif not isinstance(module, _LAYERS):
            waiting += node.all_input_nodes
    return found
