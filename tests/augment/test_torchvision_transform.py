"""The exported transform: stands alone, draws as the agent does, and does to an image what `OPS` does."""

import collections
import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import chi2
from torchvision import tv_tensors

from rolekd_ray.augment.ops import OPS
from rolekd_ray.augment.policy_agent import PolicyAgent, sample_ops
from rolekd_ray.augment.torchvision_transform import ScheduleTransform, export_source
from rolekd_ray.policy.policy import OpSetting, Policy, random_policy
from rolekd_ray.policy.space import OP_UNITS, SearchSpace, load_space
from rolekd_ray.roles import Role

SPACE = load_space("cifar10_pba")
NAMES = list(OP_UNITS)
FILL = [125, 123, 114]


def rows(policy: Policy, space: SearchSpace = SPACE) -> list[list]:
    return [
        [s.op, space.probability(s.probability_bin), space.magnitude(s.op, s.magnitude_bin), space.op(s.op).signed]
        for s in policy.settings
    ]


def spec(*policies: Policy, counts=SPACE.counts, flattened: bool = False, epochs=None) -> dict:
    lengths = epochs or [1] * len(policies)
    segments = [{"epochs": n, "settings": rows(policy)} for n, policy in zip(lengths, policies)]
    return {"epochs": sum(lengths), "counts": list(counts), "segments": segments, "flattened": flattened, "fill": FILL}


def only(op: str, magnitude: float | None) -> dict:
    """A spec that always applies one op of one magnitude."""
    segment = {"epochs": 1, "settings": [[op, 1.0, magnitude, False]]}
    return {"epochs": 1, "counts": [0.0, 1.0], "segments": [segment], "flattened": False, "fill": FILL}


DRAWS = """
import collections, json, sys
sys.modules["rolekd_ray"] = None  # importing it now fails
import torch
from exported import SPEC, ScheduleTransform, transform
assert isinstance(transform, ScheduleTransform)
torch.manual_seed(7)
torch.set_num_threads(1)
transform.set_epoch(1)
counts = collections.Counter(json.dumps(transform.draw()) for _ in range(%d))
image = torch.arange(192, dtype=torch.uint8).view(3, 8, 8)
print(json.dumps({"counts": counts, "shape": list(transform(image).shape), "modules": sorted(sys.modules)}))
"""


def test_the_exported_file_stands_alone_and_draws_as_the_agent_does(tmp_path: Path):
    """Its draws against the agent's own: a two-sample chi-square over whole sequences, 1e-4 tail, fixed seeds."""
    drawn = (("rotate", 5, 4), ("invert", 2, 0), ("rotate", 3, 9), ("solarize", 10, 2), ("contrast", 1, 7))
    policy = Policy(tuple(OpSetting(*setting) for setting in drawn))
    whole = spec(Policy((OpSetting("invert", 10, 0),)), policy, epochs=[1, 3])
    (tmp_path / "exported.py").write_text(export_source(whole), encoding="utf-8")
    total = 6_000
    ran = subprocess.run(
        [sys.executable, "-c", DRAWS % total],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={"OMP_NUM_THREADS": "1"},
    )
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert told["shape"] == [3, 8, 8]
    assert not [name for name in told["modules"] if name.startswith("rolekd_ray.")]

    many = 400_000
    agent = PolicyAgent([(1.0, policy)], SPACE, torch.tensor(FILL, dtype=torch.uint8))
    ops, bins, signs = sample_ops(agent, torch.arange(many), seed=1, role=Role.STUDENT, epoch=0)
    codes, counts = torch.stack([ops, bins, signs], 2).flatten(1).unique(dim=0, return_counts=True)
    expected: collections.Counter = collections.Counter()
    for code, n in zip(codes.view(-1, ops.shape[1], 3).tolist(), counts.tolist()):
        sequence = [[NAMES[op], sign * (SPACE.magnitude(NAMES[op], b) or 0)] for op, b, sign in code if op >= 0]
        expected[json.dumps(sequence)] += n
    told["counts"] = collections.Counter({json.dumps(json.loads(k)): n for k, n in told["counts"].items()})
    assert two_samples(told["counts"], expected)


def two_samples(one: collections.Counter, other: collections.Counter) -> bool:
    scale = (other.total() / one.total()) ** 0.5
    keys = [key for key in set(one) | set(other) if one[key] + other[key] / scale**2 >= 10]
    assert len(keys) > 10 and sum(one[key] for key in keys) > 0.95 * one.total()
    statistic = sum((scale * one[k] - other[k] / scale) ** 2 / (one[k] + other[k]) for k in keys)
    return statistic < chi2.isf(1e-4, len(keys) - 1)


def test_the_test_can_tell_a_wrong_distribution():
    rng = random.Random(1)
    fair = collections.Counter(rng.choices(range(20), k=10_000))
    skewed = collections.Counter(rng.choices(range(20), [1] * 19 + [1.5], k=400_000))
    assert two_samples(fair, collections.Counter(rng.choices(range(20), k=400_000)))
    assert not two_samples(fair, skewed)


def test_the_exported_text_holds_no_import_of_this_project():
    text = export_source(spec(random_policy(SPACE, Role.STUDENT, random.Random(1))))
    assert "rolekd_ray" not in text and "export_source" not in text
    compile(text, "exported.py", "exec")


