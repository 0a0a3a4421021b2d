"""The settings of a run: what may stand in a configuration file, and what it defaults to.

Data holds numbers and names, never class paths. Unknown keys are errors, and all problems of a file are reported at
once. A function receives its own section; only `search` and `cli` read the whole.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from rolekd_ray.errors import ConfigError, SearchSpaceError, suggest, unknown_name
from rolekd_ray.files import dump_yaml, parse_yaml, read_yaml
from rolekd_ray.policy.space import SearchSpace, find_searchspace, load_space, parse_space
from rolekd_ray.roles import Role
from rolekd_ray.storage import Place, place, places

Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


class Section(BaseModel):
    """A frozen group of settings that knows no other keys than its own."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class NoiseSettings(Section):
    """Label noise, of training labels alone; see `data.noise.noisy_labels`."""

    kind: Literal["symmetric", "symmetric_other", "pair_flip"]
    """`symmetric`: one of all classes, the true one included. `symmetric_other`: one of the others. `pair_flip`: the
    next class."""
    rate: Fraction
    """Chance of a label to be replaced; of `symmetric` one in K is replaced by itself."""
    seed: int = 0
    """Independent of the run's."""


class _ImbalanceSettings(Section):
    kind: str
    n_max: Count | None = None
    """Images of the first class; None: as many as the smallest class has beside the held-out ones."""
    images: Literal["first", "random"] = "first"
    """Which ones of a class stay: the first of the file, or random ones."""
    seed: int = 0
    """Of `random`; independent of the run's."""


class PowerLawSettings(_ImbalanceSettings):
    """Class imbalance by a power law; see `data.imbalance.power_law_counts`."""

    kind: Literal["power_law"]
    gamma: Positive
    """Smaller falls more steeply."""
    n_min: Count
    """Images of the last class."""

    @field_validator("n_min")
    @classmethod
    def _not_above_n_max(cls, n_min: int, info: ValidationInfo) -> int:
        n_max = info.data.get("n_max")
        if n_max is not None and n_min > n_max:
            raise ValueError(f"expected at most n_max, {n_max}")
        return n_min


class ExponentialSettings(_ImbalanceSettings):
    """Class imbalance by a long tail; see `data.imbalance.exponential_counts`."""

    kind: Literal["exponential"]
    ratio: Annotated[float, Field(ge=1)]
    """First class to last."""


# A location of pydantic's names the kind of such a section after its key
KINDS: dict[str, type[Section]] = {"power_law": PowerLawSettings, "exponential": ExponentialSettings}


class DataSettings(Section):
    """Where images come from and how they are split."""

    source: Literal["digits", "cifar10", "cifar100", "svhn", "fashion_mnist", "parquet", "image_folder"] = "digits"
    path: Path | None = None
    """Folder of the dataset. Not used by `digits`."""
    download: bool = False
    image_size: Annotated[int, Field(ge=8)] | None = None
    """Resize to this many pixels a side; None: images must be of one size."""
    train: Count | None = None
    """Training images during the search; None: all that are not held out."""
    validation: Count = 400
    """Images held out from teacher, initial weights and student; they alone decide the search."""
    split_seed: int = 0
    noise: NoiseSettings | None = None
    """Wrong training labels; validation and test stay clean."""
    imbalance: Annotated[PowerLawSettings | ExponentialSettings, Field(discriminator="kind")] | None = None
    """Fewer training images of later classes; validation and test stay as they are."""


def _one_or_several(where: object) -> Place | tuple[Place, ...]:
    """Read a checkpoint's place, or a list of them."""
    if not isinstance(where, list | tuple):
        return place(where)
    if not where:
        raise ValueError("expected a place or a list of at least one")
    return tuple(map(place, where))


def _as_text(where: Place | tuple[Place, ...]) -> str | list[str]:
    return list(map(str, where)) if isinstance(where, tuple) else str(where)


class NetworkSettings(Section):
    """One role's network."""

    model: str
    checkpoint: (
        Annotated[Place | tuple[Place, ...], PlainValidator(_one_or_several), PlainSerializer(_as_text)] | None
    ) = None
    """A trained network of this architecture; the role is then neither searched nor trained."""

    @property
    def checkpoints(self) -> tuple[Place, ...]:
        """Each place that `checkpoint` names."""
        return places(self.checkpoint)


class TeacherSettings(NetworkSettings):
    """The teacher's network. Several checkpoints teach as one, an ensemble; `model` then says nothing about them."""

    combine: Literal["probabilities", "logits"] = "probabilities"
    """What several checkpoints' answers become: the mean of their probabilities, or of their logits."""


