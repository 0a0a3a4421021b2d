"""What is checked of the roles' agents before anything is written or started."""

from collections.abc import Iterator

from rolekd_ray.config import RoleAgents, Settings
from rolekd_ray.config.agents import evolvable_names, evolvable_problem
from rolekd_ray.distill.registry import known_methods
from rolekd_ray.errors import unknown_name
from rolekd_ray.policy.agents import parse_chain
from rolekd_ray.policy.space import SearchSpace
from rolekd_ray.roles import Role
from rolekd_ray.training.batch import decides

MIXING = ("mixup", "cutmix")


def agent_problems(settings: Settings) -> list[str]:
    """Return what is wrong with the agents' settings, those that evolve, and what the losses make of their views."""
    space = settings.search_space()
    problems = [found for role in Role for found in _evolving_problems(settings, role, space)]
    if problems:
        return problems  # chains that cannot be read cannot be judged
    for role in Role:
        for chain in chains_of(getattr(settings.agents, role), role, space):
            problems += [f"agents.{role}: {found}" for found in _chain_problems(settings, role, chain)]
    problems += _branch_problems(settings)
    return list(dict.fromkeys(problems))


def blank_problems(settings: Settings, image_size: tuple[int, int]) -> list[str]:
    """Return which settings make every training view one colour: a cutout that covers the image wherever it lies.

    Args:
        settings: of the run.
        image_size: height and width of its images, in pixels.
    """
    given = {"base_augmentation.cutout_pixels": settings.base_augmentation.cutout_pixels}
    for role in Role:
        agents, space = getattr(settings.agents, role), settings.search_space()
        fixed = all(scalar.name != "cutout.pixels" for scalar in space.scalars_of(role))
        if fixed and any("cutout" in chain for chain in chains_of(agents, role, space)):
            given[f"agents.{role}.cutout.pixels"] = agents.cutout.pixels
    height, width = image_size
    least = 2 * max(height, width)  # half of it lies before its centre, half from there on
    return [
        f"{key}: got {pixels}, which covers all of every image of {height}x{width} pixels; expected less than {least}"
        for key, pixels in given.items()
        if pixels >= least
    ]


def chains_of(agents: RoleAgents, role: Role, space: SearchSpace) -> list[tuple[str, ...]]:
    """Return every chain that a role may have: the settings', or those of a choice that evolves."""
    choice = next((choice for choice in space.choices_of(role) if choice.name == "agents"), None)
    if choice is None:
        return [agents.chain]
    return [parse_chain(value, "", []) for value in choice.values]


def _evolving_problems(settings: Settings, role: Role, space: SearchSpace) -> Iterator[str]:
    """Yield problems of scalars and choices that are settings of agents."""
    known = evolvable_names()
    agents = getattr(settings.agents, role)
    for choice in space.choices_of(role):
        where = f"space.choices.{choice.name}"
        if choice.name == "agents":
            problems: list[str] = []
            for value in choice.values:
                parse_chain(value, where, problems)
            yield from problems
        elif choice.name not in known or known[choice.name]:
            yield unknown_name(
                where, "choice", choice.name, ["agents", *(n for n, number in known.items() if not number)]
            )
        elif problem := evolvable_problem(choice.name, choice.values):
            yield f"{where}: {problem}"
    chains = chains_of(agents, role, space)
    for scalar in space.scalars_of(role):
        if known.get(scalar.name):
            problem = evolvable_problem(scalar.name, (scalar.low, scalar.high))
            if problem is not None:
                yield f"space.scalars.{scalar.name}.range: {problem}"
    for name in [s.name for s in space.scalars_of(role)] + [c.name for c in space.choices_of(role)]:
        agent = name.partition(".")[0]
        if name in known and not any(agent in chain for chain in chains):
            texts = ", ".join("+".join(chain) for chain in chains)
            yield f"space: {name} of the {role}: changes nothing, for its chain is {texts}; expected one with {agent}"


def _chain_problems(settings: Settings, role: Role, chain: tuple[str, ...]) -> Iterator[str]:
    """Yield what losses, protocol and view mode make of a chain that can be read."""
    distill = settings.distill
    methods = {name: method for name, method in known_methods().items() if distill.losses.get(name, 0) > 0}
    online = next((name for name, method in methods.items() if method.online is not None), None)
    counts = role == decides(distill.view_mode)
    pick = getattr(settings.agents, role).pick
    text = "+".join(chain)
    if "learned" in chain:
        if not counts:
            yield (
                f"got learned in {text!r}; expected it in the chain of the role that the student network sees, "
                f"the {decides(distill.view_mode)} (distill.view_mode {distill.view_mode})"
            )
        if online is not None or not any(method.needs_teacher for method in methods.values()):
            yield f"got learned in {text!r}; expected losses with a teacher that is no peer, for it asks both networks"
    if "pick" in chain:
        if counts and online is not None:
            yield f"got pick in {text!r}; expected no {online} among distill.losses, whose teacher learns along"
        pool = settings.training.batch_size * pick.runs
        if pick.keep is not None and pick.keep > pool:
            yield (
                f"pick.keep: got {pick.keep}; expected at most {pool}, the pool of {pick.runs} runs of "
                f"{settings.training.batch_size} images"
            )
        alone = role == Role.TEACHER and settings.teacher.checkpoint is None
        if alone and pick.criterion == "divergence":
            yield "pick.criterion: got divergence; expected another, for the teacher learns without a second network"
        if counts and (taken := [name for name, method in methods.items() if "indices" in method.takes]):
            yield f"got pick in {text!r}; expected no {taken[0]} among distill.losses, which wants each image once"
    if counts and any(agent in chain for agent in MIXING):
        for name, method in methods.items():
            if {"labels", "indices"} & set(method.takes) and not method.soft_labels:
                yield f"got {text!r}, which mixes images; expected no {name} in distill.losses, which wants one label"


def _branch_problems(settings: Settings) -> Iterator[str]:
    distill = settings.distill
    if distill.branches is None:
        return
    online = [name for name, method in known_methods().items() if name in distill.losses and method.online is not None]
    if online:
        yield f"distill.branches: got two branches; expected none for {online[0]}, which has no finished teacher"
    elif not any(known_methods()[name].needs_teacher for name in distill.losses if name in known_methods()):
        yield "distill.branches: got two branches; expected a loss with a teacher, for it labels the second"
