"""Population search for role-wise data augmentation in knowledge distillation, on Ray.

The names below are the public interface; each is imported when it is first used, so `import rolekd_ray` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from rolekd_ray.config import Settings, load_settings
    from rolekd_ray.policy.formats import import_schedule
    from rolekd_ray.policy.policy import OpSetting, Policy
    from rolekd_ray.policy.schedule import Schedule, Segment, load_schedule
    from rolekd_ray.policy.space import SearchSpace, load_space
    from rolekd_ray.roles import Role
    from rolekd_ray.search.diagnosis import diagnose
    from rolekd_ray.search.evaluation import evaluate_checkpoint
    from rolekd_ray.search.pictures import draw_views
    from rolekd_ray.search.pipeline import Outcome, resume_run, start_run
    from rolekd_ray.training.chain import chain_of, train_chain
    from rolekd_ray.training.final import FinalTraining, train_final

__all__ = [
    "FinalTraining",
    "OpSetting",
    "Outcome",
    "Policy",
    "Role",
    "Schedule",
    "SearchSpace",
    "Segment",
    "Settings",
    "chain_of",
    "diagnose",
    "draw_views",
    "evaluate_checkpoint",
    "import_schedule",
    "load_schedule",
    "load_settings",
    "load_space",
    "resume_run",
    "start_run",
    "train_chain",
    "train_final",
]

_HOMES = {
    "config": ("Settings", "load_settings"),
    "policy.formats": ("import_schedule",),
    "policy.policy": ("OpSetting", "Policy"),
    "policy.schedule": ("Schedule", "Segment", "load_schedule"),
    "policy.space": ("SearchSpace", "load_space"),
    "roles": ("Role",),
    "search.diagnosis": ("diagnose",),
    "search.evaluation": ("evaluate_checkpoint",),
    "search.pictures": ("draw_views",),
    "search.pipeline": ("Outcome", "resume_run", "start_run"),
    "training.chain": ("chain_of", "train_chain"),
    "training.final": ("FinalTraining", "train_final"),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