class TrainingSettings(Section):
    """How every network is optimised, in the search and in final trainings."""

    batch_size: Annotated[int, Field(ge=2)] = 128
    optimizer: Literal["sgd", "adam"] = "sgd"
    learning_rate: Positive = 0.1
    momentum: Fraction = 0.9
    """Nesterov momentum of `sgd`; `adam` has its own."""
    weight_decay: NotNegative = 5e-4
    learning_rate_schedule: Literal["cosine", "step", "constant"] = "cosine"
    """`step`: times 0.1 at 30, 60 and 80 % of the epochs, as role-kd's code does."""
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
            raise ValueError("got no layers; expected student, teacher or both")
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
    """What follows the policy in every training view; evaluation uses none of it."""

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
    initial_policies: Literal["zero", "random"] = "zero"
    resample_probability: Fraction = 0.2
    max_shift_bins: Annotated[int, Field(ge=0)] = 3
    max_failures: Annotated[int, Field(ge=0)] = 3
    """How often an interval may fail, or its trial process die, before a copy of another member takes its place."""


class FinalSettings(Section):
    """The trainings after the search (and of the teacher before the student's search)."""

    epochs: Count | None = None
    """None: as many as the search; schedules are stretched to this length."""
    train: Count | None = None
    """Training images; None: all that are not held out for validation."""


class WorkerResources(Section):
    """What one worker of a slot takes."""

    cpus: Positive = 1.0
    gpus: NotNegative = 0.0
    """A share of one GPU, below 1, or a whole number of GPUs."""

    @field_validator("gpus")
    @classmethod
    def _share_or_whole(cls, gpus: float) -> float:
        if gpus > 1 and gpus != int(gpus):
            raise ValueError("expected a share below 1 or a whole number")
        return gpus


class SlotSettings(Section):
    """The hardware that trains intervals."""

    count: Count | Literal["auto"] = "auto"
    """`auto`: as many as the machine or cluster holds, at most one per member; follows nodes that join."""
    workers: Count | tuple[Count, Count] = 1
    """Workers that share each batch, in one slot: 1 is a process, more are a Ray Train worker group over any nodes.
    `[1, 4]`: as many as fit, again after a node is lost; the whole batch stays what it was."""
    resources_per_worker: WorkerResources = WorkerResources()

    @property
    def fewest_workers(self) -> int:
        """What a slot needs at least."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def most_workers(self) -> int:
        """What a slot takes where there is room."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]

    @model_validator(mode="after")
    def _group(self) -> "SlotSettings":
        if self.fewest_workers > self.most_workers:
            raise ValueError(f"workers: got {list(self.workers)}; expected [fewest, most]")  # type: ignore[arg-type]
        if self.most_workers > 1 and 0 < self.resources_per_worker.gpus < 1:
            raise ValueError(
                f"resources_per_worker.gpus: got {self.resources_per_worker.gpus:g}; expected 0 or whole GPUs, for "
                "workers that share a batch cannot share a GPU (NCCL refuses)"
            )
        return self


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
        return self

    def network(self, role: Role) -> NetworkSettings:
        """Return one role's network settings."""
        return self.teacher if role == Role.TEACHER else self.student

    @property
    def final_epochs(self) -> int:
        """Length of a final training."""
        return self.final.epochs or self.search.epochs

    def search_space(self, where: str = "settings") -> SearchSpace:
        """Return the search space, found by name or parsed.

        Raises:
            SearchSpaceError: it is unknown or wrong.
        """
        return (
            load_space(self.space) if isinstance(self.space, str) else parse_space(self.space, where=f"{where}: space")
        )


def load_settings(path: Place | str | None = None, overrides: Sequence[str] = ()) -> Settings:
    """Read a configuration file, apply `key=value` overrides, check everything.

    Relative paths are those of the current folder; they come back absolute, so that a run can go on from any folder.

    Args:
        path: a YAML file, or the name of one in `searchspaces/`; None: `quickstart`.
        overrides: dotted keys with YAML values, e.g. `search.epochs=30`; the last one wins.

    Raises:
        ConfigError: with every problem found; unknown names come with the nearest known one.
    """
    path = "quickstart" if path is None else path
    try:
        file = place(path)
        file = file if file.suffix or file.is_file() else find_searchspace(str(path))
    except SearchSpaceError as error:
        raise ConfigError(str(error).replace("space: unknown search space", "configuration: unknown file")) from None
    data = read_yaml(file, ConfigError)
    if not isinstance(data, dict):
        raise ConfigError(f"{file}: expected a mapping of sections, got {data!r}")
    for override in overrides:
        _apply_override(data, override)
    return _with_absolute_paths(parse_settings(data, where=file.name, name=file.stem))


def parse_settings(data: Mapping[str, Any], *, where: str, name: str = "inline") -> Settings:
    """Check plain data as settings; see `load_settings`."""
    if isinstance(data.get("space"), dict):
        data = {**data, "space": {"name": name, **data["space"]}}
    problems: list[str] = []
    settings = None
    try:
        # Through JSON: pydantic's strict mode then takes lists and paths as a file writes them, and still no "1".
        settings = Settings.model_validate_json(json.dumps(data, default=str))
    except ValidationError as error:
        problems += list(dict.fromkeys(_worded(problem, where) for problem in error.errors()))
    space_problems = _space_problems(data.get("space"), where)
    problems += space_problems
    if settings is not None and not space_problems:
        problems += _name_problems(settings, where)
    if problems or settings is None:
        raise ConfigError(*problems)
    return settings


