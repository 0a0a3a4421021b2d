"""Whatever may take long in an interval is seen from outside to get on."""

import threading
import time

import numpy as np
import torch
from filelock import FileLock
from PIL import Image
from training_helpers import tiny_settings

from rolekd_ray.data import cache
from rolekd_ray.data.decode import Listing, decode
from rolekd_ray.policy.policy import Policy
from rolekd_ray.progress import done
from rolekd_ray.roles import Role
from rolekd_ray.training.data import open_training_data
from rolekd_ray.training.epochs import new_trainer
from rolekd_ray.training.evaluation import predict
from rolekd_ray.training.learner import new_learner


def test_every_decoded_picture_counts():
    pictures = [("here", Image.new("L", (4, 4)))] * 7
    before = done()
    decode(
        Listing(("a",), np.zeros(7, np.int64), lambda: iter(pictures)), None, lambda shape: np.empty(shape, np.uint8)
    )
    assert done() - before == 7


def test_every_batch_trained_or_predicted_counts():
    settings = tiny_settings("training.batch_size=20")
    data = open_training_data(settings.data, train=60)
    trainer = new_trainer(settings, data, settings.search_space(), torch.device("cpu"), None)
    learner = new_learner(settings, (Role.STUDENT,), num_classes=10, channels=1, device=torch.device("cpu"), key=0)
    before = done()
    trainer.train(learner, lambda role, epoch: [(1.0, Policy())], end_epoch=2, total_epochs=2, stream="a")
    assert done() - before == 2 * 3
    predict(learner.networks[Role.STUDENT], data.image_set.images[:501], trainer.views, dtype=trainer.dtype)
    assert done() - before == 2 * 3 + 2


def test_waiting_for_another_process_that_decodes_counts(tmp_path, monkeypatch):
    monkeypatch.setenv("ROLEKD_CACHE", str(tmp_path))
    monkeypatch.setattr(cache, "WAIT_SECONDS", 0.05)
    images = np.zeros((2, 1, 4, 4), np.uint8)

    def build(allocate):
        made = allocate(images.shape)
        made[:] = images
        return made, np.zeros(2, np.int64), ("a",)

    before = done()
    with FileLock(tmp_path / "set.lock"):
        waiting = threading.Thread(target=cache.cached, args=("set", "set", build))
        waiting.start()
        time.sleep(0.5)
        assert waiting.is_alive() and done() - before >= 3
    waiting.join(timeout=10)
    assert not waiting.is_alive()
