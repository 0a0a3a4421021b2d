"""Folding: a frozen network with BatchNorm made part of the convolutions before it."""

import copy
import logging
from collections import Counter

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from rolekd_ray.models.ensemble import Ensemble

_log = logging.getLogger(__name__)


def fold_batchnorm(network: nn.Module) -> nn.Module:
    """Return a frozen copy in eval mode, each BatchNorm folded into the convolution that alone feeds it.

    Logits agree with the network's in eval mode up to float rounding. Modules keep their names and still run, so hooks
    on stages still work; a folded BatchNorm becomes an identity. The network itself is left as it is. Only plain
    `nn.Conv2d` is folded: a quantised layer would quantise other weights. A network that cannot be traced comes back
    frozen but not folded, and the log says so; of an ensemble each member is folded by itself.
    """
    if isinstance(network, Ensemble):
        return Ensemble([fold_batchnorm(member) for member in network.members], network.combine).eval()
    folded = copy.deepcopy(network).eval().requires_grad_(False)
    try:
        graph = fx.Tracer().trace(folded)
    except Exception as problem:  # tracing runs the network's own code on symbols: any error can come out of it
        _log.info("%s cannot be traced, so BatchNorm is not folded: %s", type(network).__name__, problem)
        return folded
    for (conv_path, conv), (bn_path, bn) in _pairs(folded, graph):
        folded.set_submodule(conv_path, fuse_conv_bn_eval(conv, bn).requires_grad_(False))
        folded.set_submodule(bn_path, nn.Identity().eval())
    return folded


def _pairs(network: nn.Module, graph: fx.Graph) -> list[tuple[tuple[str, nn.Conv2d], tuple[str, nn.BatchNorm2d]]]:
    """Return the convolutions, and the BatchNorms after them, that may be folded, with their paths."""
    calls = [node for node in graph.nodes if node.op == "call_module"]
    times = Counter(id(network.get_submodule(str(node.target))) for node in calls)
    pairs = []
    for node in calls:
        before = node.args[0] if node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) != 1:
            continue
        conv, bn = network.get_submodule(str(before.target)), network.get_submodule(str(node.target))
        if type(conv) is not nn.Conv2d or type(bn) is not nn.BatchNorm2d or bn.running_mean is None:
            continue
        if times[id(conv)] == times[id(bn)] == 1:  # a module called twice has two neighbours
            pairs.append(((str(before.target), conv), (str(node.target), bn)))
    return pairs
