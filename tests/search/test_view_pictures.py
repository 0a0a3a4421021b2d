"""Pictures of views: the views of training itself, of the right images, policies, epochs and learned state."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as torchvision

from rolekd_ray.augment.randomness import normals, stream_key
from rolekd_ray.config import load_settings
from rolekd_ray.data.images import ImageSet
from rolekd_ray.errors import CheckpointError, ConfigError
from rolekd_ray.policy.jobs import Job
from rolekd_ray.policy.policy import OpSetting, Policy
from rolekd_ray.policy.schedule import Schedule, Segment, schedule_text
from rolekd_ray.reporting.pictures import Block
from rolekd_ray.roles import Role
from rolekd_ray.search import pictures
from rolekd_ray.search.pictures import draw_views, first_of_each_class, pixels_of
from rolekd_ray.search.run_directory import create_run
from rolekd_ray.slots.interface import Task
from rolekd_ray.slots.worker import TrainingWorker
from rolekd_ray.training.checkpoint import load_checkpoint, save_checkpoint
from rolekd_ray.training.data import TrainingData, open_training_data
from rolekd_ray.training.final import FinalTraining, train_final

torch.set_num_threads(1)
TINY = ["data.train=60", "data.validation=60", "final.train=50", "final.epochs=2", "teacher.model=resnet8",
        "training.batch_size=20", "training.precision=float32", "search.epochs=4"]  # fmt: skip
PLAIN = ["base_augmentation={crop_padding_pixels: 0, flip: false, cutout_pixels: 0}"]
AGENTS = ("none", "policy", "randaugment", "trivial_augment_wide", "autoaugment", "augmix", "cutout", "learned",
          "mixup", "cutmix")  # fmt: skip


@pytest.fixture
def blocks(monkeypatch) -> list[list[Block]]:
    """The blocks of every picture that is drawn; drawing them is tested elsewhere."""
    seen = []

    class Seen(pictures.Grid):
        def __init__(self, rows, drawn):
            super().__init__(rows, drawn)
            seen.append(drawn)

    monkeypatch.setattr(pictures, "Grid", Seen)
    return seen


@pytest.fixture
def draw(blocks, tmp_path):
    """Draw and return the blocks: the image's, then the teacher's and the student's."""

    def call(what, **options) -> list[Block]:
        draw_views(str(what), tmp_path / "drawn.png", **options)
        return blocks[-1]

    return call


def digits(*overrides: str, train: int | None = 60) -> TrainingData:
    return open_training_data(load_settings("quickstart", [*TINY, *overrides]).data, train=train)


def title(block: Block) -> str:
    return " / ".join(block.title)


# ---- which images


def test_rows_are_the_first_training_images_one_of_each_class_first():
    labels = torch.tensor([2, 2, 0, 1, 0, 2, 1, 1, 0])
    places = torch.tensor([1, 2, 4, 5, 6, 7])  # labels 2 0 0 2 1 1
    assert first_of_each_class(labels, places, 6).tolist() == [2, 6, 1, 4, 7, 5]
    assert first_of_each_class(labels, places, 2).tolist() == [2, 6]


@pytest.mark.parametrize("conditions", [[], ["data.imbalance={kind: exponential, ratio: 4}"]])
def test_rows_are_neither_validation_nor_test(draw, conditions):
    shown = draw("quickstart", overrides=[*TINY, *conditions], images=30, draws=1)[0]
    data = digits(*conditions)
    trained = {data.image_set.images[at].numpy().tobytes() for at in data.train}
    held_out = {data.image_set.images[at].numpy().tobytes() for at in data.validation}
    rows = [np.ascontiguousarray(image.transpose(2, 0, 1)).tobytes() for image in shown.images[0]]
    assert len(set(rows)) == 30 and set(rows) <= trained and not set(rows) & held_out
    assert shown.images.shape == (1, 30, 8, 8, 1)


def test_partners_of_mixing_come_from_the_images_that_are_trained_on(draw):
    """Ten images are trained on: a view by mixup at epoch e is a blend of two of them."""
    _, block, _ = draw("quickstart", overrides=[*TINY, *PLAIN, "data.train=10"], agents="cutmix", images=10, draws=4)
    pool = digits(train=10).image_set.images[digits(train=10).train].numpy()[:, 0]
    for image in block.images.reshape(-1, 8, 8):
        assert all((pool[:, y, x] == image[y, x]).any() for y in range(8) for x in range(8))
        assert max((each == image).sum() for each in pool) >= 32


