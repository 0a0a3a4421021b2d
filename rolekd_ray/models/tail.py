"""The tail of a network: what maps one layer's output to the logits."""

import copy

from torch import fx, nn

from rolekd_ray.errors import ConfigError


def tail_of(network: nn.Module, layer: str) -> nn.Module:
    """Return a copy of all that comes after a layer: a module that maps its output (N, …) to logits (N, K).

    Parameters and buffers are copies with the names they have in the network, so a tail's state can be loaded into it.

    Args:
        network: one that torch.fx can trace.
        layer: name of a module through which everything flows.

    Raises:
        ConfigError: the network cannot be traced, or something flows around the layer.
    """
    try:
        graph = _StopAt(layer).trace(network)
    except Exception as problem:  # tracing runs the network's own code on symbols: any error can come out of it
        raise ConfigError(f"layer {layer!r}: {type(network).__name__} cannot be cut there: {problem}") from problem
    cut = next((node for node in graph.nodes if node.op == "call_module" and node.target == layer), None)
    if cut is None:
        raise ConfigError(f"layer {layer!r}: is not called; expected another one of {type(network).__name__}")
    tail = fx.Graph()
    copies = {cut: tail.placeholder("features")}
    after = list(graph.nodes)[list(graph.nodes).index(cut) + 1 :]
    for node in after:
        around = [source for source in node.all_input_nodes if source not in copies and source.op != "get_attr"]
        if around:
            raise ConfigError(
                f"layer {layer!r}: {node.name} takes {around[0].name}, which flows around it; expected a layer through "
                "which everything flows"
            )
        copies[node] = tail.node_copy(node, lambda source: copies[source])
    return fx.GraphModule(copy.deepcopy(network), tail)  # keeps those modules that the tail calls


class _StopAt(fx.Tracer):
    """Traces into everything but one module."""

    def __init__(self, layer: str):
        super().__init__()
        self.layer = layer

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name == self.layer or super().is_leaf_module(m, module_qualified_name)
