"""Models: the networks that knowledge-distillation tables name, torchvision's, and folding for frozen teachers."""

from rolekd_ray.models.folding import fold_batchnorm
from rolekd_ray.models.zoo import build_network, check_network, network_names

__all__ = ["build_network", "check_network", "fold_batchnorm", "network_names"]
