"""The sections of a run, and the run."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, PlainSerializer, PlainValidator, model_validator

from rolekd_ray.config.agents import AgentsSettings, BranchSettings
from rolekd_ray.config.base import Count, Fraction, NotNegative, Positive, Section
from rolekd_ray.config.data import DataSettings
from rolekd_ray.config.networks import NetworkSettings, TeacherSettings
from rolekd_ray.config.slots import SlotSettings
from rolekd_ray.policy.space import SearchSpace, load_space, parse_space
from rolekd_ray.roles import Role
from rolekd_ray.storage import Place, place


class TrainingSettings(Section):
    """How every network is optimised, in the search and in final trainings."""

    batch_size: Annotated[int, Field(ge=2)] = 128
    optimizer: Literal["sgd", "adam"] = "sgd"
    learning_rate: Positive = 0.1
    momentum: Fraction = 0.9
    """Nesterov momentum of `sgd`; `adam` has its own."""
    weight_decay: NotNegative = 5e-4
    learning_rate_schedule: Literal["cosine", "step", "constant"] = "cosine"
    learning_rate_milestones: tuple[Fraction, ...] = (0.3, 0.6, 0.8)
    """Shares of the epochs after which `step` multiplies by 0.1; role-kd's code has these. CRD's 150, 180 and 210 of
    240 are [0.625, 0.75, 0.875]. Being shares, they grow with `final.epochs_factor`."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """`auto`: bfloat16 where the hardware is faster at it, float32 elsewhere."""
    batchnorm: Literal["sync", "local"] = "sync"
    """Where several workers share a batch. `sync`: statistics of the whole batch, so their number changes nothing.
    `local`: of each worker's rows, without a message per layer."""


