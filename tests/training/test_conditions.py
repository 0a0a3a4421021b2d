"""Noise and imbalance in the data of trainings: who sees which labels, in which order it is done, what is told."""

import json
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from training_helpers import tiny_settings

from rolekd_ray.config import Settings
from rolekd_ray.data.imbalance import imbalanced
from rolekd_ray.data.noise import noisy_labels
from rolekd_ray.data.splits import stratified_split
from rolekd_ray.errors import DataError
from rolekd_ray.policy.jobs import Job
from rolekd_ray.policy.policy import Policy
from rolekd_ray.roles import Role
from rolekd_ray.slots.interface import Task
from rolekd_ray.slots.worker import TrainingWorker
from rolekd_ray.training import data as module
from rolekd_ray.training.checkpoint import read_description
from rolekd_ray.training.conditions import condition_lines, describe_images, describe_run_images
from rolekd_ray.training.data import open_images, open_training_data
from rolekd_ray.training.epochs import new_trainer
from rolekd_ray.training.evaluation import predict
from rolekd_ray.training.final import FinalTraining, train_final
from rolekd_ray.training.networks import load_network

SYMMETRIC = "data.noise={kind: symmetric, rate: 0.6, seed: 2}"
PAIR_FLIP = "data.noise={kind: pair_flip, rate: 1.0}"
STEEP = "data.imbalance={kind: power_law, gamma: 0.6, n_min: 8}"


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def opened(*overrides: str, train: int | None = None):
    return open_training_data(tiny_settings(*overrides).data, train=train)


# ---- who sees which labels


conditions = st.lists(
    st.sampled_from([
        SYMMETRIC, PAIR_FLIP, STEEP, "data.noise={kind: symmetric_other, rate: 1}",
        "data.imbalance={kind: exponential, ratio: 10, images: random, seed: 5}",
        "data.imbalance={kind: exponential, ratio: 3, n_max: 60}",
    ]), max_size=2,
)  # fmt: skip


@hypothesis_settings(max_examples=12, deadline=None)
@given(conditions, st.none() | st.integers(60, 100), st.integers(50, 200), st.integers(0, 3))
def test_validation_is_the_same_images_with_clean_labels_under_any_conditions(given_ones, train, validation, seed):
    split = [f"data.validation={validation}", f"data.split_seed={seed}"]
    plain, found = opened(*split), opened(*split, *given_ones, train=train)
    assert torch.equal(found.validation, plain.validation)
    assert torch.equal(found.image_set.labels, plain.image_set.labels)
    assert torch.equal(found.labels[found.validation], plain.image_set.labels[found.validation])
    assert set(found.train.tolist()) <= set(plain.train.tolist())
    assert train is None or len(found.train) == train
    assert all(map(torch.equal, found.statistics, plain.statistics)), "all severities normalise alike"


@pytest.mark.parametrize("noise", [SYMMETRIC, PAIR_FLIP])
def test_a_label_does_not_depend_on_which_images_are_trained_on(noise):
    """Nor on imbalance, and a validation image that is trained on under another split gets its own noise."""
    settings = tiny_settings(noise).data
    clean = open_images(settings, "train").labels
    expected = noisy_labels(clean, 10, settings.noise)
    seen = Counter()
    for train, overrides in ((60, ()), (None, ()), (70, (STEEP,)), (None, ("data.split_seed=1",))):
        found = opened(noise, *overrides, train=train)
        assert torch.equal(found.labels[found.train], expected[found.train])
        seen.update((found.labels != clean).nonzero().flatten().tolist())
    assert len(seen) > 0.5 * len(clean), "the comparison says something"


def test_the_test_file_stays_as_it_is():
    plain, under = (open_images(tiny_settings(*o).data, "test") for o in ((), (PAIR_FLIP, STEEP)))
    assert torch.equal(plain.labels, under.labels) and len(under) == 600


