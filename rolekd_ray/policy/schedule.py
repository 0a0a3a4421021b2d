"""A schedule: policies as a function of epoch, per role. What a search is for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

from rolekd_ray.errors import ScheduleError, SearchSpaceError, unknown_name
from rolekd_ray.policy.evolved import evolved_from_dict, evolved_to_dict
from rolekd_ray.policy.policy import Policy, policy_from_list, policy_to_list
from rolekd_ray.policy.space import SearchSpace, load_space, parse_space
from rolekd_ray.roles import Role

if TYPE_CHECKING:
    from rolekd_ray.storage import ObjectPath

FORMAT = "rolekd.schedule/1"


@dataclass(frozen=True, slots=True)
class Segment:
    """One policy and for how many epochs it holds."""

    epochs: int
    policy: Policy


@dataclass(frozen=True, slots=True)
class Schedule:
    """Segments per role, all roles equally long; a role that is absent has no policy.

    `flattened`: every image draws the policy of a random epoch, so the order is lost and the mix stays (PBA's
    ablation of the order). Scalars and choices still follow the epoch.
    """

    space: SearchSpace
    roles: Mapping[Role, tuple[Segment, ...]]
    flattened: bool = False

    def __post_init__(self):
        lengths = {sum(segment.epochs for segment in segments) for segments in self.roles.values()}
        assert len(lengths) == 1 and lengths.pop() > 0, "roles of one schedule have one length"

    @property
    def epochs(self) -> int:
        """Length in epochs."""
        return sum(segment.epochs for segment in next(iter(self.roles.values())))

    def policy_at(self, role: Role, epoch: int) -> Policy:
        """Return the policy in force at an epoch (from 0); past the end the last one holds."""
        passed = 0
        policy = Policy()
        for segment in self.roles.get(role, ()):
            policy = segment.policy
            passed += segment.epochs
            if epoch < passed:
                break
        return policy

    def policies_at(self, role: Role, epoch: int) -> list[tuple[float, Policy]]:
        """Return the policies an image may draw at an epoch, with their chances: one, or all if `flattened`.

        All of them carry the epoch's scalars and choices.
        """
        now = self.policy_at(role, epoch)
        if not self.flattened or role not in self.roles:
            return [(1.0, now)]
        return [
            (segment.epochs / self.epochs, replace(now, settings=segment.policy.settings))
            for segment in self.roles[role]
        ]

    def stretched(self, epochs: int) -> "Schedule":
        """Return the schedule over another number of epochs (at least 1), each policy keeping its share.

        Boundaries are scaled and rounded, so no share drifts; a segment that would have no epoch is dropped (in a
        flattened schedule too, where its share goes to its neighbours). PBA's code truncates every segment instead and
        lengthens the last.
        """
        return replace(self, roles={role: _stretch(segments, epochs) for role, segments in self.roles.items()})

    def flatten(self) -> "Schedule":
        """Return the variant whose images draw a random epoch's policy."""
        return replace(self, flattened=True)

    def last(self) -> "Schedule":
        """Return the variant that holds every role's last policy from the first epoch on."""
        return replace(self, roles={r: (Segment(self.epochs, s[-1].policy),) for r, s in self.roles.items()})

    def only(self, role: Role) -> "Schedule":
        """Return the schedule of one role alone."""
        return replace(self, roles={role: self.roles[role]})

    def firing(self) -> "Schedule":
        """Return the schedule without settings that cannot fire: same views, and equal to what a file gives back."""
        return replace(
            self,
            roles={
                role: merged(Segment(s.epochs, replace(s.policy, settings=s.policy.firing())) for s in segments)
                for role, segments in self.roles.items()
            },
        )


def merged(segments) -> tuple[Segment, ...]:
    """Join neighbours with equal policies."""
    joined: list[Segment] = []
    for segment in segments:
        if joined and joined[-1].policy == segment.policy:
            joined[-1] = Segment(joined[-1].epochs + segment.epochs, segment.policy)
        else:
            joined.append(segment)
    return tuple(joined)


def join(schedules: Sequence[Schedule]) -> Schedule:
    """Return one schedule that holds the roles of several, all stretched to the longest.

    Raises:
        ScheduleError: two of them hold one role, have different search spaces, or only one is flattened.
    """
    first, epochs = schedules[0], max(schedule.epochs for schedule in schedules)
    problems, roles = [], dict[Role, tuple[Segment, ...]]()
    for schedule in schedules:
        problems += [
            f"join: role {role} stands twice; expected it in one schedule" for role in schedule.roles.keys() & roles
        ]
        if schedule.space != first.space:
            problems.append(f"join: space: got {first.space.name!r} and {schedule.space.name!r}; expected one space")
        if schedule.flattened != first.flattened:
            problems.append("join: flattened: got true and false; expected one value")
        roles |= schedule.stretched(epochs).roles
    if problems:
        raise ScheduleError(*problems)
    return Schedule(first.space, roles, first.flattened)


