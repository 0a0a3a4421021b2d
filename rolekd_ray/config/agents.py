"""What makes each role's view: its chain of agents, and their settings."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, PlainSerializer, PlainValidator, ValidationError, model_validator

from rolekd_ray.config.base import Count, Fraction, NotNegative, Positive, Section
from rolekd_ray.policy.agents import chain_text, parse_chain

AugmentorPart = Literal["affine", "colour", "vae"]
UpTo100 = Annotated[int, Field(ge=1, le=100)]


class RandAugmentSettings(Section):
    """Some random ops, all at one magnitude."""

    ops: UpTo100 = 2
    magnitude: Annotated[int, Field(ge=0, le=30)] = 9
    """Of 31 bins, as torchvision's."""


class AutoAugmentSettings(Section):
    """Policies that were searched for one dataset."""

    dataset: Literal["cifar10", "svhn", "imagenet"] = "cifar10"


class AugMixSettings(Section):
    """The image mixed with chains of ops."""

    severity: Annotated[int, Field(ge=1, le=10)] = 3
    width: UpTo100 = 3
    depth: Annotated[int, Field(ge=-1, le=100)] = -1
    """Ops in a chain; below 1: one to three, drawn."""
    alpha: Annotated[float, Field(ge=0.01, le=100)] = 1.0


class CutoutSettings(Section):
    """A square of mean colour."""

    pixels: Annotated[int, Field(ge=1, le=1 << 15)] = 16


class MixingSettings(Section):
    """A second image mixed in."""

    alpha: Positive = 1.0
    """The share of the own image is drawn from Beta(alpha, alpha)."""
    probability: Fraction = 1.0
    """That an image is mixed at all."""
    legacy: bool = False
    """As the published code: mixed within the batch, with one share and one box for all of it."""


class PickSettings(Section):
    """Of several candidates per image, the hardest are learned from."""

    runs: Count = 2
    """Candidates per image, each with draws of its own in all agents and the base augmentation; the code of arXiv
    2012.02909 mixes one view so many times."""
    keep: Annotated[int, Field(ge=2)] | None = None
    """How many of all candidates of a batch; None: `fraction` says."""
    fraction: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Of all candidates of a batch; never fewer than two, for BatchNorm cannot use one image."""
    criterion: Literal["teacher_entropy", "student_entropy", "divergence", "dissimilarity"] = "teacher_entropy"
    scope: Literal["pool", "anchor"] = "pool"
    """The hardest of the whole batch's candidates, or of each image's own."""

    @model_validator(mode="after")
    def _same_for_each(self) -> "PickSettings":
        if self.scope == "anchor" and self.keep is not None:
            raise ValueError(f"keep: got {self.keep}; expected none with scope anchor, whose fraction is each image's")
        return self


class LearnedSettings(Section):
    """HARD-style: an augmentor that learns to change the student's answer and to keep the teacher's.

    Objective, thresholds and defaults are this project's proposal, not the paper's (arXiv 2305.14890), whose text was
    not at hand.
    """

    parts: Annotated[tuple[AugmentorPart, ...], Field(min_length=1)] = ("affine", "colour")
    learning_rate: Positive = 5e-3
    lower: NotNegative = 0.05
    """The student's loss below which the augmentor's turn comes."""
    upper: Positive = 1.5
    """The student's loss above which its turn ends."""
    max_steps: Count = 60
    """Of a turn."""
    student_weight: NotNegative = 1.0
    teacher_weight: NotNegative = 1.0

    @model_validator(mode="after")
    def _consistent(self) -> "LearnedSettings":
        if len(set(self.parts)) < len(self.parts):
            raise ValueError(f"parts: got {list(self.parts)}; expected each once")
        if self.lower >= self.upper:
            raise ValueError(f"lower: got {self.lower:g}; expected one below upper, {self.upper:g}")
        return self


def _read_chain(value: object) -> tuple[str, ...]:
    problems: list[str] = []
    chain = parse_chain(value, "chain", problems)  # type: ignore[arg-type]
    if problems:
        raise ValueError("\n".join(problem.removeprefix("chain: ") for problem in problems))
    return chain


Chain = Annotated[tuple[str, ...], PlainValidator(_read_chain), PlainSerializer(chain_text, return_type=str)]


