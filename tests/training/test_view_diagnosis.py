"""The diagnosis of views, with teachers that are tables of answers: order, pairing, what is kept, what is refused."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rolekd_ray.augment.t_stddev_meter import TStddevMeter
from rolekd_ray.augment.view_guard import passes_guard
from rolekd_ray.errors import DataError
from rolekd_ray.training.view_diagnosis import ViewDiagnosis, diagnose_views

CLASSES, IMAGES = 4, 90
PLACES = torch.arange(10, 10 + IMAGES)  # of a larger file
TABLE = torch.randn(200, CLASSES, generator=torch.Generator().manual_seed(0)) * 3


def plain(indices: Tensor, epoch: int) -> Tensor:
    return TABLE[indices]


def noisy(indices: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
    """Answers to views: other images' for two of three."""
    return torch.where((indices % 3 == 0)[:, None], TABLE[indices], TABLE[indices + 90]), torch.arange(len(indices))


def picking(indices: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
    """Answers to fewer views, in another order."""
    places = torch.arange(len(indices)).flip(0)[: max(1, len(indices) - 2)]
    return TABLE[indices[places] + 50], places


def destroyed(indices: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
    return TABLE[:1].expand(len(indices), -1), torch.arange(len(indices))


def found(agents: dict, **options) -> dict[str, ViewDiagnosis]:
    given = {"classes": CLASSES, "epochs": 3, "batch_size": 8, "seed": 0, "teacher": "table"}
    return diagnose_views(plain, agents, PLACES, **given | options)


def test_all_agents_see_every_image_once_an_epoch_in_one_order():
    seen: dict[str, list[tuple[int, list[int]]]] = {"a": [], "b": []}

    def recording(name: str):
        def answers(indices: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
            seen[name].append((epoch, indices.tolist()))
            return noisy(indices, epoch)

        return answers

    found({name: recording(name) for name in seen})
    assert seen["a"] == seen["b"]
    assert [len(batch) for _, batch in seen["a"]] == ([8] * 11 + [2]) * 3
    orders = [[index for at, batch in seen["a"] if at == epoch for index in batch] for epoch in range(3)]
    assert all(sorted(order) == PLACES.tolist() for order in orders)
    assert orders[0] != orders[1] != orders[2]
    first, seen["a"] = seen["a"], []
    found({"a": recording("a")}, seed=1)
    assert seen["a"] != first


def test_t_stddev_is_that_of_both_branches():
    meter, batches = TStddevMeter(CLASSES, teacher="table", images=IMAGES), []

    def answers(indices: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        batches.append(indices)
        return noisy(indices, epoch)

    got = found({"noisy": answers, "none": None})
    for indices in batches:
        meter.add(TABLE[indices], noisy(indices, 0)[0])
    assert got["noisy"].t_stddev == meter.result()
    assert got["none"].t_stddev.score != got["noisy"].t_stddev.score
    assert got["none"].t_stddev.ratio_to(got["none"].t_stddev).value == 1
    assert got["none"].kept == 1 and got["none"].kept_beyond_chance == 1


@pytest.mark.parametrize("answers", [noisy, picking])
def test_what_is_kept_against_a_loop(answers):
    pairs = []

    def recording(indices: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        logits, places = answers(indices, epoch)
        for row, place in zip(logits.tolist(), places.tolist()):
            before = TABLE[indices[place]].tolist()
            pairs.append((before.index(max(before)), row.index(max(row))))
        return logits, places

    got = found({"a": recording})["a"]
    kept = sum(x == y for x, y in pairs) / len(pairs)
    assert got.kept == pytest.approx(kept, rel=1e-12) and 0.1 < kept < 0.9
    befores, afters = zip(*pairs)
    chance = sum(befores.count(c) * afters.count(c) for c in range(CLASSES)) / len(pairs) ** 2
    assert got.kept_beyond_chance == pytest.approx((kept - chance) / (1 - chance), rel=1e-9)


def test_answers_that_never_change_keep_nothing_beyond_chance():
    """However common the class is that is always answered; and nothing was kept where nothing could be lost."""
    got = found({"destroyed": destroyed, "none": None})
    assert got["destroyed"].kept > 0.1 and got["destroyed"].kept_beyond_chance == pytest.approx(0, abs=1e-12)
    assert got["destroyed"].t_stddev.score == pytest.approx(got["none"].t_stddev.score / 2, rel=1e-6)
    assert replace(got["none"], chance=1.0).kept_beyond_chance == 0


def test_the_guard():
    got = found({"destroyed": destroyed, "noisy": noisy, "none": None})
    passing = {name: passes_guard(one.t_stddev, one.kept_beyond_chance) for name, one in got.items()}
    assert passing == {"destroyed": False, "noisy": True, "none": True}
    assert not passes_guard(got["none"].t_stddev, 0.4, 0.41) and passes_guard(got["none"].t_stddev, 0.41, 0.41)
    unsure = replace(got["none"].t_stddev, confidence=0.39)  # 0.1866… of the way from 1/4 to 1
    assert not passes_guard(unsure, 1.0, 0.19) and passes_guard(unsure, 1.0, 0.18)


def test_groups_of_nearly_all_images_are_refused():
    with pytest.raises(DataError, match="batch size: got 10 for 90 images; expected at most 9"):
        found({"none": None}, batch_size=10)
    assert found({"none": None}, batch_size=9)["none"].t_stddev.rows_per_group == 90


def test_a_last_batch_of_one_image_is_left_out():
    sizes = []

    def answers(indices: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        sizes.append(len(indices))
        return noisy(indices, epoch)

    diagnose_views(plain, {"a": answers}, PLACES[:81], classes=4, epochs=1, batch_size=8, seed=0, teacher="table")
    assert sizes == [8] * 10
    sizes.clear()
    diagnose_views(plain, {"a": answers}, PLACES[:10], classes=4, epochs=1, batch_size=1, seed=0, teacher="table")
    assert sizes == [1] * 10


def test_plain_data():
    plain_data = found({"noisy": noisy})["noisy"].to_dict()
    assert {"score", "interval", "kept", "kept_beyond_chance", "entropy", "one_hot_level"} <= plain_data.keys()