def _stretch(segments: tuple[Segment, ...], epochs: int) -> tuple[Segment, ...]:
    total = sum(segment.epochs for segment in segments)
    ends, passed = [0], 0
    for segment in segments:
        passed += segment.epochs
        ends.append((2 * passed * epochs + total) // (2 * total))  # rounds half up, in whole numbers
    return tuple(
        Segment(end - start, segment.policy) for segment, start, end in zip(segments, ends, ends[1:]) if end > start
    )


def schedule_to_dict(schedule: Schedule) -> dict[str, Any]:
    """Return the file form; settings that cannot fire are left out, they change no view."""
    try:
        named = load_space(schedule.space.name) == schedule.space
    except SearchSpaceError:
        named = False
    data: dict[str, Any] = {"format": FORMAT, "space": schedule.space.name if named else schedule.space.to_dict()}
    if schedule.flattened:
        data["flattened"] = True
    data["roles"] = {
        str(role): {
            "segments": [
                {"epochs": s.epochs, "policy": policy_to_list(s.policy, schedule.space, firing_only=True)}
                | evolved_to_dict(s.policy)
                for s in segments
            ]
        }
        for role, segments in schedule.firing().roles.items()
    }
    return data


def schedule_from_dict(data: object, *, where: str) -> Schedule:
    """Read the file form.

    Raises:
        ScheduleError: with every problem of the file.
    """
    if not isinstance(data, Mapping) or data.get("format") != FORMAT:
        got = data.get("format") if isinstance(data, Mapping) else data
        raise ScheduleError(f"{where}: format: got {got!r}; expected {FORMAT!r}")
    allowed = ("format", "space", "flattened", "roles")
    problems = [unknown_name(where, "key", key, allowed) for key in data if key not in allowed]
    given = data.get("space")
    space = load_space(given) if isinstance(given, str) else parse_space(given, where=f"{where}: space")
    roles: dict[Role, tuple[Segment, ...]] = {}
    given_roles = data.get("roles")
    if not isinstance(given_roles, Mapping) or not given_roles:
        raise ScheduleError(*problems, f"{where}: roles: got {given_roles!r}; expected teacher, student or both")
    for name, row in given_roles.items():
        if name not in list(Role):
            problems.append(unknown_name(f"{where}: roles", "role", name, Role))
            continue
        if isinstance(row, Mapping):
            problems += [unknown_name(f"{where}: roles.{name}", "key", k, ["segments"]) for k in row if k != "segments"]
        rows = row.get("segments") if isinstance(row, Mapping) else None
        if not isinstance(rows, list) or not rows:
            problems.append(f"{where}: roles.{name}.segments: got {rows!r}; expected a list of segments")
            continue
        segments = [segment_from_dict(s, space, Role(name), f"{where}: roles.{name}.segments[{i}]", problems)
                    for i, s in enumerate(rows)]  # fmt: skip
        roles[Role(name)] = tuple(segments)
    lengths = {str(role): sum(s.epochs for s in segments) for role, segments in roles.items()}
    if len(set(lengths.values())) > 1 and not problems:  # a segment that cannot be read has no length
        problems.append(f"{where}: roles: lengths differ, got {lengths} epochs; expected one length")
    flattened = data.get("flattened", False)
    if not isinstance(flattened, bool):
        problems.append(f"{where}: flattened: got {flattened!r}; expected true or false")
    if problems:
        raise ScheduleError(*problems)
    return Schedule(space, roles, flattened)


def segment_from_dict(row: object, space: SearchSpace, role: Role, where: str, problems: list[str]) -> Segment:
    """Read a segment `{epochs, policy, <scalars>, agents}`; adds to `problems` what does not fit the space."""
    if not isinstance(row, Mapping):
        problems.append(f"{where}: got {row!r}; expected {{epochs, policy}}")
        return Segment(1, Policy())
    epochs = row.get("epochs")
    if type(epochs) is not int or epochs < 1:
        problems.append(f"{where}.epochs: got {epochs!r}; expected a whole number of at least 1")
        epochs = 1
    scalars, choices = evolved_from_dict(row, space, role, ("epochs", "policy"), where, problems)
    settings = policy_from_list(row.get("policy"), space, f"{where}.policy", problems)
    return Segment(epochs, Policy(settings, scalars, choices))


def load_schedule(path: "str | PathLike[str] | ObjectPath") -> Schedule:
    """Read a schedule file.

    Raises:
        ScheduleError: it is missing, not YAML, or does not fit its space.
        SearchSpaceError: its space is unknown or wrong.
    """
    from rolekd_ray.files import read_yaml
    from rolekd_ray.storage import ObjectPath, place

    where = path if isinstance(path, ObjectPath) else place(fspath(path))
    return schedule_from_dict(read_yaml(where, ScheduleError), where=str(path))


def schedule_text(schedule: Schedule) -> str:
    """Return a schedule as YAML; `load_schedule` reads it back to `schedule.firing()`."""
    from rolekd_ray.files import dump_yaml

    return dump_yaml(schedule_to_dict(schedule))
