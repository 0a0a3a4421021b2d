"""Errors a user can cause, and how they are worded.

Every message reads `<where>: <what is wrong>, got <value>; expected <rule>. <hint>`. All problems of one file are
reported together. Our own broken invariants are `assert`s, never these types.
"""

from collections.abc import Iterable

MOST_NAMES = 30
"""A message lists so many allowed names."""


class RolekdError(Exception):
    """The run failed; the command line ends with exit code 1."""

    exit_code = 1


class InputError(RolekdError):
    """A file, a setting or an argument is wrong; exit code 2, nothing was written.

    `problems` holds one line per problem.
    """

    exit_code = 2

    def __init__(self, *problems: str):
        self.problems = tuple(problems)
        super().__init__("\n".join(problems))

    def __reduce__(self):  # Ray carries errors between processes; the default would pass one joined line
        return type(self), self.problems


class ConfigError(InputError):
    """A run's settings."""


class SearchSpaceError(InputError):
    """A search space."""


class ScheduleError(InputError):
    """A schedule or a policy, ours or in a foreign format."""


class DataError(InputError):
    """A dataset."""


class CheckpointError(InputError):
    """A checkpoint that is missing, damaged, or of another network."""


class RunDirectoryError(InputError):
    """A run directory that exists, does not exist, or is in use."""


def suggest(name: object, allowed: Iterable[str]) -> str:
    """Return ` Did you mean 'x'?` for the nearest allowed name, or an empty string."""
    from difflib import get_close_matches  # 3 ms of an import that every part of the package makes

    names = list(allowed)
    near = get_close_matches(str(name), names, n=1, cutoff=0.6)
    near = near or [known for known in names if known.lower() == str(name).lower()]
    return f" Did you mean {str(near[0])!r}?" if near else ""


def unknown_name(where: str, kind: str, name: object, allowed: Iterable[str], *, meant: str | None = None) -> str:
    """Word the problem of a name that is not in a list; of a list longer than a message should be, the nearest.

    `meant` is suggested instead of the nearest one by spelling.
    """
    names = list(map(str, allowed))
    if len(names) <= MOST_NAMES:
        expected = f"one of {', '.join(names)}"
    else:
        from difflib import get_close_matches

        near = get_close_matches(str(name), names, n=8, cutoff=0.0)
        expected = f"one of {len(names)}, such as {', '.join(near)}"
    return f"{where}: unknown {kind} {name!r}; expected {expected}.{suggest(meant or name, names)}"


class WorkersLostError(Exception):
    """Processes of a worker group died or were replaced; no member's fault, the interval is repeated."""


class PopulationLostError(RolekdError):
    """A search without a member left; going on with it would change nothing."""


class StorageError(InputError):
    """Storage that cannot be written: full, read-only, gone. Nothing half-written is left."""


class TrainingError(RolekdError):
    """A training that cannot go on, such as one whose loss is not finite."""