class RoleAgents(Section):
    """One role's chain, and the settings of the agents in it; those of others change nothing."""

    chain: Chain = ("policy",)
    """Agents in order, as `policy+cutmix` or `[policy, cutmix]`."""
    randaugment: RandAugmentSettings = RandAugmentSettings()
    autoaugment: AutoAugmentSettings = AutoAugmentSettings()
    augmix: AugMixSettings = AugMixSettings()
    cutout: CutoutSettings = CutoutSettings()
    learned: LearnedSettings = LearnedSettings()
    mixup: MixingSettings = MixingSettings()
    cutmix: MixingSettings = MixingSettings()
    pick: PickSettings = PickSettings()

    def evolved(self, scalars: Mapping[str, float], choices: Mapping[str, str]) -> "RoleAgents":
        """Return the settings with evolved values put in: scalars such as `cutmix.alpha`, choices such as `agents`.

        Whole numbers are rounded; thresholds that crossed are swapped, and kept apart. Names of other things are left
        alone.
        """
        plain: dict[str, Any] = {}
        values: dict[str, float | str] = {**scalars, **choices}
        for name, value in values.items():
            agent, dot, setting = name.partition(".")
            if name == "agents":
                plain["chain"] = value
            elif dot and agent in RoleAgents.model_fields and agent != "chain":
                plain.setdefault(agent, {})[setting] = _of_kind(_section(agent), setting, value)
        if not plain:
            return self
        merged = self.model_dump()
        for key, value in plain.items():
            merged[key] = value if key == "chain" else merged[key] | value
        learned = merged["learned"]
        if plain.get("learned", {}).keys() & {"lower", "upper"}:
            low, high = sorted((learned["lower"], learned["upper"]))
            learned["lower"], learned["upper"] = low, max(high, 1.1 * low + 1e-6)
        return RoleAgents.model_validate(merged)


class AgentsSettings(Section):
    """Which agents make each role's view."""

    teacher: RoleAgents = RoleAgents()
    student: RoleAgents = RoleAgents()


class BranchSettings(Section):
    """A step with two views: x, the base augmentation's, and x', the agents'.

    ce·[CE(x) + mixed_labels·CE(x')] + kd·[clean·KD(x) + augmented·KD(x')], ce and kd of `distill.losses`.
    """

    clean: NotNegative = 1.0
    augmented: NotNegative = 1.0
    mixed_labels: NotNegative = 0.0
    """0: x' is labelled by the teacher alone."""

    @model_validator(mode="after")
    def _some_weight(self) -> "BranchSettings":
        if not self.clean + self.augmented:
            raise ValueError("clean: got 0, and 0 for augmented; expected one above 0")
        return self


def evolvable_problem(name: str, values: tuple[float | str, ...]) -> str | None:
    """Return what is wrong with a setting of an agent as an evolvable one that may take these values; None: nothing.

    Args:
        name: `<agent>.<setting>`, of an agent that has settings.
        values: the ends of its range, or its choices.
    """
    agent, _, setting = name.partition(".")
    section = _section(agent)
    expected = "; expected true or false" if _kind(section, setting) is bool else None
    for value in values:
        try:
            section.model_validate({setting: _of_kind(section, setting, value)})
        except ValidationError as error:
            if any(problem["loc"][:1] == (setting,) for problem in error.errors()):
                rule = error.errors()[0]["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
                return f"got {value!r}{expected or f'; {rule[0].lower()}{rule[1:]}'}"
    return None


def evolvable_names() -> dict[str, bool]:
    """Return all settings of agents, as `<agent>.<setting>`, and whether they are numbers (else choices)."""
    return {
        f"{agent}.{name}": _kind(_section(agent), name) in (int, float)
        for agent in RoleAgents.model_fields
        if agent != "chain"
        for name in _section(agent).model_fields
        if name != "parts"
    }


def _section(agent: str) -> type[BaseModel]:
    return type(RoleAgents.model_fields[agent].default)


def _kind(section: type[BaseModel], setting: str) -> type:
    default = section.model_fields[setting].default
    return int if default is None else type(default)


def _of_kind(section: type[BaseModel], setting: str, value: float | str) -> Any:
    """Turn an evolved number or text into the setting's type."""
    kind = _kind(section, setting)
    if kind is bool:
        return {"true": True, "false": False}.get(str(value).lower(), value)
    return round(value) if kind is int and not isinstance(value, str) else value
