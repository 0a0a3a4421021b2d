"""Random numbers without state: each is a function of a key, a sample and a draw number.

A generator's numbers depend on who asked before; these do not, so batches, workers, devices and restarts cannot change
a view.
"""

import hashlib
import math

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15  # odd, close to 2^64 / golden ratio: consecutive multiples fall far apart
_MULTIPLIERS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_MANTISSA_BITS = 24  # float32 holds every multiple of 2^-24 in [0, 1)


def stream_key(*parts: object) -> int:
    """Return the 64-bit key of a stream of random numbers, named by the text of its parts.

    Streams of different names are independent: `stream_key(seed, role, epoch, "policy")`.

    Returns:
        A whole number in [0, 2^64), the same on every machine and in every process.
    """
    text = "".join(f"{part}\x1f" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def uniforms(key: int, indices: Tensor, draws: int | Tensor) -> Tensor:
    """Return random numbers that depend on the key, the sample and the draw number alone.

    Args:
        key: a stream's key.
        indices: samples, (N,) int64.
        draws: how many numbers per sample, or which: draw numbers (D,) int64. `draws=3` is draws 0, 1, 2.

    Returns:
        (N, D) float32 in [0, 1), multiples of 2^-24, on the device of `indices`; bit-equal on every device.

    Source: SplitMix64 (Steele, Lea, Flood 2014): the sample's hash is its seed, the draw number its step.
    """
    numbers = torch.arange(draws, device=indices.device) if isinstance(draws, int) else draws
    seeds = _mixed(indices * _signed(_GOLDEN) + _signed(key))
    states = _mixed(seeds[:, None] + (numbers + 1) * _signed(_GOLDEN))
    return _shifted(states, 64 - _MANTISSA_BITS).float().mul_(2.0**-_MANTISSA_BITS)


def below(uniform: Tensor, count: int) -> Tensor:
    """Return whole numbers 0 … count - 1, equally likely, from uniforms; int64, shape as given."""
    return (uniform.double() * count).long()  # in float32 the product could round up to count


def normals(key: int, indices: Tensor, draws: int | Tensor) -> Tensor:
    """Return standard normal numbers that depend on the key, the sample and the draw number alone.

    Args:
        key: a stream's key; not one that `uniforms` is asked for, too: both would be the same draws.
        indices: samples, (N,) int64.
        draws: how many numbers per sample, or which; as in `uniforms`.

    Returns:
        (N, D) float32, finite, at most 5.42 in size, never 0, on the device of `indices`; devices may differ by a
        rounding.

    Source: inversion, Φ⁻¹(v) = √2 · erf⁻¹(2 v - 1), at the middles v = u + 2^-25 of the cells of `uniforms`.
    """
    uniform = uniforms(key, indices, draws).double()
    # In float64: kernels differ by a rounding between places in a tensor, which rounding to float32 wipes out
    return (torch.erfinv(2 * uniform - 1 + 2.0**-_MANTISSA_BITS) * math.sqrt(2)).float()


def _signed(word: int) -> int:
    """Return the int64 with the same 64 bits: torch has no uint64 arithmetic, but int64 wraps alike."""
    return word - (1 << 64) if word >= 1 << 63 else word


def _shifted(words: Tensor, bits: int) -> Tensor:
    return (words >> bits) & ((1 << (64 - bits)) - 1)  # torch's shift copies the sign bit; a logical one does not


def _mixed(words: Tensor) -> Tensor:
    """Return SplitMix64's finaliser: every input bit changes about half of the output bits."""
    for bits, multiplier in _MULTIPLIERS:
        words = (words ^ _shifted(words, bits)) * _signed(multiplier)
    return words ^ _shifted(words, 31)
