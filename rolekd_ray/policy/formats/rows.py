"""Policy logs of Ray's population-based training: one exploit per line, and the lineage they tell.

A row is `[target_tag, source_tag, target_iter, source_iter, source_config_before, new_config]`: the target became a
mutated copy of the source. `target_iter` lags by one in Ray's logs and is not used.
"""

import ast
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Generic, TypeVar

from rolekd_ray.errors import ScheduleError

Config = TypeVar("Config")
Decoded = TypeVar("Decoded")

MOST_PROBLEMS = 20  # one wrong format makes a problem of every number in the file
FIELDS = "target, source, target_iter, source_iter, old policy, new policy"


@dataclass(frozen=True, slots=True)
class Row(Generic[Config]):
    """One exploit: after `epoch` epochs of the source, its `before` became `after` in the target."""

    line: int
    target: str | int
    source: str | int
    epoch: int
    before: Config
    after: Config

    def decoded(self, decode: Callable[[Config, str], Decoded]) -> "Row[Decoded]":
        """Return the row with both configs read by `decode(config, place)`."""
        before, after = decode(self.before, "old policy"), decode(self.after, "new policy")
        return Row(self.line, self.target, self.source, self.epoch, before, after)


def read_rows(text: str, *, python: bool, where: str, problems: list[str]) -> list[Row[Any]]:
    """Read a log's rows; adds to `problems` what is no row and leaves it out.

    Args:
        text: the file's content; blank lines are skipped.
        python: rows may be Python literals as well as JSON; nothing is ever evaluated.
        where: the file, for messages.
        problems: grows by one line per problem.
    """
    rows = []
    for line, content in enumerate(text.split("\n"), start=1):
        if content.strip():
            row = _read_row(content.strip(), line, python, f"{where}: line {line}", problems)
            rows += [] if row is None else [row]
    if not rows and not problems:
        problems.append(f"{where}: got an empty file; expected one row [{FIELDS}] per line")
    return rows


def _read_row(content: str, line: int, python: bool, where: str, problems: list[str]) -> Row[Any] | None:
    syntax = "a JSON list or Python literal" if python else "a JSON list"
    try:
        fields = _parse(content, python)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        problems.append(f"{where}: is no row, got {shortened(content)}; expected {syntax} [{FIELDS}]")
        return None
    if not isinstance(fields, list | tuple) or len(fields) != 6:
        got = f"{len(fields)} fields" if isinstance(fields, list | tuple) else shortened(fields)
        problems.append(f"{where}: is no row, got {got}; expected 6 fields [{FIELDS}]")
        return None
    target, source, _, epoch, before, after = fields
    found = len(problems)
    for name, tag in (("target", target), ("source", source)):
        if not isinstance(tag, str | int):
            problems.append(f"{where}: {name}: got {shortened(tag)}; expected the tag of a trial")
    if type(epoch) is not int or epoch < 0:
        problems.append(f"{where}: source_iter: got {shortened(epoch)}; expected a whole number of at least 0")
    return None if len(problems) > found else Row(line, target, source, epoch, before, after)


def _parse(content: str, python: bool) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        if not python:
            raise
        return ast.literal_eval(content)


def lineage(rows: Sequence[Row[Config]], epochs: int, where: str) -> list[tuple[int, Config]]:
    """Return `(epochs, config)` in order, from the first policy of the oldest ancestor to the last row's.

    A trial's log may open with rows that a later exploit made void: everything up to the last place where a row's
    target is not the next row's source is dropped. Segments without an epoch are dropped too.

    Args:
        rows: at least one.
        epochs: length of the whole schedule; the log does not hold it.
        where: the file, for messages.

    Raises:
        ScheduleError: the rows are not one trial's, epochs run backwards, or `epochs` ends before the last row.

    Source: PBA's code (`parse_log`); Ray's `PopulationBasedTrainingReplay` applies the same rule from the end.
    """
    breaks = [i for i, (row, following) in enumerate(pairwise(rows)) if row.target != following.source]
    chain = rows[breaks[-1] + 1 :] if breaks else rows
    # Ray appends to the target's file, having copied the source's over it if there is one: a break has one target.
    problems = [
        f"{where}: line {rows[i + 1].line}: neither goes on from line {rows[i].line} nor replaces it, got "
        f"{rows[i].source!r} -> {rows[i].target!r}, then {rows[i + 1].source!r} -> {rows[i + 1].target!r}; "
        "expected the ancestry of one trial (pbt_policy_<trial>.txt, not pbt_global.txt)"
        for i in breaks
        if rows[i].target != rows[i + 1].target
    ]
    problems += [
        f"{where}: line {row.line}: source_iter: got {row.epoch}; "
        f"expected at least {previous.epoch}, as in line {previous.line} of the same lineage"
        for previous, row in pairwise(chain)
        if row.epoch < previous.epoch
    ]
    needed = max(1, *(row.epoch for row in chain))
    if epochs < needed:
        problems.append(f"{where}: epochs: got {epochs}; expected at least {needed}, where the last policy starts")
    raise_first(problems, where)
    ends = [*(row.epoch for row in chain), epochs]
    configs = [chain[0].before, *(row.after for row in chain)]
    return [(end - start, config) for start, end, config in zip([0, *ends], ends, configs) if end > start]


def chain_rows(segments: Sequence[tuple[int, Config]]) -> list[list[Any]]:
    """Return the rows that `lineage` reads back to the same segments of `(epochs, config)`.

    A format of changes needs at least one: a single segment is written as a change to itself after its last epoch,
    which no replay reaches.
    """
    epochs, configs = zip(*segments)
    ends = [sum(epochs[: i + 1]) for i in range(len(epochs))]
    if len(configs) == 1:
        return [["1", "0", ends[0], ends[0], configs[0], configs[0]]]
    return [
        [str(i + 1), str(i), end, end, before, after]
        for i, (end, before, after) in enumerate(zip(ends, configs, configs[1:]))
    ]


def raise_first(problems: Iterable[str], where: str) -> None:
    """Raise the first problems, if there are any.

    Raises:
        ScheduleError: with at most `MOST_PROBLEMS` of them and how many more there are.
    """
    listed = list(problems)
    more = len(listed) - MOST_PROBLEMS
    if listed:
        raise ScheduleError(*listed[:MOST_PROBLEMS], *([f"{where}: and {more} more problems"] if more > 0 else []))


def shortened(value: object) -> str:
    """Return a value as text for a message, at most 60 characters and on one line."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:45]}… ({len(text)} characters)"
