import numpy as np
import pytest
import torch

from rolekd_ray.distill.regressor import Regressor
from rolekd_ray.errors import ConfigError


def convolved(features: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """(N, C, …) by (D, C), one output number at a time."""
    result = np.zeros((len(features), len(weight), *features.shape[2:]))
    for n, *place in np.ndindex(len(features), *features.shape[2:]):
        for d in range(len(weight)):
            result[(n, d, *place)] = sum(weight[d, c] * features[(n, c, *place)] for c in range(features.shape[1]))
    return result


def pooled(features: np.ndarray, size: int) -> np.ndarray:
    """(N, C, H, H) to (N, C, size, size): means of the pixels that an output cell touches."""
    edge, result = features.shape[2], np.zeros((*features.shape[:2], size, size))
    for y, x in np.ndindex(size, size):
        rows = slice(y * edge // size, -(-(y + 1) * edge // size))
        columns = slice(x * edge // size, -(-(x + 1) * edge // size))
        result[:, :, y, x] = features[:, :, rows, columns].mean((2, 3))
    return result


def enlarged(features: np.ndarray, size: int) -> np.ndarray:
    """(N, C, H, H) to (N, C, size, size): bilinear between centres of pixels, the outermost pixels go on outside."""
    edge, result = features.shape[2], np.zeros((*features.shape[:2], size, size))
    for y, x in np.ndindex(size, size):
        ends = []
        for place in (y, x):
            at = min(max((place + 0.5) * edge / size - 0.5, 0.0), edge - 1.0)
            low = int(at)
            ends.append((low, min(low + 1, edge - 1), at - low))
        (y0, y1, v), (x0, x1, u) = ends
        f = features
        result[:, :, y, x] = (1 - v) * ((1 - u) * f[:, :, y0, x0] + u * f[:, :, y0, x1])
        result[:, :, y, x] += v * ((1 - u) * f[:, :, y1, x0] + u * f[:, :, y1, x1])
    return result


@pytest.mark.parametrize(
    ("shape", "wanted", "resize"),
    [
        ((3,), (5,), None),
        ((3, 4, 4), (5, 4, 4), None),
        ((3, 6, 6), (2, 3, 3), pooled),
        ((3, 5, 5), (2, 3, 3), pooled),
        ((3, 2, 2), (4, 6, 6), enlarged),
        ((3, 6, 6), (3, 2, 2), pooled),
        ((3, 2, 2), (3, 5, 5), enlarged),
    ],
)
def test_equals_plain_loops(shape, wanted, resize):
    torch.manual_seed(0)
    regressor = Regressor(shape, wanted).double()
    features = torch.randn(2, *shape, dtype=torch.float64)
    expected = features.numpy()
    for parameter in regressor.parameters():
        expected = convolved(expected, parameter.detach().numpy().reshape(wanted[0], shape[0]))
    if resize:
        expected = resize(expected, wanted[1])
    assert list(regressor(features).shape) == [2, *wanted]
    np.testing.assert_allclose(regressor(features).detach().numpy(), expected, atol=1e-12)


def test_learns_only_where_channels_differ():
    assert not list(Regressor((3, 6, 6), (3, 2, 2)).parameters())
    assert [tuple(p.shape) for p in Regressor((3, 6, 6), (5, 2, 2)).parameters()] == [(5, 3, 1, 1)]
    assert [tuple(p.shape) for p in Regressor((3,), (5,)).parameters()] == [(5, 3)]


def test_sides_that_change_in_opposite_ways_are_interpolated():
    assert Regressor((3, 8, 2), (3, 4, 4))(torch.zeros(2, 3, 8, 2)).shape == (2, 3, 4, 4)


@pytest.mark.parametrize(("shape", "wanted"), [((3,), (3, 2, 2)), ((3, 2, 2), (3,)), ((4, 3), (4, 3)), ((), ())])
def test_kinds_of_features_do_not_mix(shape, wanted):
    with pytest.raises(ConfigError, match="layers: cannot match"):
        Regressor(shape, wanted)
