"""Two workers with gathered rows find the loss and the gradients of one, for every method."""

import numpy as np
import pytest
from method_cases import EVERY, FEATURES, case
from sharded_methods import every_method, in_group, joined

from rolekd_ray.training.sharding import Sharding


@pytest.fixture(scope="module")
def alone():
    return every_method(Sharding())


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLOO_SOCKET_IFNAME", "lo")
        yield in_group(tmp_path_factory.mktemp("group"))


def assert_near(found: list, expected: list) -> None:
    assert len(found) == len(expected)
    for own, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(own, wanted, rtol=1e-5, atol=1e-5 * (np.abs(wanted).max() + 1e-8))


@pytest.mark.parametrize("name", EVERY)
def test_two_workers_find_what_one_does(alone, group, name):
    expected, found = alone[name], [worker[name] for worker in group]
    for worker in found:
        assert worker["loss"] == pytest.approx(expected["loss"], rel=1e-5, abs=1e-9)
        assert_near(worker["parameters"], expected["parameters"])
    assert_near(joined([worker["rows"] for worker in found]), expected["rows"])


def test_the_cases_are_not_empty(alone):
    for name in FEATURES:
        assert any(rows.any() for rows in alone[name]["rows"]), name
    assert all(parameters.any() for parameters in alone["fsp"]["parameters"]) and alone["fsp"]["parameters"]
    assert alone["bss"]["loss"] > 0 and any(values.any() for values in alone["bss"]["parameters"])


@pytest.mark.parametrize("name", ["rkd", "similarity", "pkt", "correlation_congruence", "dist"])
def test_the_mean_of_two_halves_is_another_loss(name):
    # Without the gather each worker would relate its own rows only, and this would be what they find
    losses, whole = case(name, count=8)
    halves = []
    for rows in (slice(0, 4), slice(4, 8)):
        part = {key: {layer: value[rows] for layer, value in getattr(whole, key).items()} if "features" in key
                else getattr(whole, key)[rows] for key in ("logits_student", "logits_teacher", "features_student",
                                                           "features_teacher")}  # fmt: skip
        halves.append(losses(type(whole)(labels=whole.labels[rows], **part), {name: 1.0})[name].item())
    whole_loss = losses(whole, {name: 1.0})[name].item()
    assert abs(sum(halves) / 2 - whole_loss) > 1e-3 * whole_loss
