"""How well T. stddev orders augmentations by what students then learn: three correlation coefficients."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from math import isfinite

import numpy as np

from rolekd_ray.augment.t_stddev import TStddev, check_comparable
from rolekd_ray.errors import ConfigError

FEWEST = 3
"""Two points are always on a line."""
_MOST_ORDERS = 8  # things whose orders are all counted, 40,320; the approximation says p = 0 where 3 are in order


@dataclass(frozen=True)
class Correlation:
    """A coefficient in [-1, 1] and the two-sided p-value of none; both None where one side never varies."""

    coefficient: float | None
    p_value: float | None


@dataclass(frozen=True)
class RankCorrelation:
    """Agreement of T. stddev with students' losses over `count` augmentations; 1: lower means better, always."""

    count: int
    pearson: Correlation
    spearman: Correlation
    kendall: Correlation


def rank_correlation(results: Mapping[str, TStddev], losses: Mapping[str, float]) -> RankCorrelation:
    """Return how results agree with the losses of the students that learned under the same augmentations.

    The p-values treat augmentations as independent draws, which a hand-picked list is not: they say how often chance
    alone would order so many so well, no more. Spearman's is exact up to eight augmentations, Kendall's
    where few are compared and no two are equal; Pearson's supposes normal noise.

    Args:
        results: by augmentation.
        losses: test losses in nats, by augmentation; each must be in `results`, which may hold more.

    Raises:
        ConfigError: fewer than three losses, unknown names, losses that are not finite, or results that cannot be
            compared.

    Source: arXiv 2012.02909 reports these three; its pairs are test losses after the last epoch.
    """
    problems = [f"students: {name}: no T. stddev; expected one of {', '.join(results)}" for name in losses
                if name not in results]  # fmt: skip
    problems += [f"students: {name}: loss: got {loss}; expected a finite number" for name, loss in losses.items()
                 if not isfinite(loss)]  # fmt: skip
    if len(losses) < FEWEST:
        problems.append(f"students: got {len(losses)}; expected at least {FEWEST} to correlate")
    if problems:
        raise ConfigError(*problems)
    check_comparable({name: results[name] for name in losses})
    scores, values = [results[name].score for name in losses], list(losses.values())
    if len(set(scores)) == 1 or len(set(values)) == 1:
        nothing = Correlation(None, None)
        return RankCorrelation(len(losses), nothing, nothing, nothing)
    from scipy import stats  # half a second of an import, for who asks

    found = [measure(scores, values) for measure in (stats.pearsonr, stats.spearmanr, stats.kendalltau)]
    pearson, spearman, kendall = (Correlation(float(one.statistic), float(one.pvalue)) for one in found)
    if len(losses) <= _MOST_ORDERS:
        exact = _share_of_orders(stats.rankdata(scores), stats.rankdata(values))
        spearman = Correlation(spearman.coefficient, exact)
    return RankCorrelation(len(losses), pearson, spearman, kendall)


def _share_of_orders(ranks: Sequence[float], others: Sequence[float]) -> float:
    """Return the share of all orders of the others that are correlated as strongly, or more."""
    centred = np.asarray(ranks) - np.mean(ranks)
    strengths = np.abs(np.array(list(permutations(others))) @ centred)
    return float((strengths >= abs(np.asarray(others) @ centred) - 1e-9).mean())
