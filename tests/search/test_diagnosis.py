"""The diagnosis of agents on a trained teacher: the order of what is known to be weaker and stronger, and the guard."""

import json
from pathlib import Path

import pytest
import torch

from rolekd_ray.augment.t_stddev_meter import TStddevMeter
from rolekd_ray.config import Settings, load_settings
from rolekd_ray.errors import CheckpointError, ConfigError
from rolekd_ray.policy.policy import OpSetting, Policy
from rolekd_ray.policy.schedule import Schedule, Segment
from rolekd_ray.roles import Role
from rolekd_ray.search import prefilter
from rolekd_ray.search.diagnosis import Diagnosis, DiagnosisRow, diagnose
from rolekd_ray.search.evaluation import evaluate_checkpoint
from rolekd_ray.search.prefilter import filtered_policies, measured_policies
from rolekd_ray.training.data import open_training_data
from rolekd_ray.training.final import FinalTraining, train_final
from rolekd_ray.training.networks import load_network

torch.set_num_threads(1)

CHAINS = ("cutmix", "cutmix+pick", "cutout")  # Cutout of 16 pixels leaves nothing of a digit's 8: a grey image


def tiny_settings(*more: str) -> Settings:
    return load_settings(
        "quickstart",
        ["data.train=200", "data.validation=50", "final.train=200", "final.epochs=12", "teacher.model=resnet8",
         "training.batch_size=20", "training.precision=float32", *more],
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A teacher, and students that saw nothing but digits, or nothing but grey images."""
    folder = tmp_path_factory.mktemp("diagnosis")
    teacher = folder / "teacher"
    train_final(FinalTraining(tiny_settings(), Role.TEACHER, teacher))
    for chain in ("none", "cutout"):
        settings = tiny_settings(f"agents.student.chain={chain}", "final.epochs=6")
        train_final(FinalTraining(settings, Role.STUDENT, folder / chain, teacher=teacher))
    return folder


@pytest.fixture(scope="module")
def found(trained) -> Diagnosis:
    students = {"none": [trained / "none"], "cutout": [trained / "cutout"]}
    return diagnose(tiny_settings(), CHAINS, teacher=trained / "teacher", students=students, epochs=8)


def row(found: Diagnosis, agents: str) -> DiagnosisRow:
    return next(one for one in found.rows if one.agents == agents)


def test_stronger_agents_score_lower(found):
    """Invariant 13: CutMix with picking by the teacher's entropy < CutMix < the identity; by more than chance."""
    score = {one.agents: one.views.t_stddev for one in found.rows}
    assert score["cutmix+pick"].score < score["cutmix"].score < score["none"].score
    assert score["cutmix"].ratio_to(score["none"]).high < 1
    assert score["cutmix+pick"].ratio_to(score["none"]).high < 1
    assert [one.agents for one in found.rows] == sorted(score, key=lambda name: score[name].score)
    assert score["cutmix+pick"].entropy > score["cutmix"].entropy > score["none"].entropy


def test_destroyed_images_score_lowest_and_teach_worst_and_the_guard_knows(found):
    """Invariant 15."""
    destroyed, identity = row(found, "cutout"), row(found, "none")
    assert found.rows[0] is destroyed
    assert destroyed.views.t_stddev.ratio_to(identity.views.t_stddev).value == pytest.approx(0.5, abs=1e-3)
    assert destroyed.test_loss > identity.test_loss + 0.5 and destroyed.test_accuracy < 0.3 < identity.test_accuracy
    assert not destroyed.passes_guard and destroyed.views.kept_beyond_chance == pytest.approx(0, abs=1e-6)
    assert all(one.passes_guard for one in found.rows if one is not destroyed)
    assert found.correlation is None  # of three that have students and pass


def test_the_students_metrics_are_those_of_evaluate(trained, found):
    metrics = evaluate_checkpoint(trained / "none")
    assert row(found, "none").test_loss == metrics["test_loss"]
    assert row(found, "cutmix").test_loss is None
    both = diagnose(
        tiny_settings(), [], teacher=trained / "teacher", students={"none": [trained / "none", trained / "cutout"]},
        epochs=1,
    ).rows[0]  # fmt: skip
    other = evaluate_checkpoint(trained / "cutout")
    assert both.students == 2 and both.test_loss == pytest.approx((metrics["test_loss"] + other["test_loss"]) / 2)


def test_plain_images_against_the_network_itself(trained, found):
    """Without base augmentation x is the image: the same answers in another order give the same up to chance."""
    network, _ = load_network(trained / "teacher", Role.TEACHER)
    data = open_training_data(tiny_settings().data, train=200)
    mean, std = (value.view(-1, 1, 1) for value in data.statistics)
    got = row(found, "none").views
    assert (found.images, found.batch_size, got.t_stddev.groups) == (200, 10, 32)
    with torch.no_grad():
        logits = network((data.image_set.images[data.train] / 255 - mean) / std)
    chances = logits.double().softmax(1)
    assert got.t_stddev.confidence == pytest.approx(chances.amax(1).mean().item(), abs=1e-4)
    assert got.t_stddev.entropy == pytest.approx(-(chances * chances.log()).sum(1).mean().item(), abs=1e-4)
    meter = TStddevMeter(10, teacher="the same", images=200)
    for epoch in range(30):
        order = torch.randperm(200, generator=torch.Generator().manual_seed(epoch))
        for batch in logits[order].split(10):
            meter.add(batch, batch)
    assert got.t_stddev.score == pytest.approx(meter.result().score, rel=0.2)


def test_plain_data(found):
    plain = found.to_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert [one["agents"] for one in plain["rows"]] == [one.agents for one in found.rows]
    assert plain["rows"][-1]["ratio"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert [one["passes_guard"] for one in plain["rows"]] == [False, True, True, True]


def test_the_policy_is_the_schedules_last_and_its_chain_gives_way(trained):
    space = tiny_settings().search_space()
    shifts = Policy((OpSetting("translate_x", 10, 9), OpSetting("translate_y", 10, 9)))

    def scores(*segments: Segment) -> dict[str, float]:
        schedule = Schedule(space, {Role.STUDENT: segments})
        got = diagnose(tiny_settings(), ["policy"], teacher=trained / "teacher", schedule=schedule, epochs=1)
        return {one.agents: one.views.t_stddev.score for one in got.rows}

    calm = scores(Segment(1, shifts), Segment(1, Policy()))
    assert calm["policy"] == calm["none"]
    moved = scores(Segment(1, Policy()), Segment(1, shifts))
    assert moved["policy"] < 0.95 * moved["none"]
    assert moved == scores(Segment(1, Policy(shifts.settings, choices={"agents": "none"})))


def test_picking_by_a_student_asks_that_student(trained):
    settings = tiny_settings("agents.student.pick.criterion=student_entropy", "final.train=100")
    with pytest.raises(ConfigError, match=r"got no student, whom .* student_entropy asks; .*--students cutmix\+pick="):
        diagnose(settings, ["cutmix+pick"], teacher=trained / "teacher")
    evolved = Policy(choices={"pick.criterion": "divergence"})
    schedule = Schedule(settings.search_space(), {Role.STUDENT: (Segment(1, evolved),)})
    with pytest.raises(ConfigError, match=r"whom pick\.criterion divergence asks"):
        diagnose(settings, ["cutmix+pick"], teacher=trained / "teacher", schedule=schedule)
    views = []
    for name in ("none", "cutout"):
        students = {"cutmix + pick": [trained / name]}  # written with spaces
        got = diagnose(
            settings, ["cutmix+pick"], teacher=trained / "teacher", students=students, epochs=1, batch_size=10
        )
        views.append(row(got, "cutmix+pick").views)
    assert views[0] != views[1]


@pytest.mark.parametrize("pick, kept", [("runs: 3", 15), ("keep: 4", 4), ("fraction: 1", 20)])
def test_picking_of_another_number_than_there_are_images_is_refused_before_it_is_measured(trained, pick, kept):
    told: list[str] = []
    settings = tiny_settings(f"agents.student.pick={{{pick}}}")
    words = rf"agents\.student\.pick: keeps {kept} views of a batch of 10 images, got .*; expected as many as"
    with pytest.raises(ConfigError, match=words):
        diagnose(settings, ["cutmix", "cutmix+pick"], teacher=trained / "teacher", tell=told.append)
    assert not told


def test_what_is_refused_is_refused_at_once_and_all_of_it(trained):
    with pytest.raises(ConfigError) as refused:
        diagnose(
            tiny_settings(), ["policy", "learned", "cutmxi"], teacher=trained / "gone", students={"mixup": [trained]}
        )
    text = str(refused.value)
    for words in ("'policy': got no schedule", "got learned, whose state", "'cutmix'?", "unknown agents 'mixup'"):
        assert words in text
    assert len(refused.value.problems) == 4
    with pytest.raises(CheckpointError, match="gone: no such checkpoint"):
        diagnose(tiny_settings(), [], teacher=trained / "gone")
    with pytest.raises(CheckpointError, match="held out here"):
        diagnose(tiny_settings("data.validation=60"), [], teacher=trained / "teacher")


# ---- the filter of initial policies


def test_the_filter_takes_moving_policies_before_still_ones_and_destroyed_ones_last(trained):
    settings = tiny_settings()
    space, data = settings.search_space(), open_training_data(settings.data, train=100)
    teacher, _ = load_network(trained / "teacher", Role.TEACHER)
    still, moving = Policy(), Policy((OpSetting("translate_x", 10, 5), OpSetting("rotate", 10, 9)))
    destroyed = Policy(choices={"agents": "cutout"})
    candidates = [still, destroyed, moving]
    given = {"settings": settings, "data": data, "space": space, "device": torch.device("cpu")}
    scores = [one.t_stddev.score for one in measured_policies(candidates, teacher, **given)]
    assert scores[1] < scores[2] < scores[0]
    assert filtered_policies(candidates, 3, teacher, **given) == [moving, still, destroyed]


def test_the_filter_compares_policies_that_pick_more_and_fewer(trained):
    """Each as if it kept as many views as there are images; T. stddev of other numbers has another level."""
    settings = tiny_settings("agents.student.chain=policy+pick", "agents.student.pick.runs=3")
    data = open_training_data(settings.data, train=100)
    teacher, _ = load_network(trained / "teacher", Role.TEACHER)
    given = {"settings": settings, "data": data, "space": settings.search_space(), "device": torch.device("cpu")}
    shifts = (OpSetting("translate_x", 10, 5),)
    scalars = ({"pick.fraction": 0.2}, {"pick.fraction": 1.0}, {"pick.keep": 3.0})
    candidates = [*(Policy(shifts, values) for values in scalars), Policy(choices={"agents": "policy"})]
    few, many, counted, still = (one.t_stddev for one in measured_policies(candidates, teacher, **given))
    assert few == many == counted != still and len(filtered_policies(candidates, 2, teacher, **given)) == 2


def test_the_filter_looks_at_images_of_all_classes(trained, monkeypatch):
    """Not at the first ones: a folder of images is in order of its classes."""
    seen = []
    real = prefilter.diagnose_views
    monkeypatch.setattr(
        prefilter, "diagnose_views", lambda *a, **k: (seen.append((a[2], k["batch_size"])), real(*a, **k))[1]
    )
    monkeypatch.setattr(prefilter, "IMAGES", 100)
    settings = tiny_settings()
    data = open_training_data(settings.data, train=200)
    teacher, _ = load_network(trained / "teacher", Role.TEACHER)
    given = {"settings": settings, "data": data, "space": settings.search_space(), "device": torch.device("cpu")}
    (got,) = measured_policies([Policy()], teacher, **given)
    ((indices, batch_size),) = seen
    assert len(indices.unique()) == 100 and batch_size == 2 and got.t_stddev.groups == 10
    assert indices[0] == data.train.min() and indices[-1] == data.train.max()
    assert (data.image_set.labels[indices].bincount(minlength=10) > 0).all()