def test_magnitudes_are_those_of_the_agent():
    """Signed magnitudes of each op, drawn often enough to see both signs."""
    policy = Policy(tuple(OpSetting(op, 10, 7) for op in NAMES))
    transform = ScheduleTransform(spec(policy, counts=(0.0, 1.0)))
    torch.manual_seed(1)
    seen = collections.defaultdict(set)
    for _ in range(3000):
        ((op, magnitude),) = transform.draw()
        seen[op].add(magnitude)
    for op in NAMES:
        value = SPACE.magnitude(op, 7) or 0
        assert seen[op] == ({value, -value} if SPACE.op(op).signed else {value})


@pytest.mark.parametrize("op", [op for op in NAMES if op != "cutout"])
@pytest.mark.parametrize("channels", [3, 1])
def test_single_ops_equal_ours(op, channels, photographs):
    """Geometry on every pixel; colour within one grey level and 99.6 % of pixels."""
    some = photographs[:20, :channels]
    magnitudes = SPACE.op(op).magnitudes or (None,)
    signs = (1, -1) if SPACE.op(op).signed else (1,)
    equal = total = 0
    for magnitude in [m and s * m for m in magnitudes for s in signs]:
        transform = ScheduleTransform(only(op, magnitude) | {"fill": FILL[:channels]})
        got = torch.stack([transform(image) for image in some])
        strength = torch.full((20,), magnitude or 0.0, dtype=torch.float64)
        wanted = OPS[op](some, strength, torch.zeros(20, 2), torch.tensor(FILL[:channels], dtype=torch.uint8))
        assert (got.int() - wanted.int()).abs().max() <= 1
        equal, total = equal + (got == wanted).sum().item(), total + got.numel()
    geometry = op in ("rotate", "translate_x", "translate_y", "shear_x", "shear_y")
    assert equal >= (total if geometry else 0.996 * total)


def test_cutout_is_a_clipped_square_at_any_place():
    transform, white = ScheduleTransform(only("cutout", 4.0)), torch.full((3, 8, 8), 255, dtype=torch.uint8)
    torch.manual_seed(1)
    sizes = collections.Counter()
    for _ in range(2000):
        cut = transform(white) != 255
        assert (cut[0] == cut[1]).all()
        sizes[int(cut[0].sum())] += 1
    # Per axis, of 8 centres: 5 leave 4 pixels, 2 leave 3, 1 leaves 2.
    axis = {4: 5 / 8, 3: 2 / 8, 2: 1 / 8}
    expected = collections.Counter()
    for a, pa in axis.items():
        for b, pb in axis.items():
            expected[a * b] += pa * pb * 2000
    assert set(sizes) == set(expected)
    assert sum((sizes[k] - e) ** 2 / e for k, e in expected.items()) < chi2.isf(1e-4, len(expected) - 1)


def test_kinds_of_images():
    transform = ScheduleTransform(only("invert", None))
    pixels = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    inverted = 255 - pixels
    assert np.array_equal(np.asarray(transform(Image.fromarray(pixels))), inverted)
    grey = transform(Image.fromarray(pixels[..., 0]))
    assert grey.mode == "L" and np.array_equal(np.asarray(grey), inverted[..., 0])
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    wrapped = transform(tv_tensors.Image(tensor))
    assert isinstance(wrapped, tv_tensors.Image)
    assert torch.equal(wrapped.as_subclass(torch.Tensor), ~tensor) and torch.equal(transform(tensor), ~tensor)
    image, label = transform(tensor, 3)
    assert label == 3 and torch.equal(image, ~tensor)
    for wrong in (tensor.float(), tensor[None], tensor[:2], tv_tensors.Mask(tensor)):
        with pytest.raises(TypeError, match="expected"):
            transform(wrong)


def test_grey_images_and_one_number_of_fill():
    transform = ScheduleTransform(only("translate_x", 3.0) | {"fill": 9})
    moved = transform(Image.fromarray(np.full((8, 8), 200, np.uint8)))
    assert np.asarray(moved)[0].tolist() == [200] * 5 + [9] * 3
    assert transform(torch.full((3, 8, 8), 200, dtype=torch.uint8))[:, 0, 7].tolist() == [9, 9, 9]


def test_epochs_choose_the_segment():
    names = ("invert", "equalize", "auto_contrast")
    policies = [Policy((OpSetting(op, 10, 0),)) for op in names]
    transform = ScheduleTransform(spec(*policies, counts=(0.0, 1.0), epochs=[2, 1, 3]))
    seen = []
    for epoch in range(8):
        transform.set_epoch(epoch)
        seen.append(names.index(transform.draw()[0][0]))
    assert seen == [0, 0, 1, 2, 2, 2, 2, 2]


def test_flattened_draws_segments_by_their_epochs():
    names = ("invert", "equalize", "auto_contrast")
    policies = [Policy((OpSetting(op, 10, 0),)) for op in names]
    transform = ScheduleTransform(spec(*policies, counts=(0.0, 1.0), epochs=[1, 3, 6], flattened=True))
    torch.manual_seed(1)
    seen = collections.Counter(transform.draw()[0][0] for _ in range(5000))
    expected = {op: share * 5000 for op, share in zip(names, (0.1, 0.3, 0.6))}
    assert sum((seen[k] - e) ** 2 / e for k, e in expected.items()) < chi2.isf(1e-4, 2)


def test_an_unknown_op_is_named():
    with pytest.raises(ValueError, match="rotat"):
        export_source(only("rotat", 1.0))
