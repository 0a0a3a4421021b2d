"""How far two policies are apart, as one number: the teacher's from the student's, a child's from its parent's."""

from rolekd_ray.policy.policy import OpSetting, Policy
from rolekd_ray.policy.space import SearchSpace

Rectangle = tuple[float, float]


def policy_distance(a: Policy, b: Policy, space: SearchSpace) -> float:
    """Return the mean distance of two policies' slots, in [0, 1]; 0 if and only if the same ops fire alike.

    A slot is a rectangle: as high as its probability, and as wide as its strength reaches, from 1/2 (weakest bin) to 1
    (strongest bin, and ops without strength). Two slots are as far apart as the area that only one of them covers:
    |probability difference| * width where strengths agree, probability * |width difference| where chances agree. So a
    setting that cannot fire is at 0 from any other of its kind, whatever its strength, and a weak one is not.

    Copies of an op are compared from the most probable to the least: their order changes no view. A metric: symmetric,
    and no way over a third policy is shorter. Scalars and choices count for nothing here; where a chain lacks
    `policy`, the policy is not in force and neither is this number.

    Source: ours; the area is the earth mover's distance of the two chances over {does not fire, fires at strength s},
        laid out on a line.
    """
    slots = zip(_rectangles(a, space), _rectangles(b, space), strict=True)
    return sum(_area_between(*pair) for pair in slots) / len(space.slots())


def _rectangles(policy: Policy, space: SearchSpace) -> list[Rectangle]:
    """Return (height, width) of every slot, copies of an op side by side, the highest first."""
    settings = policy.completed(space).settings
    by_op = [[_rectangle(s, space) for s in settings if s.op == op.name] for op in space.ops]
    return [rectangle for copies in by_op for rectangle in sorted(copies, reverse=True)]


def _rectangle(setting: OpSetting, space: SearchSpace) -> Rectangle:
    magnitudes = space.op(setting.op).magnitudes
    height = space.probability(setting.probability_bin)
    if magnitudes is None:
        return height, 1.0
    # By value, not by bin: posterize keeps 4 bits at bins 0, 1 and 2
    low, high = min(magnitudes), max(magnitudes)
    reach = (magnitudes[setting.magnitude_bin] - low) / (high - low) if high > low else 1.0
    weaker_upwards = magnitudes[-1] < magnitudes[0]  # bits kept, thresholds
    return height, (1 + (1 - reach if weaker_upwards else reach)) / 2


def _area_between(a: Rectangle, b: Rectangle) -> float:
    """Return the area of two rectangles with one corner in common that only one of them covers."""
    height_of_wider = a[0] if a[1] > b[1] else b[0]
    return abs(a[0] - b[0]) * min(a[1], b[1]) + abs(a[1] - b[1]) * height_of_wider
