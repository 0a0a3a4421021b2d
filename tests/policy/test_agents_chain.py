"""Chains of agents: the order rule against every sequence of names, and what a wrong chain is told."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rolekd_ray.policy.agents import AGENT_NAMES, chain_text, is_agent_setting, parse_chain

WHERE = "agents.student.chain"
UINT8 = {"policy", "randaugment", "trivial_augment_wide", "autoaugment", "augmix", "cutout"}


def told(value) -> list[str]:
    problems: list[str] = []
    assert parse_chain(value, WHERE, problems) == () or not problems, "no chain comes with a problem"
    return problems


def is_right(names: tuple[str, ...]) -> bool:
    """The rule, read off the end: pick, then one mixing agent, then learned, then pixel agents only."""
    if names == ("none",):
        return True
    rest = list(names)
    if rest and rest[-1] == "pick":
        rest.pop()
    if rest and rest[-1] in ("mixup", "cutmix"):
        rest.pop()
    if rest and rest[-1] == "learned":
        rest.pop()
    return bool(names) and all(name in UINT8 for name in rest) and len(set(rest)) == len(rest)


def test_every_chain_of_up_to_three_agents_is_judged_by_the_rule():
    for length in (1, 2, 3):
        for names in product(AGENT_NAMES, repeat=length):
            assert (not told(names)) == is_right(names), names


@given(st.lists(st.sampled_from(AGENT_NAMES), min_size=4, max_size=7).map(tuple))
def test_longer_chains_too(names):
    assert (not told(names)) == is_right(names)


@pytest.mark.parametrize(
    "value, names",
    [
        ("policy", ("policy",)),
        ("none", ("none",)),
        ("pick", ("pick",)),
        (["policy", "cutmix", "pick"], ("policy", "cutmix", "pick")),
        ("policy + cutout+learned +mixup+pick", ("policy", "cutout", "learned", "mixup", "pick")),
    ],
)
def test_lists_and_text_give_the_same_chain(value, names):
    problems: list[str] = []
    assert parse_chain(value, WHERE, problems) == names
    assert not problems
    assert parse_chain(chain_text(names), WHERE, problems) == names


WRONG = [
    ("cutmix+policy", ["got 'cutmix' before 'policy', which needs uint8 images", "mixing after it: policy+cutmix"]),
    (
        "learned+cutout",
        ["got 'learned' before 'cutout', which needs uint8", "the learned agent after it: cutout+learned"],
    ),
    ("policy+mixup+learned", ["got 'mixup' before 'learned'; expected mixing after it: policy+learned+mixup"]),
    ("policy+pick+cutmix", ["got 'pick' before 'cutmix'; expected pick last: policy+cutmix+pick"]),
    ("policy+mixup+cutmix", ["got 'mixup' and 'cutmix'; expected one mixing agent at most"]),
    ("policy+policy", ["got 'policy' 2 times; expected it once"]),
    ("none+policy", ["got 'none' in none+policy; expected none alone"]),
    ("polcy+cutmix", ["unknown agent 'polcy'; expected one of none, policy,", "Did you mean 'policy'?"]),
    ("policy++cutmix", ["unknown agent ''"]),
    ("", ["got ''; expected at least one agent, or none"]),
    ([], ["got []; expected at least one agent, or none"]),
    (None, ["got None; expected agents, as policy+cutmix or [policy, cutmix]"]),
    (["policy", 3], ["got ['policy', 3]; expected agents"]),
    ({"policy": 1}, ["got {'policy': 1}; expected agents"]),
]


@pytest.mark.parametrize("value, words", WRONG, ids=[str(value) for value, _ in WRONG])
def test_a_wrong_chain_is_told_place_value_and_rule(value, words):
    (problem,) = told(value)
    assert problem.startswith(f"{WHERE}: ")
    for word in words:
        assert word in problem


def test_settings_of_agents_are_known_by_their_name():
    assert is_agent_setting("cutmix.alpha") and is_agent_setting("pick.criterion")
    assert not any(map(is_agent_setting, ("temperature", "losses.hinton", "cutmix", "cutmixx.alpha", ".alpha")))
