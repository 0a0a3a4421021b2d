"""T. stddev beside what students learn, on photographs: the study's question, on a small scale."""

from pathlib import Path

import pytest
import torch

from rolekd_ray.config import Settings, load_settings
from rolekd_ray.reporting.diagnosis_table import diagnosis_notes, diagnosis_table
from rolekd_ray.roles import Role
from rolekd_ray.search.diagnosis import diagnose
from rolekd_ray.training.final import FinalTraining, train_final

CHAINS = ("none", "cutout", "randaugment", "trivial_augment_wide", "mixup", "cutmix", "cutmix+pick")


def few_photographs(data: Path, *more: str) -> Settings:
    return load_settings(
        "cifar10_reduced",
        [f"data.path={data}", "data.image_size=16", "data.train=1000", "data.validation=500", "final.train=1000",
         "teacher.model=resnet20", "student.model=resnet8", "training.batch_size=64", "training.precision=float32",
         "base_augmentation={crop_padding_pixels: 2, flip: true, cutout_pixels: 0}", "distill.branches={}",
         "agents.student.cutout.pixels=8", *more],
    )  # fmt: skip


@pytest.mark.slow
def test_t_stddev_beside_test_losses(shared_data, tmp_path, capsys):
    """Invariant 14: reported, for seven chains and one seed; what is asserted is that they are ordered at all."""
    torch.set_num_threads(1)
    data, teacher = shared_data / "cifar10", tmp_path / "teacher"
    train_final(FinalTraining(few_photographs(data, "final.epochs=40"), Role.TEACHER, teacher))
    for chain in CHAINS:
        settings = few_photographs(data, "final.epochs=20", f"agents.student.chain={chain}")
        train_final(FinalTraining(settings, Role.STUDENT, tmp_path / chain, teacher=teacher))
    students = {chain: [tmp_path / chain] for chain in CHAINS}
    found = diagnose(few_photographs(data), CHAINS, teacher=teacher, students=students, epochs=5)
    with capsys.disabled():
        from rich import print as show

        show(diagnosis_table(found.to_dict()))
        show(*diagnosis_notes(found.to_dict()), sep="\n")
    score = {row.agents: row.views.t_stddev.score for row in found.rows}
    assert score["cutmix+pick"] < score["cutmix"] < score["none"]
    assert found.correlation is not None and found.correlation.count >= 6
    assert found.correlation.spearman.coefficient is not None
