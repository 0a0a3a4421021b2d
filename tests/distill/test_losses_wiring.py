"""What a method is given: options, temperature, features of its layers, regressors, standardised logits."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from method_cases import EVERY
from torch import Tensor, nn

from rolekd_ray.distill import registry
from rolekd_ray.distill.layers import pairs_for
from rolekd_ray.distill.losses import Losses, check_options
from rolekd_ray.distill.outputs import Outputs
from rolekd_ray.distill.registry import BUILT_WITH, known_methods, method
from rolekd_ray.errors import ConfigError
from rolekd_ray.models.zoo import build_network


@pytest.fixture
def register(monkeypatch) -> Iterator[Callable[..., Any]]:
    """Registers methods that are forgotten after the test."""
    known_methods()
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    yield method


def logits(seed: int, n: int = 4, k: int = 5, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 3


def batch(**changes: Any) -> Outputs:
    given = {"logits_student": logits(0), "logits_teacher": logits(1), "labels": torch.arange(4), "temperature": 2.0}
    return Outputs(**(given | changes))


def hinton_by_hand(student: Tensor, teacher: Tensor, temperature: float) -> float:
    """KL(teacher ‖ student) of softened rows, summed by hand, over the number of rows; no T²."""
    total = 0.0
    for own, wanted in zip(student.tolist(), teacher.tolist(), strict=True):
        p, q = ([math.exp(v / temperature) for v in row] for row in (wanted, own))
        p, q = ([v / math.fsum(row) for v in row] for row in (p, q))
        total += math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return total / len(student)


def standardised_by_hand(rows: Tensor) -> Tensor:
    found = []
    for row in rows.tolist():
        mean = math.fsum(row) / len(row)
        deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in row) / (len(row) - 1))
        found.append([(v - mean) / deviation for v in row])
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize(
    ("options", "temperature", "factor"),
    [
        ({}, 2.0, 4.0),
        ({"squared_temperature": False}, 2.0, 1.0),
        ({"temperature": 5.0}, 5.0, 25.0),
        ({"temperature": 3.0, "squared_temperature": False}, 3.0, 1.0),
    ],
)
def test_options_win_over_defaults_and_a_methods_temperature_over_the_runs(options, temperature, factor):
    losses = Losses(["hinton", "mutual"], options={"hinton": options})
    found = losses(batch(), {"hinton": 1.0, "mutual": 1.0})
    expected = hinton_by_hand(logits(0), logits(1), temperature)
    assert found["hinton"].item() == pytest.approx(factor * expected, rel=1e-12)
    assert found["mutual"].item() == pytest.approx(4 * hinton_by_hand(logits(0), logits(1), 2.0), rel=1e-12)


def test_options_of_modules_reach_their_constructor_and_the_temperature_their_forward(register):
    @register("made")
    class Made(nn.Module):
        def __init__(self, num_classes: int, *, labels_of: Tensor, size: int = 3):
            super().__init__()
            self.made = num_classes, size, labels_of.tolist()

        def forward(self, logits_student: Tensor, temperature: float = 1.0) -> Tensor:
            return logits_student.sum() * 0 + temperature

    assert known_methods()["made"].options == {"size": 3}, "what a constructor is given is no option"
    assert set(known_methods()["made"].built_with) == {"num_classes", "labels_of"} <= set(BUILT_WITH)
    values = {"num_classes": 7, "labels_of": torch.arange(3), "student": nn.Linear(1, 1)}
    losses = Losses(["made"], options={"made": {"size": 5, "temperature": 9.0}}, built_with=values)
    assert losses.state["made"].made == (7, 5, [0, 1, 2])
    assert losses(batch(), {"made": 1.0})["made"] == 9.0


def test_what_weighs_nothing_is_not_computed(register):
    @register("refusing")
    def refusing(logits_student: Tensor) -> Tensor:
        raise AssertionError("computed")

    losses = Losses(["refusing", "cross_entropy"])
    assert list(losses(batch(), {"refusing": 0.0, "cross_entropy": 1.0})) == ["cross_entropy"]
    with pytest.raises(AssertionError, match="computed"):
        losses(batch(), {"refusing": 0.1, "cross_entropy": 1.0})


def test_features_reach_the_right_method_in_the_right_order(register):
    seen: dict[str, list[list[float]]] = {}

    def looks(name: str, **about: Any) -> None:
        @register(name, layers="stages", **about)
        def look(features_student: list[Tensor], features_teacher: list[Tensor]) -> Tensor:
            seen[name] = [[value.mean().item() for value in side] for side in (features_student, features_teacher)]
            return features_student[0].sum()

    looks("one_way")
    looks("other_way")
    layers = {"one_way": (["b", "a"], ["y", "logits"]), "other_way": (["c"], ["x"]), "not_used": (["d"], ["z"])}
    of_student = {name: torch.full((4, 2), float(i)) for i, name in enumerate("abcd")}
    of_teacher = {name: torch.full((4, 2), 10.0 + i) for i, name in enumerate("xyz")}
    losses = Losses(["one_way", "other_way", "cross_entropy"], layers=layers)
    assert losses.layers_of("student") == ["b", "a", "c"] and losses.layers_of("teacher") == ["y", "x"]
    teacher = torch.full((4, 5), 99.0)
    of = batch(features_student=of_student, features_teacher=of_teacher, logits_teacher=teacher)
    losses(of, {"one_way": 1.0, "other_way": 1.0})
    assert seen == {"one_way": [[1.0, 0.0], [11.0, 99.0]], "other_way": [[2.0], [10.0]]}


def test_regressors_stand_where_shapes_differ_and_learn():
    student = {"a": (3, 4, 4), "b": (2, 2, 2), "c": (5,)}
    teacher = {"x": (6, 4, 4), "y": (2, 2, 2), "z": (7,)}
    layers = {"hint": (["a", "b", "c"], ["x", "y", "z"]), "attention": (["a"], ["x"])}
    built = {"shapes_student": student, "shapes_teacher": teacher}
    losses = Losses(["hint", "attention"], layers=layers, built_with=built)
    kinds = [type(regressor) for regressor in losses.regressors["hint"].children()]
    assert kinds[1] is nn.Identity and kinds[0] is kinds[2] is not nn.Identity
    assert list(losses.regressors) == ["hint"], "attention takes any widths"
    shapes = [tuple(parameter.shape) for parameter in losses.parameters()]
    assert shapes == [(6, 3, 1, 1), (7, 5)]
    of = batch(
        features_student={name: torch.ones(4, *shape) for name, shape in student.items()},
        features_teacher={name: torch.ones(4, *shape) for name, shape in teacher.items()},
    )
    optimizer = torch.optim.SGD(losses.parameters(), lr=0.1)
    found = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = losses(of, {"hint": 1.0})["hint"]
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    assert found[-1] < 0.05 * found[0]


def test_logits_stand_among_layers(register):
    @register("last_of_all", layers="logits")
    def last_of_all(features_student: list[Tensor], features_teacher: list[Tensor]) -> Tensor:
        return (features_student[0] - features_teacher[0]).square().sum()

    student, teacher = (build_network("resnet8", num_classes=5, channels=1, seed=i) for i in (0, 1))
    pairs = pairs_for(known_methods()["last_of_all"], student, teacher)
    assert pairs == (["logits"], ["logits"])
    losses = Losses(["last_of_all"], layers={"last_of_all": pairs}, standardise=True)
    assert losses.layers_of("student") == losses.layers_of("teacher") == []
    expected = math.fsum((a - b) ** 2 for a, b in zip(logits(0).flatten().tolist(), logits(1).flatten().tolist()))
    assert losses(batch(), {"last_of_all": 1.0})["last_of_all"].item() == pytest.approx(expected)


def test_those_that_soften_both_networks_logits_are_standardised():
    names = ["hinton", "mutual", "cross_entropy"]
    losses = Losses(names, standardise=True)
    found = losses(batch(), dict.fromkeys(names, 1.0))
    own, wanted = standardised_by_hand(logits(0)), standardised_by_hand(logits(1))
    for name in ("hinton", "mutual"):
        assert found[name].item() == pytest.approx(4 * hinton_by_hand(own, wanted, 2.0), rel=1e-9)
    assert torch.equal(
        found["cross_entropy"], Losses(["cross_entropy"])(batch(), {"cross_entropy": 1.0})["cross_entropy"]
    )


def test_logits_that_are_chosen_by_are_not_standardised(register):
    # BSS softens the logits of images it makes itself; standardised ones would but change which it attacks
    seen: dict[str, Tensor] = {}

    @register("chooses")
    def chooses(logits_student: Tensor, logits_teacher: Tensor, networks: object, temperature: float) -> Tensor:
        seen.update(student=logits_student, teacher=logits_teacher)
        return logits_student.sum()

    Losses(["chooses"], standardise=True)(batch(networks=object()), {"chooses": 1.0})
    assert torch.equal(seen["student"], logits(0)) and torch.equal(seen["teacher"], logits(1))


def test_standardised_in_float32_whatever_the_networks_computed_in():
    # Large, close logits: in bfloat16 the mean would swallow their differences
    low = {"logits_student": 50 + logits(0, dtype=torch.bfloat16), "logits_teacher": logits(1, dtype=torch.bfloat16)}
    found = Losses(["hinton"], standardise=True)(batch(**low), {"hinton": 1.0})["hinton"]
    own, wanted = (standardised_by_hand(value.double()) for value in low.values())
    assert found.item() == pytest.approx(4 * hinton_by_hand(own, wanted, 2.0), rel=1e-4)


@pytest.mark.parametrize("standardise", [False, True])
def test_a_missing_teacher_is_named(standardise):
    losses = Losses(["hinton"], standardise=standardise)
    with pytest.raises(ConfigError, match=r"losses\.hinton: got no logits_teacher; expected a teacher network"):
        losses(batch(logits_teacher=None), {"hinton": 1.0})
    losses = Losses(["attention"], layers={"attention": (["a"], ["x"])})
    with pytest.raises(ConfigError, match=r"losses\.attention: got no features_teacher; expected a teacher network"):
        losses(batch(features_student={"a": logits(0)}), {"attention": 1.0})


def test_one_side_may_be_left_to_its_defaults():
    ours, theirs = (build_network(name, num_classes=10, channels=3, seed=0) for name in ("resnet8", "resnet18"))
    attention, one = known_methods()["attention"], known_methods()["one"]
    assert pairs_for(attention, ours, theirs, of_teacher=["layer2", "layer4"]) == (
        ["stage2", "stage3"], ["layer2", "layer4"],
    )  # fmt: skip
    assert pairs_for(one, ours, theirs, of_student=["stage1"]) == (["stage1"], ["stage1"])
    with pytest.raises(ConfigError, match=r"attention\.teacher: got 4 layers; expected at most 3"):
        pairs_for(attention, ours, theirs, of_teacher=["layer1", "layer2", "layer3", "layer4"])


def test_who_lacks_defaults_is_said():
    ours, theirs = (build_network(name, num_classes=10, channels=3, seed=0) for name in ("resnet8", "resnet18"))
    for networks, who in (((ours, theirs), "teacher"), ((theirs, ours), "student")):
        with pytest.raises(ConfigError, match=f"for the {who}'s ResNet has no defaults"):
            pairs_for(known_methods()["attention"], *networks)


@pytest.mark.parametrize(
    ("student", "teacher", "stages"),
    [("resnet8", "cifar_resnet10", 3), ("cifar_resnet10", "wrn_10_2", 3), ("cifar_resnet10", "cifar_resnet18", 4)],
)
def test_stages_are_paired_from_the_deep_end(student, teacher, stages):
    networks = [build_network(name, num_classes=10, channels=1, seed=0) for name in (student, teacher)]
    all_stages = [list(network.layers.stages) for network in networks]
    known = known_methods()
    assert pairs_for(known["attention"], *networks) == tuple(side[-stages:] for side in all_stages)
    assert pairs_for(known["similarity"], *networks) == tuple(side[-1:] for side in all_stages)
    assert pairs_for(known["one"], networks[0], networks[0]) == tuple([side[-2]] for side in all_stages[:1] * 2)
    # The middle stage of three and the second of four
    assert pairs_for(known["hint"], *networks) == tuple(side[1:2] for side in all_stages)
    assert pairs_for(known["rkd"], *networks) == tuple([network.layers.embedding] for network in networks)


def test_a_network_without_defaults_is_named():
    ours, theirs = (build_network(name, num_classes=10, channels=3, seed=0) for name in ("resnet8", "resnet18"))
    with pytest.raises(
        ConfigError, match=r"distill\.layers\.attention: got none; .* ResNet has no defaults .*--layers"
    ):
        pairs_for(known_methods()["attention"], ours, theirs)


def test_a_name_is_registered_once(register):
    with pytest.raises(ConfigError, match="method 'hinton': registered twice; expected another name"):
        register("hinton")(lambda logits_student: logits_student.sum())


def test_a_peers_method_may_not_take_features(register):
    # The peer's turn swaps logits alone: its features would be the student's
    with pytest.raises(ConfigError, match="method 'both': got layers; expected none"):
        register("both", online="peer", layers="stages")(lambda features_student: features_student[0].sum())


@pytest.mark.parametrize("name", EVERY)
def test_every_method_says_where_it_comes_from_and_has_options_that_can_be_checked(name):
    found = known_methods()[name]
    assert name == "cross_entropy" or "Source:" in (found.make.__doc__ or "")
    for option, default in found.options.items():
        assert type(default) in (bool, int, float, str), f"{name}.{option}: {default!r}"
        assert check_options({name: {option: default}}, {name: 1.0}, "options") == []
        (problem,) = check_options({name: {option: [default]}}, {name: 1.0}, "options")
        assert problem.startswith(f"options.{name}.{option}: got {[default]!r}; expected ")


def test_own_modules_that_cannot_be_imported_are_named(monkeypatch, tmp_path):
    (tmp_path / "half_written_methods.py").write_text("import no_such_library_of_anybody\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, reason in (
        ("no_such_methods", "No module named 'no_such_methods'"),
        ("half_written_methods", "No module named 'no_such_library_of_anybody'"),
    ):
        monkeypatch.setenv("ROLEKD_METHODS", f"rolekd_ray.roles, {name}")
        with pytest.raises(ConfigError) as error:
            known_methods()
        assert f"ROLEKD_METHODS: cannot import '{name}': {reason}" in str(error.value)
        assert "PYTHONPATH" in str(error.value)
