"""The guard before T. stddev: views to which the teacher has nothing to say are not ranked by it."""

from rolekd_ray.augment.t_stddev import TStddev

FLOOR = 0.2
"""Ours: mixed views were seen at 0.25 and above, destroyed ones at 0; docs/diagnose.md has the numbers."""


def passes_guard(result: TStddev, kept: float, floor: float = FLOOR) -> bool:
    """Return whether views keep enough of what the teacher knows for a low T. stddev to mean anything.

    Destroyed images get a low T. stddev, too: the teacher's answers no longer depend on the image. So these must be at
    least `floor`: `kept`, and the mean confidence in the augmented views, as a share of the way from 1/K to 1.

    Args:
        result: of the views.
        kept: share of views to which the teacher gives the class that it gives to the plain one, beyond chance:
            `ViewDiagnosis.kept_beyond_chance`.
        floor: in [0, 1]; 0 lets everything pass that is no worse than chance.

    Source: ours; that destroyed images halve T. stddev is arithmetic, see `docs/diagnose.md`.
    """
    chance = 1 / result.classes
    return kept >= floor and (result.confidence - chance) / (1 - chance) >= floor
