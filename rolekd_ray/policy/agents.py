"""Chains of agents as names: which there are, and in which order they may stand. Knows nothing of images.

A chain is written as a list or as text, `policy+cutmix+pick`; the text is what policies, files and tables hold.
"""

from collections.abc import Sequence
from itertools import pairwise

from rolekd_ray.errors import unknown_name

PIXEL_AGENTS = ("policy", "randaugment", "trivial_augment_wide", "autoaugment", "augmix", "cutout")
MIXING_AGENTS = ("mixup", "cutmix")
AGENT_NAMES = ("none", *PIXEL_AGENTS, "learned", *MIXING_AGENTS, "pick")
"""Also the first parts of the names of agents' settings, as in `cutmix.alpha`."""

# Place in a chain: uint8 -> uint8, the learned agent, float -> float of two images, the choice among candidates
_PLACES = {"none": 0, "learned": 1, "pick": 3} | dict.fromkeys(PIXEL_AGENTS, 0) | dict.fromkeys(MIXING_AGENTS, 2)
_RULES = ("pixel agents before it", "the learned agent after it", "mixing after it", "pick last")


def parse_chain(value: str | Sequence[str], where: str, problems: list[str]) -> tuple[str, ...]:
    """Read a chain: pixel agents, then at most one of `learned`, of mixup and cutmix, and of `pick`, in this order.

    No agent stands twice: its settings and its draws go by its name. `none` stands alone.

    Args:
        value: a list of names, or names with + between.
        where: key of the chain, for messages.
        problems: grows by one line per problem; the result is then empty.
    """
    names = value.split("+") if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        problems.append(f"{where}: got {value!r}; expected agents, as policy+cutmix or [policy, cutmix]")
        return ()
    names = tuple(name.strip() for name in names)
    if not any(names):
        problems.append(f"{where}: got {value!r}; expected at least one agent, or none")
        return ()
    found = [unknown_name(where, "agent", name, AGENT_NAMES) for name in names if name not in _PLACES]
    found = found or _repeated(names, where) or _misplaced(names, where)
    problems += found
    return () if found else names


def chain_text(chain: Sequence[str]) -> str:
    """Return a chain as text, `policy+cutmix`."""
    return "+".join(chain)


def is_agent_setting(name: str) -> bool:
    """Return whether an evolved number or choice is a setting of an agent, as `cutmix.alpha` is."""
    agent, dot, _ = name.partition(".")
    return bool(dot) and agent in AGENT_NAMES


def _repeated(names: tuple[str, ...], where: str) -> list[str]:
    found = [
        f"{where}: got {name!r} {names.count(name)} times; expected it once"
        for name in dict.fromkeys(names)
        if names.count(name) > 1
    ]
    mixing = [name for name in dict.fromkeys(names) if name in MIXING_AGENTS]
    if len(mixing) > 1:
        found.append(f"{where}: got {' and '.join(map(repr, mixing))}; expected one mixing agent at most")
    if "none" in names and len(names) > 1:
        found.append(f"{where}: got 'none' in {chain_text(names)}; expected none alone")
    return found


def _misplaced(names: tuple[str, ...], where: str) -> list[str]:
    """Word the first pair of neighbours in the wrong order."""
    for name, following in pairwise(names):
        if _PLACES[name] > _PLACES[following]:
            needs = ", which needs uint8 images" if following in PIXEL_AGENTS else ""
            right = chain_text(sorted(names, key=_PLACES.__getitem__))
            return [f"{where}: got {name!r} before {following!r}{needs}; expected {_RULES[_PLACES[name]]}: {right}"]
    return []
