"""Models: the networks that knowledge-distillation tables name, torchvision's, and folding for frozen teachers."""

from rolekd_ray.models.folding import fold_batchnorm
from rolekd_ray.models.layers import DefaultLayers, default_layers, layer_names, layer_table
from rolekd_ray.models.zoo import build_network, check_network, network_names

__all__ = [
    "DefaultLayers",
    "build_network",
    "check_network",
    "default_layers",
    "fold_batchnorm",
    "layer_names",
    "layer_table",
    "network_names",
]
