"""What formats that hold ops alone cannot say of a schedule: chains of agents other than the policy."""

from rolekd_ray.policy.agents import is_agent_setting
from rolekd_ray.policy.evolvable import CHAIN
from rolekd_ray.policy.schedule import Schedule
from rolekd_ray.roles import Role


def chain_problems(schedule: Schedule, role: Role, where: str) -> list[str]:
    """Return a problem if a role's chain is another than `policy` at some epoch, or is not known but has settings."""
    told: dict[str, list[str]] = {}
    unknown: set[str] = set()
    start = 0
    for segment in schedule.roles.get(role, ()):
        policy, end = segment.policy, start + segment.epochs
        chain = policy.choices.get(CHAIN)
        if chain is None:
            unknown |= {name for name in (*policy.scalars, *policy.choices) if is_agent_setting(name)}
        elif chain != "policy":
            told.setdefault(chain, []).append(f"{start + 1}–{end}" if end > start + 1 else f"{end}")
        start = end
    rule = "expected policy, for the format holds ops only"
    chains = "; ".join(f"{chain} in epochs {', '.join(epochs)}" for chain, epochs in told.items())
    problems = [f"{where}: agents: got {chains}; {rule}"] if chains else []
    if unknown:
        problems.append(f"{where}: agents: got {', '.join(sorted(unknown))}, settings of a chain not told; {rule}")
    return problems