class LayerSettings(Section):
    """Layers that a method compares: the first of the student's with the first of the teacher's, and so on.

    None: that network's defaults, as many as the other's, from the deep end.
    """

    student: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    teacher: Annotated[tuple[str, ...], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _pairs(self) -> "LayerSettings":
        if self.student is None and self.teacher is None:
            raise ValueError("expected student, teacher or both")
        if self.student is not None and self.teacher is not None and len(self.student) != len(self.teacher):
            raise ValueError(
                f"teacher: got {len(self.teacher)} layers; expected {len(self.student)}, as many as the student's"
            )
        return self


class DistillSettings(Section):
    """What the student learns from."""

    losses: Mapping[str, NotNegative] = Field(default={"cross_entropy": 0.1, "hinton": 0.9}, min_length=1)
    """Methods by name, with their weights; `docs/methods.md` lists them."""
    temperature: Positive = 4.0
    view_mode: Literal["shared_student", "shared_teacher", "independent", "teacher_clean"] = "shared_student"
    branches: BranchSettings | None = None
    """None: the student sees the agents' view alone; where it is mixed, labels are, too. Else the plain view stands
    beside it (arXiv 2012.02909)."""
    layers: Mapping[str, LayerSettings] = {}
    """Of methods that compare features, where the defaults will not do; `rolekd check --layers MODEL` lists names."""
    options: Mapping[str, Mapping[str, bool | int | float | str]] = {}
    """Of methods, where the defaults will not do. `temperature` here wins over the run's."""
    standardise_logits: bool = False
    """Methods that soften logits compare standardised ones (arXiv 2403.01427)."""
    clip_to_task: bool = False
    """Of each parameter, the gradient of distillation is cut to the length of the labels' (role-kd's code)."""
    compat: Literal["corrected", "rk2020"] = "corrected"
    """`rk2020`: as role-kd's published code computes: no T² in Hinton's loss, MHGD's attention untrained, RKD's Huber
    loss without its -1/2. Its lambda, which has no effect on the gradient there, has no counterpart here."""


class BaseAugmentationSettings(Section):
    """What follows the agents that work on bytes in every training view; evaluation uses none of it."""

    crop_padding_pixels: Annotated[int, Field(ge=0)] = 4
    flip: bool = True
    cutout_pixels: Annotated[int, Field(ge=0)] = 16


class SearchSettings(Section):
    """The population search."""

    protocol: Literal["sequential", "coevolve"] = "sequential"
    """`sequential`: teacher's schedule, teacher, then the student's schedule. `coevolve`: both in one search."""
    population_size: Annotated[int, Field(ge=2)] = 16
    epochs: Count = 200
    perturbation_interval_epochs: Count = 3
    quantile: Annotated[float, Field(gt=0, le=0.5)] = 0.25
    mode: Literal["synchronous", "asynchronous"] = "synchronous"
    initial_policies: Literal["zero", "random", "sobol", "schedule", "run"] = "zero"
    """`zero`: the paper's, no op fires. `sobol`: spread evenly over the space. `schedule`, `run`: of `initial_from`."""
    initial_from: Annotated[Place, PlainValidator(place), PlainSerializer(str)] | None = None
    """A schedule file, or a run whose best members' policies are taken."""
    initial_filter: bool = False
    """Of the student's first policies, `random` or `sobol`, four times as many are drawn, and those are kept that have
    the lowest T. stddev for a finished teacher and leave it sure of what it sees (docs/diagnose.md)."""
    explorer: Literal["pba", "factor", "optuna"] = "pba"
    """What follows the copying of a better member. `pba`: the paper's mutation. `factor`: bins times 0.8 or 1.2.
    `optuna`: new policies, by what each interval so far has gained."""
    optuna_sampler: Literal["tpe", "gp"] = "tpe"
    resample_probability: Fraction = 0.2
    max_shift_bins: Annotated[int, Field(ge=0)] = 3
    """Of `pba`."""
    min_lineages: Count = 1
    """A member that copies another ends its own line; not where fewer than so many lines would be left."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """How often an interval may fail, or its trial process die, before a copy of another member takes its place."""


class FinalSettings(Section):
    """The trainings after the search (and of the teacher before the student's search)."""

    epochs: Count | None = None
    """None: as many as the search; schedules are stretched to this length."""
    epochs_factor: Positive = 1.0
    """Prolonged training (arXiv 2012.02909): times so many epochs, rounded; milestones and schedules grow with them."""
    train: Count | None = None
    """Training images; None: all that are not held out for validation."""


class Settings(Section):
    """One run."""

    source: str = ""
    """Where the settings come from: a paper, its code, or a sentence."""
    seed: int = 0
    data: DataSettings = DataSettings()
    teacher: TeacherSettings = TeacherSettings(model="resnet20")
    student: NetworkSettings = NetworkSettings(model="resnet8")
    training: TrainingSettings = TrainingSettings()
    distill: DistillSettings = DistillSettings()
    base_augmentation: BaseAugmentationSettings = BaseAugmentationSettings()
    agents: AgentsSettings = AgentsSettings()
    search: SearchSettings = SearchSettings()
    final: FinalSettings = FinalSettings()
    slots: SlotSettings = SlotSettings()
    space: str | dict[str, Any] = "cifar10_pba"
    """A file of `searchspaces/` by name, or the space itself; see `policy.space.parse_space`."""

    @model_validator(mode="after")
    def _consistent(self) -> "Settings":
        if self.student.checkpoint is not None:
            raise ValueError("student.checkpoint: the student is what a run trains; expected none")
        if len(self.teacher.checkpoints) == 1 and self.teacher.combine != "probabilities":
            raise ValueError(f"teacher.combine: got {self.teacher.combine!r} for one checkpoint; expected several")
        if self.search.protocol == "coevolve" and self.teacher.checkpoint is not None:
            raise ValueError(
                "teacher.checkpoint: a given teacher cannot co-evolve; expected search.protocol: sequential"
            )
        search = self.search
        if search.min_lineages > search.population_size:
            raise ValueError(
                f"search.min_lineages: got {search.min_lineages}; expected at most {search.population_size}, the "
                "population_size"
            )
        if search.initial_filter and search.initial_policies not in ("random", "sobol"):
            raise ValueError(
                f"search.initial_filter: got true for initial_policies: {search.initial_policies}; expected random or "
                "sobol"
            )
        if search.initial_filter and search.protocol == "coevolve":
            raise ValueError("search.initial_filter: got true for protocol: coevolve, whose teacher is not finished")
        if (search.initial_policies in ("schedule", "run")) != (search.initial_from is not None):
            raise ValueError(
                f"search.initial_from: got {search.initial_from} for initial_policies: {search.initial_policies}; "
                "expected a place for schedule and for run, and for no other"
            )
        return self

    def network(self, role: Role) -> NetworkSettings:
        """Return one role's network settings."""
        return self.teacher if role == Role.TEACHER else self.student

    @property
    def final_epochs(self) -> int:
        """Length of a final training."""
        return max(1, round((self.final.epochs or self.search.epochs) * self.final.epochs_factor))

    def search_space(self, where: str = "settings") -> SearchSpace:
        """Return the search space, found by name or parsed.

        Raises:
            SearchSpaceError: it is unknown or wrong.
        """
        return (
            load_space(self.space) if isinstance(self.space, str) else parse_space(self.space, where=f"{where}: space")
        )
