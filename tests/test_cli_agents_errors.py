"""Agents that cannot work, at the command line: exit code 2, a line per problem with the key as written, no file."""

from pathlib import Path

import pytest
import torch
import yaml
from cli_helpers import TINY, assert_refused, options, rolekd, write_images

torch.set_num_threads(1)

OPS = "ops: {rotate: {range: [0, 27]}}"
ORDER = "got 'cutmix' before 'policy', which needs uint8 images; expected mixing after it: policy+cutmix"
# (overrides, the lines)
REFUSED: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "mixing before bytes": (("agents.student.chain=[cutmix, policy]",), (f"agents.student.chain: {ORDER}",)),
    "the same as text": (("agents.student.chain=cutmix+policy",), (f"agents.student.chain: {ORDER}",)),
    "the same among choices": (
        (f"space={{{OPS}, choices: {{agents: {{initial: policy, values: [policy, cutmix+policy]}}}}}}",),
        (f"space.choices.agents.values[1]: {ORDER}",),
    ),
    "two unknown agents": (
        ("agents.student.chain=polcy+cutmx",),
        ("agents.student.chain: unknown agent 'polcy'; *Did you mean 'policy'?",
         "agents.student.chain: unknown agent 'cutmx'; *Did you mean 'cutmix'?"),
    ),
    "no agent": (("agents.student.chain=[]",), ("agents.student.chain: got []; expected at least one agent, or none",)),
    "no text": (("agents.teacher.chain=3",), ("agents.teacher.chain: got 3; expected agents, as policy+cutmix*",)),
    "keys that nobody knows, and values out of range, all at once": (
        ("agents.student.cutmx.alpha=1", "agents.teacher.cutmix.alhpa=1", "agents.studnt={}",
         "agents.student.mixup.alpha=-1", "agents.teacher.randaugment.magnitude=31", "agents.student.pick.scope=anchr",
         "agents.student.learned.parts=[affin, colour]", "agents.student.cutmix.legacy=3", "distill.branches.clen=1"),
        ("agents.student: unknown key 'cutmx'; *Did you mean 'cutmix'?",
         "agents.teacher.cutmix: unknown key 'alhpa'; *Did you mean 'alpha'?",
         "agents: unknown key 'studnt'; *Did you mean 'student'?",
         "agents.student.mixup.alpha: got -1; expected greater than 0.",
         "agents.teacher.randaugment.magnitude: got 31; expected less than or equal to 30.",
         "agents.student.pick.scope: got 'anchr'; *Did you mean 'anchor'?",
         "agents.student.learned.parts.0: got 'affin'; *Did you mean 'affine'?",
         "agents.student.cutmix.legacy: got 3; expected true or false.",
         "distill.branches: unknown key 'clen'; *Did you mean 'clean'?"),
    ),
    "no section": (
        ("agents.student=policy", "agents.teacher.cutmix=1"),
        ("agents.student: got 'policy'; expected a section*", "agents.teacher.cutmix: got 1; expected a section*"),
    ),
    "thresholds in the wrong order": (
        ("agents.student.learned={lower: 2, upper: 1}",),
        ("agents.student.learned.lower: got 2; expected one below upper, 1",),
    ),
    "a part twice": (
        ("agents.student.learned.parts=[affine, affine]",),
        ("agents.student.learned.parts: got ['affine', 'affine']; expected each once",),
    ),
    "a count where each image has a share": (
        ("agents.student.pick={keep: 4, scope: anchor}",),
        ("agents.student.pick.keep: got 4; expected none with scope anchor*",),
    ),
    "branches without weight": (
        ("distill.branches={clean: 0, augmented: 0}",),
        ("distill.branches.clean: got 0, and 0 for augmented; expected one above 0",),
    ),
    "a batch of 1, and a pool of 1": (
        ("agents.student.chain=mixup", "training.batch_size=1", "data.train=0"),
        ("training.batch_size: got 1; *2.", "data.train: got 0; *1."),
    ),
    "more than the pool": (
        ("agents.student={chain: pick, pick: {keep: 101}}", "agents.teacher={chain: pick, pick: {keep: 151, runs: 3}}"),
        ("agents.student.pick.keep: got 101; expected at most 100, the pool of 2 runs of 50 images",
         "agents.teacher.pick.keep: got 151; expected at most 150, the pool of 3 runs of 50 images"),
    ),
    "a range beyond the pool": (
        ("agents.student.chain=pick",
         f"space={{{OPS}, scalars: {{pick.keep: {{initial: 9, range: [2, 101]}}}}}}"),
        ("space.scalars.pick.keep.range: got 101; expected at most 100*",),
    ),
    "a count that meets the scope anchor when both evolve": (
        ("agents.student.chain=pick",
         f"space={{{OPS}, scalars: {{pick.keep: {{initial: 9, range: [2, 50]}}}}, "
         "choices: {pick.scope: {initial: pool, values: [pool, anchor]}}}"),
        ("space.scalars.pick.keep.range: got 50; expected none with scope anchor*",),
    ),
    "no range": (
        ("space.scalars.cutmix.alpha={initial: 1}", "agents.student.chain=cutmix"),
        ("space.scalars.cutmix.alpha.range: got none, and an evolvable number needs its range; *",),
    ),
    "no values": (
        ("space.choices.agents={initial: policy}",), ("space.choices.agents.values: got none, and an evolvable *",)
    ),
    "ends that the settings refuse": (
        ("agents.student.chain=randaugment+cutmix",
         f"space={{{OPS}, scalars: {{cutmix.alpha: {{initial: 1, range: [0, 2]}}, "
         "randaugment.magnitude: {initial: 9, range: [0, 40]}}, "
         "choices: {cutmix.legacy: {initial: 'true', values: ['true', perhaps]}}}"),
        ("space.scalars.cutmix.alpha.range: got 0.0; expected greater than 0",
         "space.scalars.randaugment.magnitude.range: got 40.0; expected less than or equal to 30",
         "space.choices.cutmix.legacy: got 'perhaps'; expected true or false"),
    ),
    "settings that are none": (
        (f"space={{{OPS}, scalars: {{cutmx.alpha: {{initial: 1, range: [1, 2]}}, "
         "cutmix.alhpa: {initial: 1, range: [1, 2]}}}",),
        ("space.scalars: unknown scalar of the student 'cutmx.alpha'; *Did you mean 'cutmix.alpha'?",
         "space.scalars: unknown scalar of the student 'cutmix.alhpa'; *Did you mean 'cutmix.alpha'?"),
    ),
    "choices that are none": (
        (f"space={{{OPS}, choices: {{agnts: {{initial: policy, values: [policy, cutmix]}}}}}}",),
        ("space.choices.agnts: unknown choice 'agnts'; *Did you mean 'agents'?",),
    ),
    "settings of an agent that no chain holds": (
        (f"space={{{OPS}, scalars: {{mixup.alpha: {{initial: 1, range: [1, 2]}}}}, "
         "choices: {pick.criterion: {role: teacher, initial: teacher_entropy, "
         "values: [teacher_entropy, student_entropy]}}}",),
        ("space.scalars.mixup.alpha: changes nothing, for the chain of the student is policy; expected one with mixup",
         "space.choices.pick.criterion: changes nothing, for the chain of the teacher is policy; *"),
    ),
    "learned in the wrong role": (
        ("agents.teacher.chain=learned",), ("agents.teacher.chain: got learned in 'learned'; expected it in the *",)
    ),
    "learned without a teacher": (
        ("agents.student.chain=learned", "distill.losses={cross_entropy: 1}"),
        ("agents.student.chain: got learned in 'learned'; expected losses with a teacher that is no peer*",),
    ),
    "divergence from nobody": (
        ("agents.teacher={chain: pick, pick: {criterion: divergence}}",),
        ("agents.teacher.pick.criterion: got divergence; expected another, for the teacher learns without a second *",),
    ),
    "divergence from nobody, evolved": (
        ("agents.teacher.chain=pick", f"space={{{OPS}, choices: {{pick.criterion: {{role: teacher, "
         "initial: teacher_entropy, values: [teacher_entropy, divergence]}}}"),
        ("space.choices.pick.criterion: got divergence; expected another, for the teacher *",),
    ),
    "divergence without a loss that has a teacher": (
        ("agents.student={chain: pick, pick: {criterion: divergence}}", "distill.losses={cross_entropy: 1}"),
        ("agents.student.pick.criterion: got divergence; expected another, for no loss *",),
    ),
    "branches of peers": (
        ("distill.branches={}", "distill.losses={cross_entropy: 1, mutual: 1}"),
        ("distill.branches: got two branches; expected none for mutual, which has no finished teacher",),
    ),
    "mixing and picking where each image counts once, with one label": (
        (f"space={{{OPS}, choices: {{agents: {{initial: policy, values: [policy, cutmix+pick]}}}}}}",
         "distill.losses={cross_entropy: 1, dkd: 1, crd: 0.8}"),
        ("space.choices.agents: got pick in 'cutmix+pick'; expected no crd among distill.losses, which wants *",
         "space.choices.agents: got 'cutmix+pick', which mixes images; expected no dkd in distill.losses, which *",
         "space.choices.agents: got 'cutmix+pick', which mixes images; expected no crd in distill.losses, which *"),
    ),
    "a count beyond the pool of the fewest runs": (
        ("agents.student={chain: pick, pick: {keep: 120}}",
         f"space={{{OPS}, scalars: {{pick.runs: {{initial: 3, range: [2, 4]}}}}}}"),
        ("agents.student.pick.keep: got 120; expected at most 100, the pool of 2 runs of 50 images",),
    ),
    "picking beside a peer": (
        ("agents.student.chain=pick", "distill.losses={cross_entropy: 1, mutual: 1}"),
        ("agents.student.chain: got pick in 'pick'; expected no mutual among distill.losses, whose teacher *",),
    ),
    "what no static agent takes": (
        ("agents.student={chain: augmix, augmix: {width: 101, depth: 101}, randaugment: {ops: 101}, "
         "cutout: {pixels: 32769}}",),
        ("agents.student.augmix.width: got 101; expected less than or equal to 100.",
         "agents.student.augmix.depth: got 101; expected less than or equal to 100.",
         "agents.student.randaugment.ops: got 101; expected less than or equal to 100.",
         "agents.student.cutout.pixels: got 32769; expected less than or equal to 32768."),
    ),
    "a range that no static agent takes": (
        ("agents.student.chain=augmix",
         f"space={{{OPS}, scalars: {{augmix.alpha: {{initial: 1, range: [0.001, 2]}}}}}}"),
        ("space.scalars.augmix.alpha.range: got 0.001; expected greater than or equal to 0.01",),
    ),
}  # fmt: skip
OF_PYDANTIC = ("Value error", "Input should", "literal[", "function-", "constrained", "validation error", "RoleAgents")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch, tmp_path_factory) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ROLEKD_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    return tmp_path