# ---- pixels


@pytest.mark.parametrize("channels", [1, 3])
def test_normalised_bytes_come_back_exactly(channels):
    every = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, channels, 16, 16)
    mean, std = torch.tensor([0.4914, 0.4822, 0.4465])[:channels], torch.tensor([0.2470, 0.2435, 0.2616])[:channels]
    views = (every.float() / 255 - mean[:, None, None]) / std[:, None, None]
    assert torch.equal(pixels_of(views, mean, std), every)
    assert pixels_of(torch.full((1, channels, 1, 1), 99.0), mean, std).unique().tolist() == [255]
    assert pixels_of(torch.full((1, channels, 1, 1), -99.0), mean, std).unique().tolist() == [0]


@pytest.fixture(scope="module")
def photographs(shared_data, tmp_path_factory) -> list[str]:
    """Settings of the first 200 training photographs of CIFAR-10, without base augmentation."""
    folder = tmp_path_factory.mktemp("photographs")
    rows = next(pq.ParquetFile(shared_data / "cifar10" / "train.parquet").iter_batches(batch_size=200))
    pq.write_table(pa.Table.from_batches([rows]), folder / "train.parquet")
    return [f"data.path={folder}", *PLAIN, "data.train=60", "data.validation=60"]


def test_the_view_of_none_is_the_image_on_digits(draw):
    image, *views = draw("quickstart", overrides=[*TINY, *PLAIN], agents="none", images=12)
    for block in views:
        assert block.images.shape == (3, 12, 8, 8, 1)
        assert all(np.array_equal(view, image.images[0]) for view in block.images)


def test_the_view_of_none_is_the_image_on_photographs(draw, photographs):
    image, *views = draw("cifar10_reduced", overrides=photographs, agents="none", images=12, draws=1)
    assert image.images.shape == (1, 12, 32, 32, 3)
    assert all(np.array_equal(block.images, image.images) for block in views)


# ---- blank, saturated, wrongly coloured

BLANK = {"trivial_augment_wide": 0.16}
"""Most views of one colour on digits: torchvision's own moves by up to 32 pixels, too, and blanks 0.10 of them."""
MEDIAN_SHIFT, HIGH_SHIFT, MEAN_SHIFT = 15, 90, 12
"""Distance of a view's mean from its image's, in grey levels: median, 95th percentile, and mean with its sign.

Measured over 2,000 views each, on digits and on photographs: at most 11.2, 73.4 and 4.1.
"""


def check_views(name: str, image: Block, views: list[Block], *, blank: float) -> None:
    for block in (each for each in views if "before" not in each.title[0]):
        before, after = image.images.astype(float), block.images.astype(float)
        constant = (after.max((2, 3)) == after.min((2, 3))).all(-1)
        assert constant.mean() <= blank, (name, constant.mean())
        shift = after.mean((2, 3, 4)) - before.mean((2, 3, 4))
        assert abs(shift.mean()) <= MEAN_SHIFT, (name, shift.mean())
        assert np.median(np.abs(shift)) <= MEDIAN_SHIFT and np.quantile(np.abs(shift), 0.95) <= HIGH_SHIFT, name
        extremes = [((pixels == 0) | (pixels == 255)).mean() for pixels in (before, after)]
        assert extremes[1] <= extremes[0] + 0.1, (name, extremes)
        changed = (after != before).any((2, 3, 4)).mean()
        assert changed == 0 if name in ("none", "policy") else changed > 0.2, (name, changed)  # no policy fires


@pytest.mark.parametrize("name", AGENTS)
def test_no_digit_becomes_blank_or_saturated(draw, name):
    overrides = [*TINY, *PLAIN, "agents.student.cutout.pixels=4", "agents.teacher.cutout.pixels=4"]
    image, *views = draw("quickstart", overrides=overrides, agents=name, images=40, draws=4)
    check_views(name, image, views, blank=BLANK.get(name, 0.01))


