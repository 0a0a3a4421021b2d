"""A role's agents at one epoch, built from settings and what evolved."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from rolekd_ray.augment.agents import Agent
from rolekd_ray.augment.cutmix import Cutmix
from rolekd_ray.augment.mixing import Mixing
from rolekd_ray.augment.mixup import Mixup
from rolekd_ray.augment.policy_agent import PolicyAgent
from rolekd_ray.augment.static import STATIC_AGENTS, static_agent
from rolekd_ray.config import LearnedSettings, PickSettings, RoleAgents
from rolekd_ray.policy.policy import Policy
from rolekd_ray.policy.space import SearchSpace
from rolekd_ray.roles import Role

_MIXING: dict[str, Callable[..., Mixing]] = {"mixup": Mixup, "cutmix": Cutmix}


@dataclass(frozen=True, eq=False)
class Chain:
    """What makes a role's view, in this order: agents of bytes, the base augmentation, a learned one, mixing, picking.

    `learned` holds the settings of the member's learned agent, whose state is the learner's.
    """

    pixels: Sequence[Agent] = ()
    learned: LearnedSettings | None = None
    mixing: Mixing | None = None
    pick: PickSettings | None = None


def build_chain(
    agents: RoleAgents, policies: Sequence[tuple[float, Policy]], space: SearchSpace, fill: Tensor
) -> Chain:
    """Return a role's chain under weighted policies, all of which carry the epoch's evolved settings.

    Args:
        agents: the settings; evolved values of the policies win over them.
        policies: what the agent `policy` draws from.
        space: theirs.
        fill: colour of pixels that an op uncovers, (C,) uint8.
    """
    now = policies[0][1]
    agents = agents.evolved(now.scalars, now.choices)
    pixels: list[Agent] = []
    mixing: Mixing | None = None
    for name in agents.chain:
        if name == "policy":
            pixels.append(PolicyAgent(policies, space, fill))
        elif name in STATIC_AGENTS:
            settings = getattr(agents, name, None)
            pixels.append(static_agent(name, settings.model_dump() if settings is not None else {}, fill))
        elif name in _MIXING:
            mixing = _MIXING[name](**getattr(agents, name).model_dump())
    return Chain(
        pixels,
        agents.learned if "learned" in agents.chain else None,
        mixing,
        agents.pick if "pick" in agents.chain else None,
    )


def may_hold(agent: str, agents: RoleAgents, space: SearchSpace, role: Role) -> bool:
    """Return whether a role's chain holds an agent, now or after some mutation."""
    choices = [choice for choice in space.choices_of(role) if choice.name == "agents"]
    chains = [agents.chain] if not choices else [tuple(value.split("+")) for value in choices[0].values]
    return any(agent in chain for chain in chains)