def test_nothing_is_copied(monkeypatch):
    image_set = open_images(tiny_settings().data, "train")
    monkeypatch.setattr(module, "load_image_set", lambda *a, **k: image_set)
    before = image_set.labels.clone()
    assert opened().labels is image_set.labels
    found = opened(SYMMETRIC, STEEP)
    assert found.image_set is image_set and torch.equal(image_set.labels, before)
    settings = tiny_settings(SYMMETRIC, STEEP)
    trainer = new_trainer(settings, found, settings.search_space(), torch.device("cpu"), None)
    assert trainer.images is image_set.images


# ---- the order of things


def test_imbalance_thins_what_is_left_of_validation_and_train_draws_from_that():
    settings = tiny_settings(STEEP).data
    labels, names = (image_set := open_images(settings, "train")).labels, image_set.class_names
    left = stratified_split(labels, train=None, validation=60, seed=0).train
    whole = opened(STEEP)
    assert torch.equal(whole.train, imbalanced(labels, left, names, settings.imbalance))
    counts = labels[whole.train].bincount(minlength=10)
    assert counts[0] == labels[left].bincount().min() and counts[-1] == 8
    few = opened(STEEP, train=120)
    assert set(few.train.tolist()) < set(whole.train.tolist())
    shares = labels[few.train].bincount(minlength=10) - counts * 120 / counts.sum()
    assert shares.abs().max() < 1, "in the classes' proportions"


def test_what_imbalance_does_not_leave_is_refused():
    total = len(opened(STEEP).train)
    with pytest.raises(DataError) as error:
        opened(STEEP, train=total + 1)
    assert str(error.value) == (
        f"data.train or final.train: got {total + 1}; expected at most {total}, which validation and imbalance leave"
    )
    with pytest.raises(DataError, match=r"got 15, which leaves none of label \d.*; expected more, or less imbalance$"):
        opened("data.imbalance={kind: exponential, ratio: 50}", train=15)