@pytest.mark.parametrize(  # digits show most faults already
    "name", [name if name in ("augmix", "learned") else pytest.param(name, marks=pytest.mark.slow) for name in AGENTS]
)
def test_no_photograph_becomes_blank_or_saturated(draw, name, photographs):
    image, *views = draw("cifar10_reduced", overrides=photographs, agents=name, images=40, draws=4)
    check_views(name, image, views, blank=0.03)


RED = torch.tensor([200, 30, 10], dtype=torch.uint8).view(3, 1, 1).expand(3, 16, 16).contiguous()


@pytest.mark.parametrize(
    ("op", "expected"),
    [
        ("invert", torchvision.invert(RED)),
        ("solarize", torchvision.solarize(RED, 128)),
        ("posterize", torchvision.posterize(RED, 3)),
        ("brightness", torchvision.adjust_brightness(RED, 0.5)),
        ("color", torchvision.adjust_saturation(RED, 0.5)),
    ],
)
def test_channels_keep_their_order(draw, monkeypatch, op, expected):
    """Red, through a view and back, is what torchvision makes of it: within a grey level, in each channel."""
    images = torch.stack([RED, RED.flip(0), RED, RED])  # blue, too, else a channel would be constant
    image_set = ImageSet("made", images, torch.tensor([0, 1, 0, 1]), ("red", "blue"))
    data = TrainingData(image_set, torch.arange(3), torch.tensor([3]))
    monkeypatch.setattr(pictures, "open_training_data", lambda settings, train: data)
    magnitude = {"solarize": 128.0, "posterize": 3.0, "brightness": 0.5, "color": 0.5}.get(op)
    space = {"ops": {op: {"range": [magnitude, magnitude]} if magnitude else {}}, "counts": {1: 1.0}}
    settings = load_settings("cifar10_reduced", [f"space={json.dumps(space)}", *PLAIN])
    schedule = always(settings.search_space(), Policy((OpSetting(op, 10, 9),)))
    image, *views = draw("cifar10_reduced", overrides=PLAIN, schedule=schedule, images=2, draws=1)
    assert image.images[0, 0, 0, 0].tolist() == [200, 30, 10]
    wanted = expected.permute(1, 2, 0).numpy().astype(int)
    for block in views:
        assert np.abs(block.images[0, 0].astype(int) - wanted).max() <= 1
        assert not np.array_equal(block.images[0, 0], block.images[0, 0][..., ::-1])


def always(space, policy: Policy, epochs: int = 4) -> Schedule:
    return Schedule(space, {role: (Segment(epochs, policy),) for role in Role})


# ---- which chain, which epoch


def test_a_schedules_policy_at_each_epoch_under_its_label(draw):
    space = load_settings("quickstart", TINY).search_space()
    dark = Policy((OpSetting("brightness", 10, 0),))
    schedule = Schedule(space, {Role.STUDENT: (Segment(2, Policy()), Segment(2, dark))})
    options = {"overrides": [*TINY, *PLAIN], "schedule": schedule, "images": 20}
    image, teacher, student = draw("quickstart", **options, epoch=1, draws=2)
    assert student.columns == ["epoch 1", "epoch 2"] and title(student) == "student view / policy"
    assert np.array_equal(student.images[0], image.images[0])
    assert student.images[1].mean() < 0.9 * image.images[0].mean()
    assert title(teacher) == "teacher view / policy / policy: no op can fire"
    assert draw("quickstart", **options, draws=3)[2].columns == ["epoch 1", "epoch 2", "epoch 3"], "the last ones"
    past = draw("quickstart", **options, epoch=3, draws=3)[2]
    assert past.columns == ["epoch 3", "epoch 4", "epoch 5"] and past.images[2].mean() < 0.9 * image.images.mean()
    with pytest.raises(ConfigError, match="--epoch: got 4; expected 0 to 3"):
        draw("quickstart", **options, epoch=4)


def test_a_chain_in_place_of_the_roles_own_or_of_the_one_that_evolved(draw):
    choice = "space={ops: {invert: {}}, choices: {agents: {role: student, values: [policy, cutmix], initial: cutmix}}}"
    space = load_settings("quickstart", [choice]).search_space()
    schedule = always(space, Policy((OpSetting("invert", 10, 0),), {}, {"agents": "cutmix"}))
    options = {"overrides": [*TINY, *PLAIN, choice], "schedule": schedule}
    assert [block.title[1] for block in draw("quickstart", **options)[1:]] == ["cutmix", "cutmix"]
    assert [block.title[1] for block in draw("quickstart", **options, agents="policy")[1:]] == ["policy", "policy"]
    one = draw("quickstart", **options, agents="policy", role=Role.STUDENT)
    assert [block.title[1] for block in one[1:]] == ["cutmix", "policy"]
    assert np.array_equal(one[2].images[0], 255 - one[0].images[0])


