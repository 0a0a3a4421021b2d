import math

import pytest
import stateful_cases as cases
import torch

from rolekd_ray.errors import ConfigError

SHAPES = [([(6,)], [(5,)]), ([(2, 2, 2)], [(3, 2, 2)])]
SMALL = {"embedding": 4, "negatives": 7}


def made(student=((6,),), teacher=((5,),), *, seed: int = 0, **options):
    return cases.build("crd", list(student), list(teacher), seed=seed, **(SMALL | options))


def some(n: int, seed: int = 0, dtype=torch.float32, student=((6,),), teacher=((5,),)):
    own, wanted = cases.features(student, n, seed, dtype), cases.features(teacher, n, seed + 1, dtype)
    return cases.outputs(own, wanted, seed=seed)


def unit(vector: list[float]) -> list[float]:
    length = math.sqrt(math.fsum(v * v for v in vector))
    return [v / length for v in vector]


def dot(one: list[float], other: list[float]) -> float:
    return math.fsum(a * b for a, b in zip(one, other, strict=True))


class ByLoop:
    """Losses and banks, one number at a time; the draws are taken over from the module under test."""

    def __init__(self, module):
        self.banks = [bank.tolist() for bank in (module.bank_student, module.bank_teacher)]
        self.layers = [(m.weight.tolist(), m.bias.tolist()) for m in (module.embed_student, module.embed_teacher)]
        self.z = [None, None]

    def step(self, own, wanted, rows, counts, negatives) -> float:
        embedded, total = [], 0.0
        for features, (weight, bias) in zip((own, wanted), self.layers, strict=True):
            flat = features.flatten(1).tolist()
            embedded.append([unit([dot(w, f) + b for w, b in zip(weight, bias, strict=True)]) for f in flat])
        for side in (0, 1):
            bank = self.banks[1 - side]
            scores = [[math.exp(dot(v, row) / 0.07) for row in bank] for v in embedded[side]]
            if self.z[side] is None:
                seen = [scores[i][row] for i, row in enumerate(rows)]
                seen += [
                    scores[i][j] for i, draws in enumerate(counts) for j, c in enumerate(draws) for _ in range(int(c))
                ]
                assert len(seen) == len(rows) * (negatives + 1)
                self.z[side] = math.fsum(seen) / len(seen) * len(bank)
            noise = negatives / len(bank)
            for i, row in enumerate(rows):
                p = scores[i][row] / self.z[side]
                cost = -math.log(p / (p + noise))
                for j, count in enumerate(counts[i]):
                    cost -= count * math.log(noise / (scores[i][j] / self.z[side] + noise))
                total += cost / len(rows)
        for bank, vectors in zip(self.banks, embedded, strict=True):
            for row, vector in zip(rows, vectors, strict=True):
                bank[row] = unit([0.5 * a + 0.5 * b for a, b in zip(bank[row], vector, strict=True)])
        return total


