"""Distillation: losses as plain functions, and which role's view feeds which network."""

from rolekd_ray.distill.losses import LOSSES, Outputs, check_losses, cross_entropy, hinton, weighted_loss
from rolekd_ray.distill.views import VIEW_MODES, network_views

__all__ = [
    "LOSSES",
    "VIEW_MODES",
    "Outputs",
    "check_losses",
    "cross_entropy",
    "hinton",
    "network_views",
    "weighted_loss",
]