def test_all_candidates_are_shown_where_some_would_be_picked(draw):
    _, _, plain = draw("quickstart", overrides=TINY, agents="cutmix", draws=2)
    runs = [*TINY, "agents.student.pick.runs=3"]
    _, _, block = draw("quickstart", overrides=runs, agents="cutmix+pick", draws=2)
    assert block.columns == [f"epoch {epoch} #{run}" for epoch in (2, 3) for run in (1, 2, 3)]
    assert "pick: all candidates, before any is picked" in block.title
    assert np.array_equal(block.images[[0, 3]], plain.images), "the first is the usual view"
    assert len({column.tobytes() for column in block.images}) == 6


# ---- runs, states, networks


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run whose search left one state, of both roles, with a learned agent that has learned."""
    learned = ["agents.student.chain=policy+learned+mixup", "agents.student.learned={lower: 50, upper: 100}"]
    settings = load_settings("quickstart", [*TINY, *PLAIN, *learned, "search.protocol=coevolve"])
    folder = create_run(tmp_path_factory.mktemp("runs"), "a", settings, verb="search").path
    worker = TrainingWorker(Task(settings, folder / "states", tuple(Role)))
    policies = {Role.TEACHER: Policy((OpSetting("brightness", 10, 9),)), Role.STUDENT: Policy()}
    worker.train(Job(0, 0, None, 0, 3, 4, policies))
    return folder


def test_a_members_state(draw, run):
    image, teacher, before, after = draw(run / "states" / "000-0000", images=12)
    steps = load_checkpoint(run / "states" / "000-0000")[0]["learned"]["steps"]
    assert steps > 0
    assert [title(block) for block in (teacher, before, after)] == [
        "teacher view / policy",
        "student view, before learned / policy+mixup / policy: no op can fire",
        f"student view / policy+learned+mixup / policy: no op can fire / learned: {steps} steps, of 000-0000",
    ]
    assert teacher.columns == ["epoch 0", "epoch 1", "epoch 2"]
    assert teacher.images.mean() > 1.05 * image.images.mean(), "the job's policy brightens"
    assert not np.array_equal(before.images, after.images)
    with pytest.raises(ConfigError, match="--epoch: got 3; expected 0 to 2"):
        draw(run / "states" / "000-0000", epoch=3)


def test_a_students_state_goes_by_the_finished_schedule_of_the_teacher(draw, tmp_path):
    settings = load_settings("quickstart", [*TINY, *PLAIN])
    folder, space = create_run(tmp_path, "a", settings, verb="search").path, settings.search_space()
    bright = Policy((OpSetting("brightness", 10, 9),))
    for states, role in ((folder / "states", Role.STUDENT), (folder / "teacher" / "states", Role.TEACHER)):
        job = Job(1, 1, 0, 2, 4, 4, {role: Policy()})
        save_checkpoint(states / "001-0001", {}, {"job": job.to_dict(space)})
    (folder / "teacher" / "schedule.yaml").write_text(schedule_text(always(space, bright, epochs=2)))
    image, teacher, student = draw(folder / "states" / "001-0001")
    assert teacher.images.mean() > 1.05 * image.images.mean() and np.array_equal(student.images[0], image.images[0])
    _, *of_teacher = draw(folder / "teacher" / "states" / "001-0001")
    assert all(np.array_equal(block.images[0], image.images[0]) for block in of_teacher)
    assert of_teacher[0].columns == ["epoch 2", "epoch 3", "epoch 4"], "its interval, and on under its policy"


def test_the_learned_view_is_what_its_saved_state_makes(draw, run):
    """Against the augmentor's own parameters, applied by hand to the image."""
    from rolekd_ray.augment.learned.augmentor import build_augmentor

    *_, before, after = draw(run / "states" / "000-0000", agents="learned", images=5, draws=1, epoch=1)
    assert before.title[1] == "none"
    data = digits()
    mean, std = data.statistics
    augmentor = build_augmentor(("affine", "colour"), channels=1, size=8, mean=mean, std=std)
    augmentor.load_state_dict(load_checkpoint(run / "states" / "000-0000")[0]["learned"]["augmentor"])
    rows = first_of_each_class(data.image_set.labels, data.train, 5)
    views = (data.image_set.images[rows] / 255 - mean) / std
    with torch.no_grad():
        made = augmentor(views, normals(stream_key(0, Role.STUDENT, 1, "learned"), rows, augmentor.noise))
    wanted = ((made * std + mean) * 255).round().clamp(0, 255)[:, 0].numpy()
    assert np.abs(after.images[0, ..., 0] - wanted).max() <= 1
    fresh = draw("quickstart", overrides=[*TINY, *PLAIN], agents="learned", images=5, draws=1, epoch=1)[-1]
    assert fresh.title[-1] == "learned: fresh, 0 steps"
    assert np.abs(fresh.images[0, ..., 0] - wanted).max() > 2


