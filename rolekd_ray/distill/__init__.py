"""Distillation: methods by name, their losses of one batch, and which role's view feeds which network."""

from rolekd_ray.distill.capture import Capture
from rolekd_ray.distill.losses import Losses, check_losses, check_options, weighted_sum
from rolekd_ray.distill.outputs import Networks, Outputs
from rolekd_ray.distill.registry import Method, known_methods, method
from rolekd_ray.distill.views import VIEW_MODES, network_views

__all__ = [
    "VIEW_MODES",
    "Capture",
    "Losses",
    "Method",
    "Networks",
    "Outputs",
    "check_losses",
    "check_options",
    "known_methods",
    "method",
    "network_views",
    "weighted_sum",
]
