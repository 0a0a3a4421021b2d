"""Who is mixed with whom, and the random numbers that say how."""

import torch
from torch import Tensor

from rolekd_ray.augment.randomness import below, stream_key, uniforms
from rolekd_ray.errors import DataError, TrainingError
from rolekd_ray.roles import Role

_PARTNER, _ORDER = -1, -2  # draw numbers below those of the mix itself


def draw_partners(
    agent: str,
    batch: Tensor,
    at: Tensor,
    *,
    pool: Tensor,
    seed: int,
    role: Role,
    epoch: int,
    legacy: bool,
    draws: int,
) -> tuple[Tensor, Tensor]:
    """Return each sample's partner, never itself, and uniform random numbers; see `Mixing.draw`.

    A partner is any other image of the pool, all equally likely (to 1 in 2^24 / P). Legacy: the next one in a random
    cycle through the batch, so also any other, and all samples have the same numbers.

    Args:
        agent: name of the mixing agent, which the random numbers and errors are of.
        legacy: mix within the batch.
        draws: how many numbers.

    Returns:
        Places in the dataset, (n,) int64, and (n, draws) float32 in [0, 1).

    Raises:
        DataError: the pool holds a single image.
        TrainingError: legacy, and the batch holds a single image.

    Source: legacy, `Good-DA-in-KD`, which permutes the batch until no image stays in its place. A cycle is such a
    permutation at once, and for a batch of one, where its loop would not end, there is an error.
    """
    if legacy:
        return _within_batch(agent, batch, at, (seed, role, epoch), draws)
    if len(pool) < 2:
        raise DataError(f"{agent}: mixes with other images that are trained on, got {len(pool)}; expected at least 2")
    samples = batch[at]
    key = stream_key(seed, role, epoch, agent)
    numbers = uniforms(key, samples, torch.tensor([_PARTNER, *range(draws)], device=samples.device))
    steps = below(numbers[:, 0], len(pool) - 1) + 1
    return pool[(torch.searchsorted(pool, samples) + steps) % len(pool)], numbers[:, 1:]


def _within_batch(
    agent: str, batch: Tensor, at: Tensor, stream: tuple[object, ...], draws: int
) -> tuple[Tensor, Tensor]:
    if len(batch) < 2:
        raise TrainingError(
            f"{agent}.legacy: mixes the images of a batch with each other, got a batch of {len(batch)}; "
            "expected at least 2 images"
        )
    key = stream_key(*stream, agent, *batch.tolist())  # the whole batch's, so that all workers draw the same
    places = torch.arange(len(batch), device=batch.device)
    numbers = uniforms(key, places, torch.tensor([_ORDER], device=batch.device))
    order = numbers[:, 0].argsort(stable=True)
    partner = torch.empty_like(order).index_copy_(0, order, order.roll(-1))
    return batch[partner[at]], uniforms(key, places[:1], draws).expand(len(at), draws)