def test_a_finished_network(draw, tmp_path):
    settings = load_settings("quickstart", [*TINY, *PLAIN, "seed=3"])
    bright = Policy((OpSetting("brightness", 10, 9),))
    schedule = Schedule(settings.search_space(), {Role.TEACHER: (Segment(6, Policy()), Segment(6, bright))})
    train_final(FinalTraining(settings, Role.TEACHER, tmp_path / "net", schedule))
    image, teacher, _ = draw(tmp_path / "net", images=10)
    assert teacher.columns == ["epoch 0", "epoch 1", "epoch 2"], "stretched to two epochs; all of them, and one more"
    assert np.array_equal(teacher.images[0], image.images[0])
    assert teacher.images[1].mean() > 1.05 * image.images.mean()
    trained = {digits(train=50).image_set.images[at].numpy().tobytes() for at in digits(train=50).train}
    assert {np.ascontiguousarray(row.transpose(2, 0, 1)).tobytes() for row in image.images[0]} <= trained
    overridden = draw(tmp_path / "net", overrides=["agents.teacher.chain=cutout", "agents.teacher.cutout.pixels=4"])
    assert overridden[1].title[1] == "cutout"


def test_what_cannot_be_read(draw, run, tmp_path):
    tree, description = load_checkpoint(run / "states" / "000-0000")
    save_checkpoint(tmp_path / "alone", tree, description)
    with pytest.raises(CheckpointError, match="alone: got a member's state outside of its run"):
        draw(tmp_path / "alone")
    save_checkpoint(tmp_path / "odd", {}, {"plan": {"schedule": None}})
    with pytest.raises(CheckpointError, match="odd: plan: damaged: KeyError"):
        draw(tmp_path / "odd")
    odd = {"plan": {"schedule": None, "train": None, "epochs": 2, "settings": {"sead": 1}}}
    save_checkpoint(tmp_path / "odd", {}, odd)
    with pytest.raises(ConfigError, match="odd: plan: unknown key 'sead'"):
        draw(tmp_path / "odd")
    with pytest.raises(CheckpointError, match=r"000-0000: its job does not fit the run's search space"):
        draw(run / "states" / "000-0000", overrides=["space=cifar10_pba", "space={ops: {invert: {}}}"])
    with pytest.raises(CheckpointError, match="learned: of another augmentor"):
        draw(run / "states" / "000-0000", overrides=["agents.student.learned.parts=[colour]"])


def test_the_written_picture_shows_the_blocks(tmp_path, blocks):
    (file,) = draw_views("quickstart", tmp_path / "made.png", overrides=TINY, images=3, draws=2)
    with Image.open(file) as picture:
        assert picture.format == "PNG" and picture.mode == "RGB"
        shown = np.asarray(picture)
    grid = pictures.Grid(["0", "1", "2"], blocks[-1])
    assert shown.shape[:2] == grid.size[::-1] and Counter(map(len, (b.columns for b in grid.blocks))) == {1: 1, 2: 2}
    for number, block in enumerate(grid.blocks):
        left, top, right, bottom = grid.box(number, len(block.columns) - 1, 2)
        assert np.array_equal(shown[top:bottom:12, left:right:12], np.broadcast_to(block.images[-1, 2], (8, 8, 3)))
