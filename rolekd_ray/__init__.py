"""Population search for role-wise data augmentation in knowledge distillation, on Ray."""

__version__ = "0.1.0"
