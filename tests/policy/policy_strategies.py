"""Hypothesis strategies of the policy room: spaces, policies and schedules of every shape."""

from dataclasses import replace
from itertools import pairwise
from random import Random

from hypothesis import strategies as st

from rolekd_ray.policy.policy import OpSetting, random_policy, zero_policy
from rolekd_ray.policy.schedule import Schedule, Segment
from rolekd_ray.policy.space import OP_UNITS, ChoiceSpec, OpSpec, ScalarSpec, SearchSpace
from rolekd_ray.roles import Role

numbers = st.floats(-1e6, 1e6)


@st.composite
def scalar_specs(draw, name: str = "temperature"):
    low = draw(st.floats(1e-6, 1e3))
    high = low * draw(st.floats(1.001, 1e4))
    return ScalarSpec(
        name=name,
        role=draw(st.sampled_from(Role)),
        initial=draw(st.floats(low, high)),
        low=low,
        high=high,
        log=draw(st.booleans()),
        factors=tuple(draw(st.lists(st.floats(0.01, 10), min_size=1, max_size=3))),
        resample_probability=draw(st.floats(0, 1)),
    )


TWO_CHOICES = ("pick.criterion", "agents")
CHAINS = ("policy", "policy+cutmix", "randaugment+mixup", "none", "cutmix+pick")


@st.composite
def choice_specs(draw, name: str = "agents"):
    some = CHAINS if name == "agents" else ("low", "high", "student entropy", "3", "true", "a: b", "null")
    values = tuple(draw(st.lists(st.sampled_from(some), min_size=2, unique=True)))
    return ChoiceSpec(name, draw(st.sampled_from(Role)), draw(st.sampled_from(values)), values, draw(st.floats(0, 1)))


@st.composite
def spaces(draw, agents: bool = True):
    scalars = [(), ("a",), ("a", "cutmix.alpha")] if agents else [(), ("a",), ("a", "b")]
    magnitude_bins = draw(st.integers(1, 12))
    names = draw(st.lists(st.sampled_from(sorted(OP_UNITS)), min_size=1, max_size=6, unique=True))
    values = st.lists(numbers, min_size=magnitude_bins, max_size=magnitude_bins).map(tuple)
    ops = tuple(OpSpec(name, draw(values) if OP_UNITS[name] else None, draw(st.booleans())) for name in names)
    copies = draw(st.integers(1, 3))
    weights = draw(st.lists(st.integers(0, 9), min_size=1, max_size=copies * len(ops) + 1).filter(any))
    return SearchSpace(
        name=draw(st.sampled_from(["inline", "cifar10_pba", "mine"])),  # a shipped name must not hide other ops
        ops=ops,
        probability_bins=draw(st.integers(2, 21)),
        magnitude_bins=magnitude_bins,
        copies=copies,
        counts=tuple(weight / sum(weights) for weight in weights),
        scalars=tuple(draw(scalar_specs(name)) for name in draw(st.sampled_from(scalars))),
        choices=tuple(
            draw(choice_specs(name))
            for name in draw(st.sampled_from([(), ("agents",), TWO_CHOICES] if agents else [()]))
        ),
    )


@st.composite
def policies(draw, space: SearchSpace, role: Role):
    kind = draw(st.sampled_from(["zero", "random", "sparse"]))
    policy = random_policy(space, role, Random(draw(st.integers(0, 2**32))))
    if kind == "zero":
        return zero_policy(space, role)
    if kind == "random":
        return policy
    silent = draw(st.sets(st.integers(0, len(policy.settings) - 1)))  # probability 0, but a magnitude to keep
    settings = tuple(OpSetting(s.op, 0, s.magnitude_bin) if i in silent else s for i, s in enumerate(policy.settings))
    return replace(policy, settings=settings)


@st.composite
def schedules(draw, space: SearchSpace | None = None, flattened: bool | None = None):
    space = space or draw(spaces())
    roles = draw(st.sampled_from([(Role.STUDENT,), (Role.TEACHER,), (Role.TEACHER, Role.STUDENT)]))
    epochs = draw(st.integers(1, 99))
    flattened = draw(st.booleans()) if flattened is None else flattened
    return Schedule(space, {role: draw(_segments(space, role, epochs)) for role in roles}, flattened)


@st.composite
def _segments(draw, space: SearchSpace, role: Role, epochs: int):
    pool = draw(st.lists(policies(space, role), min_size=1, max_size=3))  # small: equal neighbours are common
    cuts = sorted(draw(st.sets(st.integers(1, max(epochs - 1, 1)), max_size=5)) - {epochs})
    ends = [0, *cuts, epochs]
    return tuple(Segment(end - start, draw(st.sampled_from(pool))) for start, end in pairwise(ends))
