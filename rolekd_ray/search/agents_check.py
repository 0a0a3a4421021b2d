"""What is checked of the roles' agents before anything is written or started."""

from collections.abc import Iterator

from rolekd_ray.augment.learned.vae import SIZES as VAE_SIZES
from rolekd_ray.config import RoleAgents, Settings
from rolekd_ray.config.agents import evolvable_names, evolvable_problem
from rolekd_ray.distill.registry import known_methods
from rolekd_ray.errors import unknown_name
from rolekd_ray.policy.agents import parse_chain
from rolekd_ray.policy.policy import Policy
from rolekd_ray.policy.schedule import Schedule
from rolekd_ray.policy.space import SearchSpace
from rolekd_ray.roles import Role
from rolekd_ray.training.batch import decides
from rolekd_ray.training.chains import may_hold

MIXING = ("mixup", "cutmix")


def agent_problems(settings: Settings) -> list[str]:
    """Return what is wrong with the agents' settings, those that evolve, and what the losses make of their views."""
    space = settings.search_space()
    problems = [found for role in Role for found in _evolving_problems(settings, role, space)]
    for role in Role:
        problems += _pick_problems(settings, role, space)
        evolves = any(choice.name == "agents" for choice in space.choices_of(role))
        where = "space.choices.agents" if evolves else f"agents.{role}.chain"
        for chain in chains_of(getattr(settings.agents, role), role, space):
            problems += [f"{where}: {found}" for found in _chain_problems(settings, role, chain)]
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


def size_problems(settings: Settings, image_size: tuple[int, int]) -> list[str]:
    """Return what is wrong with the agents for images of a height and width in pixels."""
    role, space = decides(settings.distill.view_mode), settings.search_space()
    agents: RoleAgents = getattr(settings.agents, role)
    height, width = image_size
    if not may_hold("learned", agents, space, role) or "vae" not in agents.learned.parts:
        return []
    if height == width and height in VAE_SIZES:
        return []
    return [
        f"agents.{role}.learned.parts: got vae for images of {height} x {width} pixels; expected square ones, whose "
        f"side is a multiple of {VAE_SIZES.step} from {VAE_SIZES[0]} to {VAE_SIZES[-1]}"
    ]


def schedule_problems(settings: Settings, schedule: Schedule, role: Role, where: str) -> list[str]:
    """Return what is wrong with a schedule's chains of agents where it is replayed under other settings.

    Args:
        settings: of the training.
        schedule: holds the role.
        role: whose network is trained.
        where: names the schedule, for messages.
    """
    problems: list[str] = []
    for one in dict.fromkeys((role, decides(settings.distill.view_mode))):  # whose views the network sees
        agents: RoleAgents = getattr(settings.agents, one)
        policies = [segment.policy for segment in schedule.roles.get(one, ())]
        chains = dict.fromkeys(agents.evolved(policy.scalars, policy.choices).chain for policy in policies)
        problems += [f"{where}: {found}" for chain in chains for found in _chain_problems(settings, one, chain)]
    return problems


def untaught_problems(settings: Settings, schedule: Schedule | None) -> list[str]:
    """Return which agents of a student that is trained without a teacher ask for one."""
    role = decides(settings.distill.view_mode)
    agents: RoleAgents = getattr(settings.agents, role)
    policies = [segment.policy for segment in schedule.roles.get(role, ())] if schedule is not None else [Policy()]
    problems: list[str] = []
    for now in (agents.evolved(policy.scalars, policy.choices) for policy in policies):
        if "learned" in now.chain:
            problems.append(
                f"agents.{role}.chain: got learned without a teacher; expected one, for it asks both networks"
            )
        if "pick" in now.chain and now.pick.criterion == "divergence":
            problems.append(f"agents.{role}.pick.criterion: got divergence without a teacher; expected another")
    return list(dict.fromkeys(problems))


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
    names = [("scalars", one.name) for one in space.scalars_of(role)]
    for kind, name in names + [("choices", one.name) for one in space.choices_of(role)]:
        agent = name.partition(".")[0]
        if name in known and not any(agent in chain for chain in chains):
            texts = ", ".join("+".join(chain) for chain in chains)
            yield (
                f"space.{kind}.{name}: changes nothing, for the chain of the {role} is {texts}; "
                f"expected one with {agent}"
            )


def _pick_problems(settings: Settings, role: Role, space: SearchSpace) -> Iterator[str]:
    """Yield problems of how a role picks, whatever of it evolves."""
    agents: RoleAgents = getattr(settings.agents, role)
    if not any("pick" in chain for chain in chains_of(agents, role, space)):
        return
    pick, distill = agents.pick, settings.distill
    ranges = {scalar.name: (scalar.low, scalar.high) for scalar in space.scalars_of(role)}
    values = {choice.name: choice.values for choice in space.choices_of(role)}
    keep = ranges.get("pick.keep", (pick.keep, pick.keep))[1]
    of_keep = "space.scalars.pick.keep.range" if "pick.keep" in ranges else f"agents.{role}.pick.keep"
    runs = round(ranges.get("pick.runs", (pick.runs, pick.runs))[0])
    pool = settings.training.batch_size * runs
    if keep is not None and round(keep) > pool:
        yield (
            f"{of_keep}: got {keep:g}; expected at most {pool}, the pool of {runs} runs of "
            f"{settings.training.batch_size} images"
        )
    if keep is not None and "anchor" in values.get("pick.scope", (pick.scope,)):
        yield f"{of_keep}: got {keep:g}; expected none with scope anchor, whose fraction is each image's"
    if "divergence" in values.get("pick.criterion", (pick.criterion,)):
        known = known_methods()
        taught = any(known[name].needs_teacher for name, weight in distill.losses.items() if weight and name in known)
        where = "space.choices.pick.criterion" if "pick.criterion" in values else f"agents.{role}.pick.criterion"
        if role == Role.TEACHER and settings.teacher.checkpoint is None:
            yield f"{where}: got divergence; expected another, for the teacher learns without a second network"
        elif role == decides(distill.view_mode) and not taught:
            yield f"{where}: got divergence; expected another, for no loss of distill.losses has a teacher"


def _chain_problems(settings: Settings, role: Role, chain: tuple[str, ...]) -> Iterator[str]:
    """Yield what losses, protocol and view mode make of a chain that can be read."""
    distill = settings.distill
    evolving = {scalar.name for scalar in settings.search_space().scalars if scalar.high > 0}
    methods = {
        name: method
        for name, method in known_methods().items()
        if name in distill.losses and (distill.losses[name] > 0 or f"losses.{name}" in evolving)
    }
    online = next((name for name, method in methods.items() if method.online is not None), None)
    counts = role == decides(distill.view_mode)
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
