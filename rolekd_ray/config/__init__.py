"""The settings of a run: what may stand in a configuration file, and what it defaults to.

Data holds numbers and names, never class paths. Unknown keys are errors, and all problems of a file are reported at
once. A function receives its own section; only `search` and `cli` read the whole.
"""

from rolekd_ray.config.agents import (
    AgentsSettings,
    BranchSettings,
    LearnedSettings,
    PickSettings,
    RoleAgents,
)
from rolekd_ray.config.base import Section
from rolekd_ray.config.data import DataSettings, ExponentialSettings, NoiseSettings, PowerLawSettings
from rolekd_ray.config.networks import NetworkSettings, TeacherSettings
from rolekd_ray.config.reading import load_settings, parse_settings, settings_text
from rolekd_ray.config.settings import (
    BaseAugmentationSettings,
    DistillSettings,
    FinalSettings,
    LayerSettings,
    SearchSettings,
    Settings,
    TrainingSettings,
)
from rolekd_ray.config.slots import SlotSettings, WorkerResources

__all__ = [
    "AgentsSettings",
    "BaseAugmentationSettings",
    "BranchSettings",
    "DataSettings",
    "DistillSettings",
    "ExponentialSettings",
    "FinalSettings",
    "LayerSettings",
    "LearnedSettings",
    "NetworkSettings",
    "NoiseSettings",
    "PickSettings",
    "PowerLawSettings",
    "RoleAgents",
    "SearchSettings",
    "Section",
    "Settings",
    "SlotSettings",
    "TeacherSettings",
    "TrainingSettings",
    "WorkerResources",
    "load_settings",
    "parse_settings",
    "settings_text",
]