def test_photographs(shared_data, tmp_path, monkeypatch):
    monkeypatch.setenv("ROLEKD_CACHE", str(tmp_path / "cache"))
    table = next(pq.ParquetFile(shared_data / "cifar10" / "train.parquet").iter_batches(batch_size=400))
    pq.write_table(pa.Table.from_batches([table]), tmp_path / "train.parquet")
    source = [f"data={{source: parquet, path: {tmp_path}, validation: 100}}"]
    plain = opened(*source)
    found = opened(*source, "data.noise={kind: symmetric, rate: 0.4}", "data.imbalance={kind: exponential, ratio: 5}")
    assert torch.equal(found.validation, plain.validation)
    counts = found.image_set.labels[found.train].bincount(minlength=10).tolist()
    smallest = int(plain.image_set.labels[plain.train].bincount().min())
    assert counts == sorted(counts, reverse=True) and (counts[0], counts[-1]) == (smallest, smallest // 5)
    wrong = (found.labels != found.image_set.labels).nonzero().flatten()
    assert len(wrong) > 40 and not set(wrong.tolist()) & set(found.validation.tolist())


# ---- what is told


def test_what_came_out_is_counted():
    settings = tiny_settings(SYMMETRIC, STEEP, "final.train=null")
    data = open_training_data(settings.data, train=90)
    found = describe_images(data, settings.data)
    clean, given_labels = data.image_set.labels.tolist(), data.labels.tolist()
    wrong = sum(clean[i] != given_labels[i] for i in data.train.tolist())
    counts = Counter(clean[i] for i in data.train.tolist())
    assert found == {
        "images": 90,
        "class_counts": [counts[label] for label in range(10)],
        "imbalance": {
            "kind": "power_law", "n_max": None, "images": "first", "seed": 0, "gamma": 0.6, "n_min": 8
        },
        "noise": {
            "kind": "symmetric", "rate": 0.6, "seed": 2,
            "wrong": wrong, "wrong_share": wrong / 90, "expected_wrong_share": pytest.approx(0.54),
        },
    }  # fmt: skip
    assert json.loads(json.dumps(found)) == found and 30 < wrong < 65
    both = describe_run_images(data, settings)
    assert both["search"] == found
    assert both["final"]["images"] == len(open_training_data(settings.data, train=None).train) > 90


def test_without_conditions_images_are_counted_and_nothing_is_said():
    found = describe_images(opened(train=60), tiny_settings().data)
    assert (found["images"], sum(found["class_counts"]), found.keys()) == (60, 60, {"images", "class_counts"})
    assert condition_lines(found) == []


def test_a_line_for_each_condition():
    noise = {"kind": "symmetric", "rate": 0.2, "seed": 0, "wrong": 728, "wrong_share": 0.182}
    found = {"images": 4000, "class_counts": [400] * 10, "noise": noise}
    assert condition_lines(found) == ["labels: 18.2 % of 4,000 wrong (symmetric, rate 0.2, seed 0)"]
    power = {"kind": "power_law", "gamma": 0.2, "n_min": 250, "images": "first"}
    found = {"images": 8662, "class_counts": [5000, 858, 250], "imbalance": power}
    assert condition_lines(found) == ["images: 8,662, 5,000 to 250 per class (power_law, gamma 0.2, first images)"]
    found["imbalance"] = {"kind": "exponential", "ratio": 100.0, "images": "random"}
    assert condition_lines(found | {"noise": noise}) == [
        "images: 8,662, 5,000 to 250 per class (exponential, ratio 100, random images)",
        "labels: 18.2 % of 8,662 wrong (symmetric, rate 0.2, seed 0)",
    ]


# ---- real trainings: labels that all say the next digit are what is learnt, and validation knows better

LEARNING = ("data.train=null", "final.train=null", "data.validation=300", "training.batch_size=50", "final.epochs=6",
            "training.precision=float32", PAIR_FLIP)  # fmt: skip


def answers_of(folder, settings: Settings) -> tuple[float, float]:
    """Share of a student's answers that are the true digit, and the next one, on images it has not seen."""
    data = open_training_data(settings.data, train=None)
    network, _ = load_network(folder, Role.STUDENT)
    held_out = data.image_set.subset(data.validation)
    trainer = new_trainer(settings, data, settings.search_space(), torch.device("cpu"), None)
    said = predict(network, held_out.images, trainer.views, dtype=torch.float32).argmax(1)
    true, following = (said == held_out.labels), (said == (held_out.labels + 1) % 10)
    return true.double().mean().item(), following.double().mean().item()


def test_a_final_training_learns_noisy_labels_and_is_judged_by_clean_ones(tmp_path):
    settings = tiny_settings(*LEARNING)
    metrics = train_final(FinalTraining(settings, Role.STUDENT, tmp_path / "net"))
    true, following = answers_of(tmp_path / "net", settings)
    assert following > 0.85 and true < 0.1 and metrics["validation_accuracy"] == pytest.approx(true)
    described = read_description(tmp_path / "net")
    assert described["data"]["noise"] == {"kind": "pair_flip", "rate": 1.0, "seed": 0}
    assert described["trained_on"]["noise"]["wrong_share"] == 1.0 and described["trained_on"]["images"] == 897


def test_an_interval_learns_noisy_labels_and_is_judged_by_clean_ones(tmp_path):
    settings = tiny_settings(*LEARNING, STEEP)
    worker = TrainingWorker(Task(settings, tmp_path, (Role.STUDENT,)))
    metrics = worker.train(Job(0, 0, None, 0, 8, 8, {Role.STUDENT: Policy()}))
    true, following = answers_of(tmp_path / "000-0000", settings)
    assert following > 0.5 > 0.2 > true and metrics["score"] == pytest.approx(true)
    described = read_description(tmp_path / "000-0000")["trained_on"]
    assert described == json.loads(json.dumps(describe_images(worker.data, settings.data)))
    assert described["class_counts"][-1] == 8 and described["noise"]["wrong"] == described["images"]
