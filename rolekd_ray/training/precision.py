"""In which number format networks compute, and whether the hardware is fast at it."""

import logging
from contextlib import AbstractContextManager
from pathlib import Path

import torch

log = logging.getLogger(__name__)

CPU_INFO = Path("/proc/cpuinfo")


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 faster than float32: AMX, or AMD's AVX512-BF16; Ampere or later on a GPU.

    Intel's AVX512-BF16 has the instruction and no gain by it: a step of resnet56 teaching resnet20 took 1.45 times as
    long as in float32 on a Xeon of family 6, model 207, whose AMX the hypervisor hid; on an EPYC 0.45 times.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # Private, but the only names that all of torch >= 2.11 has for this.
    has_amx, has_avx512 = (
        getattr(torch.cpu, probe, lambda: False)() for probe in ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    )
    return has_amx or (has_avx512 and _is_amd())


def _is_amd() -> bool:
    try:
        return "AuthenticAMD" in CPU_INFO.read_text()
    except OSError:
        return False


def compute_dtype(setting: str, device: torch.device) -> torch.dtype:
    """Return the number format for `precision: auto | float32 | bfloat16` on a device.

    An explicit `bfloat16` is obeyed everywhere; where it is slower a warning says so.
    """
    fast = has_fast_bfloat16(device)
    if setting == "bfloat16" and not fast:
        log.warning("training.precision: on this %s bfloat16 is slower than float32", device.type)
    return torch.bfloat16 if setting == "bfloat16" or (setting == "auto" and fast) else torch.float32


def autocast(dtype: torch.dtype, device: torch.device) -> AbstractContextManager:
    """Return the context in which forward passes run; it does nothing for float32."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32, cache_enabled=False)
