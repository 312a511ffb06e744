"""Prediction of views by others: against averages over random specimens and numeric derivatives."""

import numpy as np
import torch

from verglas.algo.tilt_alignment.prediction import information_matrix, make_predictor, predict_views

SIZE = 16


def test_views_share_what_a_slab_lets_them_share():
    smear = torch.tensor([[-5.0, 0.0], [0.0, 0.0], [3.0, 1.0]])
    predictor = make_predictor(smear, torch.full((3, SIZE, SIZE // 2 + 1), 0.6), SIZE)
    heights = (np.arange(20000) + 0.5) / 20000 - 0.5
    for y, x in ((0, 0), (0, 3), (2, 5), (13, 2)):
        k = 2 * np.pi * np.array([x, y if y < SIZE // 2 else y - SIZE]) / SIZE
        waves = np.exp(-1j * heights[:, None] * (smear.numpy() @ k))
        expected = 0.6 * (waves.T @ waves.conj() / len(heights)).real
        np.testing.assert_allclose(predictor.covariance[y, x], expected, atol=1e-4)


def test_prediction_is_the_best_linear_one():
    # Views drawn with the covariance itself: the regression of one view on the others, found by least squares
    # from many draws, must point where the prediction points.
    smear = torch.tensor([[-4.0, 0.0], [-1.0, 0.0], [2.0, 0.0], [5.0, 0.0]])
    predictor = make_predictor(smear, torch.full((4, SIZE, SIZE // 2 + 1), 0.8), SIZE)
    total = predictor.covariance[0, 2].double().numpy() + 0.2 * np.eye(4)
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(200_000, 4)) @ np.linalg.cholesky(total).T
    regression = np.linalg.lstsq(draws[:, [0, 2, 3]], draws[:, 1], rcond=None)[0]
    transforms = torch.zeros(1, 4, SIZE, SIZE // 2 + 1, dtype=torch.complex64)
    weights = []
    for other in (0, 2, 3):
        transforms.zero_()
        transforms[0, other, 0, 2] = 1.0
        weights.append(float(predict_views(transforms, predictor)[0, 1, 0, 2].real))
    surety = float(predictor.precision[0, 2, 1, 1])
    np.testing.assert_allclose(np.array(weights) / surety, regression, atol=0.02)


def test_information_is_the_curvature_of_the_likelihood():
    smear = torch.tensor([[-4.0, 0.0], [0.0, 0.0], [4.0, 0.0]])
    predictor = make_predictor(smear, torch.full((3, SIZE, SIZE // 2 + 1), 0.5), SIZE)
    information = information_matrix(predictor).numpy()
    np.testing.assert_allclose(information.reshape(3, 2, 3, 2).sum(axis=2), 0, atol=1e-3 * information.max())

    def cost(places: np.ndarray) -> float:
        """Minus the expected logarithm of the likelihood, over the whole transform."""
        k = predictor.frequency.double().numpy()
        phase = np.einsum("yxi,ni->yxn", k, places)
        turned = np.cos(phase[..., :, None] - phase[..., None, :]) * predictor.covariance.double().numpy()
        sums = 0.5 * (predictor.precision.double().numpy() * turned).sum(axis=(-2, -1))
        return float(2 * sums.sum() - sums[:, 0].sum())

    step = 1e-3
    for a, b in ((0, 0), (1, 1), (0, 2), (3, 5), (1, 2)):
        values = 0.0
        for i, j in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
            places = np.zeros(6)
            places[a] += i * step
            places[b] += j * step
            values += i * j * cost(places.reshape(3, 2))
        assert abs(values / (4 * step**2) - information[a, b]) < 1e-2 * information.max()
