"""In which number format networks compute, and whether the hardware is fast at it."""

import logging
from contextlib import AbstractContextManager

import torch

log = logging.getLogger(__name__)


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 natively (AVX512-BF16 or AMX on a CPU, Ampere or later on a GPU).

    Elsewhere bfloat16 is emulated and slower than float32.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # Private, but the only names that all of torch >= 2.11 has for this.
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)


def compute_dtype(setting: str, device: torch.device) -> torch.dtype:
    """Return the number format for `precision: auto | float32 | bfloat16` on a device.

    An explicit `bfloat16` is obeyed everywhere; where the hardware emulates it a warning says so.
    """
    fast = has_fast_bfloat16(device)
    if setting == "bfloat16" and not fast:
        log.warning("training.precision: this %s emulates bfloat16, which is slower than float32", device.type)
    return torch.bfloat16 if setting == "bfloat16" or (setting == "auto" and fast) else torch.float32


def autocast(dtype: torch.dtype, device: torch.device) -> AbstractContextManager:
    """Return the context in which forward passes run; it does nothing for float32."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32, cache_enabled=False)
