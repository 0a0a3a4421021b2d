import numpy as np
import pytest
import stateful_cases as cases
import torch

from rolekd_ray.distill.singular import align, singular_vectors

SHAPES = [(4, 3, 5), (8, 2, 2), (4, 2, 2), (3, 1, 1), (6,), (5, 9)]


def by_numpy(features: torch.Tensor, count: int) -> np.ndarray:
    """The right-singular vectors (k, C) of one map, largest component positive."""
    matrix = features.reshape(len(features), -1).T.double().numpy()
    vectors = np.linalg.svd(matrix, full_matrices=False)[2][:count]
    return np.stack([v * np.sign(v[np.abs(v).argmax()]) for v in vectors])


@pytest.mark.parametrize("shape", SHAPES)
def test_equals_lapack(shape):
    features = cases.features([shape], 6)[0]
    found = singular_vectors(features, 4)
    for vectors, feature in zip(found, features, strict=True):
        wanted = by_numpy(feature, 4)
        assert vectors.shape == wanted.shape
        for vector, other in zip(vectors.numpy(), wanted, strict=True):
            # Where P < C the sign is fixed in the other space.
            assert min(np.abs(vector - other).max(), np.abs(vector + other).max()) < 1e-6


@pytest.mark.parametrize("shape", SHAPES)
def test_the_sign_is_that_of_the_largest_component_in_the_smaller_space(shape):
    features = cases.features([shape], 6)[0]
    for vectors, feature in zip(singular_vectors(features, 4).numpy(), features, strict=True):
        matrix = feature.reshape(len(feature), -1).numpy()  # (C, P)
        for vector in vectors:
            side = vector if matrix.shape[0] <= matrix.shape[1] else matrix.T @ vector
            assert side[np.abs(side).argmax()] > 0


def test_signs_do_not_depend_on_scale_or_precision():
    features = cases.features([(4, 3, 5)], 6)[0]
    found = singular_vectors(features, 2)
    assert all(v[v.abs().argmax()] > 0 for v in found.flatten(0, 1))
    for scale in (1e-6, 1e6):
        assert torch.allclose(singular_vectors(scale * features.float(), 2), found.float(), atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 2, 3), (6, 2, 2), (4,)])
def test_gradients(shape):
    features = cases.features([shape], 2)[0].requires_grad_()
    assert torch.autograd.gradcheck(lambda values: singular_vectors(values, 3), (features,))


@pytest.mark.parametrize("shape", [(4, 3, 5), (7, 2, 2)])
def test_gradient_is_that_of_the_singular_value_decomposition(shape):
    features, weights = cases.features([shape], 3)[0], cases.features([(4, shape[0])], 3, seed=1)[0]
    ours, exact = features.clone().requires_grad_(), features.clone().requires_grad_()
    found = singular_vectors(ours, 4)
    (found * weights[:, : found.shape[1]]).sum().backward()
    vectors = torch.linalg.svd(exact.flatten(2).mT, full_matrices=False)[2][:, :4]
    signs = (vectors.detach() * found.detach()).sum(2, keepdim=True).sign()
    (vectors * signs * weights[:, : found.shape[1]]).sum().backward()
    assert torch.allclose(ours.grad, exact.grad, atol=1e-6 * exact.grad.abs().max())


def degenerate() -> dict[str, torch.Tensor]:
    identity = torch.eye(4).reshape(1, 4, 2, 2)
    random = cases.features([(4, 2, 2)], 1, dtype=torch.float32)[0]
    turned = torch.linalg.qr(random.reshape(4, 4))[0].reshape(1, 4, 2, 2)
    return {
        "zeros": torch.zeros(1, 4, 2, 2),
        "equal singular values": identity,
        "equal singular values, turned": turned,
        "nearly equal": turned + 1e-5 * random,
        "two of four equal": torch.diag(torch.tensor([3.0, 3.0, 1.0, 1.0])).reshape(1, 4, 2, 2),
        "constant": torch.ones(1, 4, 2, 2),
        "one position": torch.zeros(1, 4, 2, 2).index_fill(3, torch.tensor(0), 1.0),
        "faint": 1e-30 * random,
        "strong": 1e18 * random,
        "rank two": (random.reshape(4, 4)[:, :2] @ random.reshape(4, 4)[:2]).reshape(1, 4, 2, 2),
    }


@pytest.mark.parametrize("case", list(degenerate()))
def test_degenerate_maps_have_finite_vectors_and_gradients(case):
    features = degenerate()[case].requires_grad_()
    vectors = singular_vectors(features, 4)
    vectors.square().mul(torch.arange(4.0)).sum().backward()
    assert torch.isfinite(features.grad).all()
    scale = features.detach().abs().max()
    assert (features.grad * scale).abs().max() < 1e4  # a gradient by the map's relative change has a bound
    lengths = vectors.detach().norm(dim=2)
    assert ((lengths < 1e-6) | ((lengths - 1).abs() < 1e-4)).all()
    overlaps = vectors.detach()[0] @ vectors.detach()[0].T
    assert (overlaps - overlaps.diagonal().diag()).abs().max() < 1e-3
    assert (lengths > 0.5).sum() == {"zeros": 0, "constant": 1, "one position": 1, "rank two": 2}.get(case, 4)
    if case == "zeros":
        assert (features.grad == 0).all()


def test_align():
    vectors = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]])
    targets = torch.tensor([[-0.9, 0.1], [0.1, 0.9], [1.0, 0.0]])
    assert align(vectors, targets).tolist() == [[-1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]
