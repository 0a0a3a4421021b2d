"""Several networks as one teacher."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from rolekd_ray.models import build_network, fold_batchnorm
from rolekd_ray.models.ensemble import Ensemble

BOTH = ("probabilities", "logits")


class Fixed(nn.Module):
    """Answers with the logits it was given, whatever it is shown."""

    def __init__(self, logits: Tensor):
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, images: Tensor) -> Tensor:
        return self.logits


def answer(logits: list[Tensor], combine: str) -> Tensor:
    with torch.no_grad():
        return Ensemble([Fixed(values) for values in logits], combine)(torch.empty(0))


@st.composite
def members(draw, least: int = 1) -> list[Tensor]:
    """Logits (N, K) of 1 to 4 members, float64."""
    shape = draw(st.integers(1, 3)), draw(st.integers(2, 5))
    value = st.floats(-30, 30)
    count = draw(st.integers(least, 4))
    cells = draw(st.lists(value, min_size=count * math.prod(shape), max_size=count * math.prod(shape)))
    return list(torch.tensor(cells, dtype=torch.float64).view(count, *shape))


def softmax_by_hand(row: list[float], temperature: float = 1.0) -> list[float]:
    top = max(row)
    powers = [math.exp((value - top) / temperature) for value in row]
    return [power / math.fsum(powers) for power in powers]


def mean_by_hand(logits: list[Tensor], row: int, combine: str) -> list[float]:
    """The distribution of one image: arithmetic mean of softmaxes, or their geometric mean made to sum to 1."""
    each = [softmax_by_hand(values[row].tolist()) for values in logits]
    if combine == "probabilities":
        return [math.fsum(column) / len(each) for column in zip(*each)]
    means = [math.exp(math.fsum(math.log(p) for p in column) / len(each)) for column in zip(*each)]
    return [value / math.fsum(means) for value in means]


@pytest.mark.parametrize("combine", BOTH)
@given(logits=members())
def test_the_softmax_is_the_mean_of_the_members_probabilities(combine, logits):
    found = answer(logits, combine).softmax(1)
    for row, values in enumerate(found.tolist()):
        assert values == pytest.approx(mean_by_hand(logits, row, combine), rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("combine", BOTH)
@given(logits=members(least=2), data=st.data())
def test_the_order_of_the_members_does_not_matter(combine, logits, data):
    shuffled = data.draw(st.permutations(logits))
    assert torch.allclose(answer(shuffled, combine), answer(logits, combine), rtol=0, atol=1e-12)


@given(logits=members())
def test_one_member_or_its_copies_are_itself_up_to_a_shift(logits):
    for count in (1, 3):
        shift = answer(logits[:1] * count, "probabilities") - logits[0]
        assert torch.allclose(shift, shift[:, :1].expand_as(shift), rtol=0, atol=1e-12)
        assert torch.allclose(answer(logits[:1] * count, "logits"), logits[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("combine", BOTH)
@given(logits=members(least=2), temperature=st.floats(0.5, 10))
def test_a_temperature_softens_the_mean(combine, logits, temperature):
    """p^(1/T), made to sum to 1, of the mean that the members have at temperature 1."""
    found = (answer(logits, combine) / temperature).softmax(1)
    for row, values in enumerate(found.tolist()):
        powers = [p ** (1 / temperature) for p in mean_by_hand(logits, row, combine)]
        assert values == pytest.approx([power / math.fsum(powers) for power in powers], rel=1e-7, abs=1e-12)


def test_softening_the_mean_is_not_the_mean_of_softened_members():
    logits = [torch.tensor([[4.0, 0.0]]), torch.tensor([[0.0, 2.0]])]
    softened = [softmax_by_hand(values[0].tolist(), 4.0)[0] for values in logits]
    assert abs((answer(logits, "probabilities") / 4).softmax(1)[0, 0].item() - sum(softened) / 2) > 1e-3
    assert (answer(logits, "logits") / 4).softmax(1)[0, 0].item() != pytest.approx(sum(softened) / 2, abs=1e-3)


def test_members_that_are_sure_of_different_classes_overflow_nothing():
    sure = [torch.tensor([[1e4, 0.0, -1e4]]), torch.tensor([[-1e4, 0.0, 1e4]])]
    found = answer(sure, "probabilities")
    assert found.softmax(1).tolist() == [[0.5, 0.0, 0.5]]
    assert torch.isfinite(found).all()


def test_narrow_members_are_averaged_in_float32():
    """bfloat16 holds 1/3 as 0.3340: a mean computed in it would be off by 1e-3."""
    narrow = [torch.tensor([[0.0, 1.0, 2.5]]).bfloat16(), torch.tensor([[3.0, 0.25, -1.0]]).bfloat16()]
    for combine in BOTH:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = answer(narrow, combine)
        assert found.dtype == torch.float32
        assert found.softmax(1)[0].tolist() == pytest.approx(
            mean_by_hand([values.double() for values in narrow], 0, combine), abs=1e-6
        )


@pytest.fixture(scope="module")
def trained_looking() -> Ensemble:
    """Two architectures whose BatchNorms have seen images."""
    networks = [build_network(name, num_classes=10, channels=1, seed=1) for name in ("resnet8", "wrn_10_2")]
    for network in networks:
        for seed in range(3):
            network.train()(torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(seed)))
    return Ensemble(networks)


@pytest.mark.parametrize("combine", BOTH)
def test_folding_folds_each_member_and_changes_no_answer(trained_looking, combine):
    trained_looking.combine = combine
    folded = fold_batchnorm(trained_looking)
    images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        expected = trained_looking.eval()(images)
        assert torch.allclose(folded(images), expected, rtol=0, atol=1e-4)
    assert isinstance(folded, Ensemble) and folded.combine == combine
    assert not any(module.training for module in folded.modules())
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    left = [sum(isinstance(m, nn.BatchNorm2d) for m in member.modules()) for member in folded.members]
    assert left[0] == 0 and 0 < left[1] < sum(
        isinstance(m, nn.BatchNorm2d) for m in trained_looking.members[1].modules()
    )


def test_a_member_that_cannot_be_traced_keeps_no_other_from_being_folded():
    class Untraceable(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.mean((2, 3)).repeat(1, 10 if images.sum() > 0 else 1)

    folded = fold_batchnorm(Ensemble([Untraceable(), build_network("resnet8", num_classes=10, channels=1, seed=0)]))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())


@settings(max_examples=5)
@given(seed=st.integers(0, 2**31))
def test_real_networks_are_called_on_the_same_images(seed):
    networks = [build_network(name, num_classes=4, channels=3, seed=seed).eval() for name in ("resnet8", "resnet14")]
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        expected = sum(network(images).softmax(1) for network in networks) / 2
        assert torch.allclose(Ensemble(networks)(images).softmax(1), expected, rtol=0, atol=1e-6)