def matches(line: str, wanted: str) -> bool:
    """Whether a line is the wanted one, in which * stands for any words."""
    first, star, rest = wanted.partition("*")
    return line.startswith(first) and line.endswith(rest) if star else line == wanted


@pytest.mark.parametrize("number, case", list(enumerate(REFUSED)))
def test_one_line_per_problem_and_nothing_written(case, number):
    """By the check and, of every third, by the verb that would start."""
    overrides, wanted = REFUSED[case]
    words = [word for override in overrides for word in ("--set", override)]
    result = assert_refused(lambda: rolekd("check", "quickstart", *words))
    if number % 3 == 0:
        assert assert_refused(lambda: rolekd("search", "--local", "--name", "a", *words)).err == result.err
    lines = [line.removeprefix("error: ").removeprefix("quickstart.yaml: ") for line in result.err.splitlines()]
    assert len(lines) == len(wanted), result.err
    assert all(any(matches(line, one) for line in lines) for one in wanted), result.err
    assert not [word for word in OF_PYDANTIC if word in result.err]


def test_a_file_is_named_with_the_keys_it_has():
    file = {"agents": {"student": {"chain": ["mixup", "cutout"], "mixup": {"alpha": 0}}}, "training": {"batch_size": 9}}
    Path("mine.yaml").write_text(yaml.safe_dump(file))
    result = assert_refused(lambda: rolekd("check mine.yaml"))
    assert "mine.yaml: agents.student.chain: got 'mixup' before 'cutout'" in result.err
    assert "mine.yaml: agents.student.mixup.alpha: got 0" in result.err and len(result.err.splitlines()) == 2


@pytest.mark.parametrize("size", [(10, 10), (12, 8)])
def test_images_that_the_vae_does_not_take(size):
    """The search of the teacher, which would come first, does not start."""
    write_images(Path("images"), size=lambda row: size)
    words = "search --local --name a --set data.source=parquet --set data.path=images --set data.validation=10"
    agents = "--set 'agents.student={chain: learned, learned: {parts: [vae]}}' --set data.train=20 --set final.train=20"
    height, width = size[::-1]
    assert_refused(
        lambda: rolekd(f"{words} {agents}"),
        f"agents.student.learned.parts: got vae for images of {height} x {width} pixels; expected square ones, whose",
    )


@pytest.mark.parametrize("text", ["[policy, cutmix]", "policy+cutmix", " [ policy , cutmix ] ", "policy + cutmix"])
def test_chains_as_lists_and_as_text(text):
    found = rolekd("check", "quickstart", *options(TINY), "--set", f"agents.student.chain={text}")
    assert found.code == 0 and "chain: policy+cutmix\n" in found.out, found.err
