import numpy as np
import pytest
import torch
from training_helpers import some_policy, tiny_settings

from rolekd_ray.augment.base import BaseAugmentation
from rolekd_ray.augment.policy_agent import PolicyAgent
from rolekd_ray.config import BaseAugmentationSettings
from rolekd_ray.policy.policy import Policy
from rolekd_ray.roles import Role
from rolekd_ray.training.data import open_training_data
from rolekd_ray.training.views import Views

SETTINGS = tiny_settings()
NOTHING = BaseAugmentationSettings(crop_padding_pixels=0, flip=False, cutout_pixels=0)
CROPS = BaseAugmentationSettings(crop_padding_pixels=2, flip=True, cutout_pixels=3)


@pytest.fixture(scope="module")
def digits():
    return open_training_data(SETTINGS.data, train=60)


def views(digits, base: BaseAugmentationSettings = CROPS, seed: int = 5) -> Views:
    return Views(base, SETTINGS.search_space(), *digits.statistics, seed=seed)


def test_without_augmentation_a_view_is_the_normalised_image(digits):
    images, indices = digits.image_set.images[digits.train], digits.train
    mean, std = (value.numpy()[:, None, None] for value in digits.statistics)
    expected = (images.numpy().astype(np.float64) / 255 - mean) / std
    made = views(digits, NOTHING)
    view = made.view(made.agent([(1.0, Policy())]), images, indices, role=Role.STUDENT, epoch=0)
    for found in (view, made.clean(images)):
        assert found.dtype == torch.float32 and found.shape == images.shape
        assert np.abs(found.numpy() - expected).max() < 1e-5


def test_a_view_is_the_agents_then_the_base_augmentations(digits):
    images, indices = digits.image_set.images[digits.train], digits.train
    policy = some_policy(SETTINGS, Role.TEACHER)
    mean, std = digits.statistics
    fill = torch.tensor([round(255 * value) for value in mean.tolist()], dtype=torch.uint8)
    agent = PolicyAgent([(1.0, policy)], SETTINGS.search_space(), fill)
    base = BaseAugmentation(crop_padding_pixels=2, flip=True, cutout_pixels=3, mean=mean, std=std)
    key = {"seed": 5, "role": Role.TEACHER, "epoch": 3}
    augmented = agent(images, indices, **key)
    made = views(digits)
    found = made.view(made.agent([(1.0, policy)]), images, indices, role=Role.TEACHER, epoch=3)
    assert torch.equal(found, base(augmented, indices, **key))
    assert not torch.equal(augmented, images)


def test_views_depend_on_seed_role_epoch_and_index_and_on_nothing_else(digits):
    images, indices = digits.image_set.images[digits.train], digits.train
    made = views(digits)
    agent = made.agent([(1.0, some_policy(SETTINGS, Role.STUDENT))])
    at = {"role": Role.STUDENT, "epoch": 3}
    whole = made.view(agent, images, indices, **at)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    parts = [made.view(agent, images[part], indices[part], **at) for part in order.split(7)]
    assert torch.equal(torch.cat(parts), whole[order])
    for other in (
        made.view(agent, images, indices, role=Role.TEACHER, epoch=3),
        made.view(agent, images, indices, role=Role.STUDENT, epoch=4),
        made.view(agent, images, indices + 1, **at),
        views(digits, seed=6).view(agent, images, indices, **at),
    ):
        assert not torch.equal(other, whole)


def test_views_can_be_trained_on(digits):
    """A tensor made in inference mode could not be saved for the backward pass."""
    made = views(digits)
    images, indices = digits.image_set.images[:4], torch.arange(4)
    for view in (
        made.view(made.agent([(1.0, Policy())]), images, indices, role=Role.STUDENT, epoch=0),
        made.clean(images),
    ):
        layer = torch.nn.Conv2d(1, 1, 3)
        layer(view).sum().backward()
        assert layer.weight.grad is not None