def _with_absolute_paths(settings: Settings) -> Settings:
    data, teacher = settings.data, settings.teacher
    checkpoint = _absolute(teacher.checkpoint) if teacher.checkpoint is not None else None
    return settings.model_copy(
        update={
            "data": data.model_copy(update={"path": data.path and data.path.expanduser().absolute()}),
            "teacher": teacher.model_copy(update={"checkpoint": checkpoint}),
        }
    )


def _absolute(checkpoint: Place | tuple[Place, ...]) -> Place | tuple[Place, ...]:
    if isinstance(checkpoint, tuple):
        return tuple(where.expanduser().absolute() for where in checkpoint)
    return checkpoint.expanduser().absolute()


def settings_text(settings: Settings) -> str:
    """Return every setting, defaults included, as YAML."""
    return dump_yaml(json.loads(settings.model_dump_json()))


def _apply_override(data: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set: got {override!r}; expected key=value, as in search.epochs=30")
    parts = key.split(".")
    if parts[:3] == ["space", "scalars", "losses"] and len(parts) > 3:  # the one kind of key with a dot of its own
        parts[2:4] = [".".join(parts[2:4])]
    *parents, leaf = parts
    for parent in parents:
        if not isinstance(data.setdefault(parent, {}), dict):
            raise ConfigError(f"--set {key}: {parent!r} is not a section, got {data[parent]!r}")
        data = data[parent]
    data[leaf] = parse_yaml(text, where=f"--set {key}", error=ConfigError)


def _space_problems(space: object, where: str) -> Sequence[str]:
    try:
        if isinstance(space, str):
            load_space(space)
        elif isinstance(space, dict):
            parse_space(space, where="space")
    except SearchSpaceError as error:
        return [f"{where}: {problem}" for problem in error.problems]
    return ()


def _name_problems(settings: Settings, where: str) -> list[str]:
    """Check names that other rooms own the list of, where that needs no torch."""
    of_training = ["learning_rate", "weight_decay"]
    of_distillation = ["temperature", *(f"losses.{name}" for name in settings.distill.losses)]
    allowed = {Role.TEACHER: of_training, Role.STUDENT: of_training + of_distillation}
    return [
        unknown_name(f"{where}: space.scalars", f"scalar of the {scalar.role}", scalar.name, allowed[scalar.role])
        for scalar in settings.search_space(where).scalars
        if scalar.name not in allowed[scalar.role]
    ]


RULES = {
    "missing": "expected this key, too",
    "too_short": "expected at least one entry",
    "tuple_type": "expected a list, as [one, two]",
    "dict_type": "expected a section, as {key: value}",
    "model_type": "expected a section, as {key: value}",
    "bool_type": "expected true or false",
}
"""What pydantic words in the words of JSON or Python, by its names of problems; every shortest length is 1."""


def _worded(problem: Any, where: str) -> str:
    """Turn one pydantic error into the project's form."""
    if problem["type"] == "extra_forbidden":
        *parents, unknown = map(str, problem["loc"])
        section: type[BaseModel] = Settings
        for part in parents:
            section = KINDS.get(part) or _section_in(section.model_fields[part].annotation)
        path = ".".join(part for part in parents if part not in KINDS)
        return unknown_name(f"{where}: {path}".rstrip(": "), "key", unknown, section.model_fields)
    # pydantic names the tried alternatives of a union in the location: `slots.count.literal['auto']`
    alternative = re.compile(rf"literal\[.*\]|constrained-\w+|dict\[.*\]|str|int|{'|'.join(KINDS)}")
    key = ".".join(part for part in map(str, problem["loc"]) if not alternative.fullmatch(part))
    rule = problem["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    if not key:
        return f"{where}: {rule}"
    hint, rule = "", RULES.get(problem["type"], rule)
    if problem["type"].startswith("union_tag"):
        return unknown_name(f"{where}: {key}", "kind", problem["ctx"].get("tag"), KINDS)
    if problem["type"] == "literal_error":
        names = str(problem["ctx"]["expected"]).replace("'", "").replace(" or ", ", ").split(", ")
        hint = suggest(problem["input"], names)
    return f"{where}: {key}: got {problem['input']!r}; {rule[0].lower()}{rule[1:]}.{hint}"


def _section_in(annotation: Any) -> Any:
    """Return the section of `Section | None`, or what was given."""
    sections = (part for part in get_args(annotation) if isinstance(part, type) and issubclass(part, Section))
    return next(sections, annotation)