@pytest.mark.parametrize(("student", "teacher"), SHAPES)
def test_three_steps_equal_a_plain_loop(student, teacher):
    losses = made(student, teacher).double()
    module = losses.state["crd"]
    loop = ByLoop(module)
    for step in range(3):
        of = some(5, step, torch.float64, student, teacher)
        rows = (of.indices // 2).tolist()  # every second image is trained on
        counts = module._draw(torch.tensor(rows), torch.Generator().manual_seed(step)).tolist()
        expected = loop.step(of.features_student["0"], of.features_teacher["0"], rows, counts, 7)
        assert cases.loss_of(losses, of).item() == pytest.approx(expected, rel=1e-6)
        assert module.normaliser.tolist() == pytest.approx(loop.z, rel=1e-6)
        for bank, wanted in zip((module.bank_student, module.bank_teacher), loop.banks, strict=True):
            torch.testing.assert_close(bank, torch.tensor(wanted, dtype=torch.float64))


def test_negatives_are_of_other_classes_and_all_equally_likely():
    labels = torch.tensor([3, 0, 1, 1, 0, 3, 1, 1, 2, 9])  # classes of different sizes, and one that is not trained on
    trained_on = torch.tensor([8, 0, 3, 1, 5, 7, 6, 4])
    layers = (["0"], ["0"])
    built_with = {
        "shapes_student": {"0": (3,)}, "shapes_teacher": {"0": (3,)}, "labels_of": labels, "trained_on": trained_on,
    }  # fmt: skip
    losses = cases.Losses(["crd"], options={"crd": {"negatives": 99}}, layers={"crd": layers}, built_with=built_with)
    module = losses.state["crd"]
    assert module.negatives == 8 - 3  # three images of the largest class
    assert module.row_of[trained_on].tolist() == list(range(8))
    counts = torch.zeros(8, 8)
    generator = torch.Generator().manual_seed(0)
    for _ in range(1000):
        drawn = module._draw(torch.arange(8), generator)
        assert drawn.sum(1).tolist() == [5.0] * 8
        counts += drawn
    of_rows = labels[trained_on]
    for row in range(8):
        others = of_rows != of_rows[row]
        assert (counts[row][~others] == 0).all()
        share = counts[row][others] / 5000
        assert (share - 1 / others.sum()).abs().max() < 0.03, share  # five standard deviations


def test_images_that_are_not_trained_on_have_no_row():
    losses, of = made(), some(3)
    object.__setattr__(of, "indices", torch.tensor([0, 2, 3]))
    with pytest.raises(IndexError):
        cases.loss_of(losses, of)


def test_bad_set_ups():
    with pytest.raises(ConfigError, match=r"layers\.crd: got 2 layers"):
        made([(6,), (6,)], [(5,), (5,)])
    with pytest.raises(ConfigError, match="one class"):
        cases.Losses(
            ["crd"], layers={"crd": (["0"], ["0"])},
            built_with={"shapes_student": {"0": (3,)}, "shapes_teacher": {"0": (3,)},
                        "labels_of": torch.tensor([1, 1, 2]), "trained_on": torch.tensor([0, 1])},
        )  # fmt: skip


def test_gradients_reach_student_and_layers_but_not_the_teacher():
    losses = made().double()
    of = some(3, dtype=torch.float64)
    cases.loss_of(losses, of)  # Z is estimated, without gradient
    losses.eval()

    def loss(own):
        return cases.loss_of(losses, cases.outputs(own, [of.features_teacher["0"]]))

    assert cases.gradcheck(losses, [of.features_student["0"]], loss)
    wanted = of.features_teacher["0"].requires_grad_()
    loss([of.features_student["0"]]).backward()
    assert wanted.grad is None and all(p.grad.abs().sum() > 0 for p in losses.parameters())


def test_evaluation_leaves_the_state_alone():
    losses = made().eval()
    before = {name: value.clone() for name, value in losses.state_dict().items()}
    cases.loss_of(losses, some(4))
    assert all(torch.equal(value, before[name]) for name, value in losses.state_dict().items())


def test_loss_is_least_where_pairs_agree():
    """Where an image's rows are its embeddings and all others lie far away, hardly anything is left."""
    losses = made(embedding=6, student=((6,),), teacher=((6,),)).double()
    module = losses.state["crd"]
    with torch.no_grad():
        for layer in (module.embed_student, module.embed_teacher):
            layer.weight.copy_(torch.eye(6)), layer.bias.zero_()
        axes = torch.eye(6, dtype=torch.float64)
        for bank in (module.bank_student, module.bank_teacher):
            bank.copy_(-torch.ones(20, 6) / math.sqrt(6)), bank[:4].copy_(axes[:4])
        module.normaliser.fill_(math.exp(0.5 / 0.07) * 20 / 7)  # half way between 0 and 1
    aligned = cases.loss_of(losses.eval(), cases.outputs([axes[:4]], [axes[:4]]))
    # On each side one positive of score 1 and 7 negatives of scores of at most 0, each at odds of at most e^-7.
    assert 2 * math.log1p(math.exp(-0.5 / 0.07)) <= aligned < 16 * math.log1p(math.exp(-0.5 / 0.07))
    crossed = cases.loss_of(losses, cases.outputs([axes[:4].flip(0)], [axes[:4].flip(0)]))
    assert crossed > aligned + 2 * 0.5 / 0.07  # two positives lost


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e3])
def test_finite(dtype, scale):
    losses = made()
    for step in range(3):
        own = [scale * value for value in cases.features([(6,)], 2, step, dtype)]
        cases.assert_finite_with_gradient(losses, own, cases.features([(5,)], 2, step + 9, dtype))
        cases.assert_finite_with_gradient(losses, [own[0][:1].expand(2, -1)], [torch.zeros(2, 5, dtype=dtype)])


def test_state_goes_on_where_it_was():
    one, again, two = (made(seed=seed) for seed in (0, 0, 1))
    assert torch.equal(cases.loss_of(one, some(4)), cases.loss_of(again, some(4)))
    two.load_state_dict(one.state_dict())
    for step in range(1, 4):
        assert torch.equal(cases.loss_of(one, some(4, step)), cases.loss_of(two, some(4, step)))
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    names = {name.split(".")[-1] for name in one.state_dict()}
    assert names == {"weight", "bias", "bank_student", "bank_teacher", "normaliser"}  # nothing the data says


def test_learns_digits():
    losses = cases.learned("crd", ["stage3"], lr=0.02, embedding=16, negatives=64)
    assert losses[-1] < 0.8 * losses[0]
