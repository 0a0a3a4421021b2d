import logging
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from rolekd_ray.models.zoo import build_network
from rolekd_ray.training import precision
from rolekd_ray.training.precision import autocast, compute_dtype, has_fast_bfloat16

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def probes(monkeypatch, tmp_path):
    """Say what the CPU can do, and who made it."""

    def answer(vendor: str = "GenuineIntel", **answers: bool) -> None:
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
            monkeypatch.setattr(torch.cpu, name, partial(answers.get, name, False), raising=False)
        (tmp_path / "cpuinfo").write_text(f"processor : 0\nvendor_id : {vendor}\n")
        monkeypatch.setattr(precision, "CPU_INFO", tmp_path / "cpuinfo")

    return answer


def test_auto_goes_by_what_the_kernel_says_of_the_cpu():
    try:
        lines = precision.CPU_INFO.read_text().splitlines()
        flags = set(next(line for line in lines if line.startswith("flags")).split())
    except (OSError, StopIteration):
        pytest.skip("this system does not list its CPU's flags")
    amd = any(line.startswith("vendor_id") and "AuthenticAMD" in line for line in lines)
    fast = "amx_tile" in flags or ("avx512_bf16" in flags and amd)
    assert has_fast_bfloat16(CPU) == fast
    assert compute_dtype("auto", CPU) == (torch.bfloat16 if fast else torch.float32)


@pytest.mark.parametrize(
    "probe, vendor, fast",
    [
        ("_is_amx_tile_supported", "GenuineIntel", True),
        ("_is_avx512_bf16_supported", "AuthenticAMD", True),
        ("_is_avx512_bf16_supported", "GenuineIntel", False),
    ],
)
def test_auto_follows_the_probe(probes, probe, vendor, fast):
    probes(vendor)
    assert not has_fast_bfloat16(CPU) and compute_dtype("auto", CPU) == torch.float32
    probes(vendor, **{probe: True})
    assert has_fast_bfloat16(CPU) == fast
    assert compute_dtype("auto", CPU) == (torch.bfloat16 if fast else torch.float32)
    assert compute_dtype("float32", CPU) == torch.float32
    assert compute_dtype("bfloat16", CPU) == torch.bfloat16


def test_a_system_that_does_not_say_who_made_its_cpu(probes, monkeypatch, tmp_path):
    probes(_is_avx512_bf16_supported=True)
    monkeypatch.setattr(precision, "CPU_INFO", tmp_path / "none")
    assert compute_dtype("auto", CPU) == torch.float32


def test_a_torch_without_the_probes(monkeypatch):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert compute_dtype("auto", CPU) == torch.float32


@pytest.mark.parametrize("native", [False, True])
def test_a_gpu_is_asked_without_emulation(monkeypatch, native):
    asked = []

    def answer(including_emulation: bool = True) -> bool:
        asked.append(including_emulation)
        return native or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", answer)
    assert compute_dtype("auto", CUDA) == (torch.bfloat16 if native else torch.float32)
    assert asked == [False]


def test_bfloat16_is_obeyed_and_warned_of_where_it_is_slow(probes, caplog):
    probes()
    with caplog.at_level(logging.WARNING, logger=precision.__name__):
        assert compute_dtype("bfloat16", CPU) == torch.bfloat16
        assert "training.precision" in caplog.text and "slower than float32" in caplog.text
        caplog.clear()
        assert compute_dtype("float32", CPU) == compute_dtype("auto", CPU) == torch.float32
        assert not caplog.records


def loss_and_gradients(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.dtype]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(16, 1, 8, 8, generator=generator)
    labels = torch.randint(10, (16,), generator=generator)
    network = build_network("resnet8", num_classes=10, channels=1, seed=0).to(memory_format=torch.channels_last)
    with autocast(dtype, CPU):
        logits = network(images.contiguous(memory_format=torch.channels_last))
    loss = F.cross_entropy(logits.float(), labels)
    loss.backward()
    gradients = torch.cat([parameter.grad.flatten() for parameter in network.parameters()])
    return loss.detach(), gradients, logits.dtype


def test_bfloat16_works_on_this_cpu_and_is_close():
    exact, close = loss_and_gradients(torch.float32), loss_and_gradients(torch.bfloat16)
    assert exact[2] == torch.float32 and close[2] == torch.bfloat16
    assert torch.isclose(exact[0], close[0], rtol=0.02) and exact[0] != close[0]
    assert close[1].dtype == torch.float32  # weights and optimiser stay in full precision
    assert F.cosine_similarity(exact[1], close[1], dim=0) > 0.98


def test_float32_changes_nothing():
    with autocast(torch.float32, CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
        assert not torch.is_autocast_enabled("cpu")
