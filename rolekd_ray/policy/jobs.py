"""What the population rule hands out and decides: intervals to train, and who copied whom. Plain data."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rolekd_ray.policy.evolved import evolved_from_dict, evolved_to_dict
from rolekd_ray.policy.policy import Policy, policy_from_list, policy_to_list
from rolekd_ray.policy.space import SearchSpace
from rolekd_ray.roles import Role

Policies = Mapping[Role, Policy]


@dataclass(frozen=True, slots=True)
class Job:
    """One interval of one member: train from `start_epoch` to `end_epoch` (exclusive) under these policies.

    `donor` is the member whose state of the generation before it starts from: itself, or the member it copies; None
    in generation 0. `total_epochs` is the length that learning-rate schedules refer to.
    """

    member: int
    generation: int
    donor: int | None
    start_epoch: int
    end_epoch: int
    total_epochs: int
    policies: Policies

    @property
    def state(self) -> str:
        """Name of the state this job ends in; also the member's lineage id at that generation."""
        return state_name(self.member, self.generation)

    @property
    def source(self) -> str | None:
        """Name of the state this job starts from; None for fresh networks."""
        return None if self.donor is None else state_name(self.donor, self.generation - 1)

    def to_dict(self, space: SearchSpace) -> dict[str, Any]:
        """Return plain data; equal jobs give equal data."""
        data = {key: getattr(self, key) for key in self.__dataclass_fields__}
        return data | {"policies": policies_to_dict(self.policies, space)}


@dataclass(frozen=True, slots=True)
class Perturbation:
    """One exploit and explore, decided after `generation`: the recipient copies the donor, then mutates.

    `recipient_score` None: the recipient's interval failed, `reason` says why; else it was among the worst.
    """

    generation: int
    recipient: int
    donor: int
    recipient_score: float | None
    donor_score: float
    before: Policies
    after: Policies
    reason: str | None = None

    def to_dict(self, space: SearchSpace) -> dict[str, Any]:
        """Return the lineage file's record."""
        data = {key: getattr(self, key) for key in self.__dataclass_fields__}
        return data | {
            "before": policies_to_dict(self.before, space),
            "after": policies_to_dict(self.after, space),
        }


def state_name(member: int, generation: int) -> str:
    """Return the folder name of a member's state."""
    return f"{member:03d}-{generation:04d}"


def policies_to_dict(policies: Policies, space: SearchSpace) -> dict[str, Any]:
    """Return policies of roles as plain data, all slots included."""
    return {
        str(role): {"policy": policy_to_list(policy, space, firing_only=False)} | evolved_to_dict(policy)
        for role, policy in policies.items()
    }


def policies_from_dict(data: Mapping[str, Any], space: SearchSpace) -> dict[Role, Policy]:
    """Read `policies_to_dict`'s form."""
    problems: list[str] = []
    policies = {
        Role(role): Policy(
            policy_from_list(row["policy"], space, role, problems),
            *evolved_from_dict(row, space, Role(role), ("policy",), role, problems),
        )
        for role, row in data.items()
    }
    assert not problems, problems
    return policies
