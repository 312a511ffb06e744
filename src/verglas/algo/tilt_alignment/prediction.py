"""What one view should look like, by all the others: the best linear prediction for a specimen in a slab.

Patches of all views are read in one plane of the specimen. What lies h above the plane appears moved by h · tau,
with tau another for each view, so two views share of a frequency k what a slab of thickness D lets them share:

    sinc(D · k · (tau_u - tau_v))

which is the overlap of their central sections, smeared by the slab. With the share of each view's power that is
signal, this is the covariance of the views at each frequency, and its inverse gives the best prediction of any view
by the others (a Wiener filter). It is the reprojection of the reconstruction from the other views, with the best
weights and without the volume.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_LEAST_NOISE = 0.02


@dataclass(frozen=True, eq=False)
class Predictor:
    """Weights at every frequency of a half transform of y x's pixels.

    Parameters
    ----------
    precision
        `(y, x // 2 + 1, n, n)` inverse of the views' covariance.
    covariance
        `(y, x // 2 + 1, n, n)` of the signal.
    frequency
        `(y, x // 2 + 1, 2)` xy, radians a pixel.
    """

    precision: Tensor
    covariance: Tensor
    frequency: Tensor


def plane_frequencies(size: int) -> Tensor:
    """`(size, size // 2 + 1, 2)` frequencies xy of a half transform, cycles a pixel."""
    ky: Tensor = torch.fft.fftfreq(size)
    kx: Tensor = torch.fft.rfftfreq(size)
    return torch.stack([kx.expand(size, -1), ky[:, None].expand(-1, len(kx))], dim=-1)


def make_predictor(smear: Tensor, share: Tensor, size: int) -> Predictor:
    """Weights for views of a slab.

    Parameters
    ----------
    smear
        `(n, 2)` xy, pixels: how far the slab's top appears from its bottom in the plane.
    share
        `(n, size, size // 2 + 1)` of each view's power that is signal, 0 to 1.
    size
        Side of the patches, pixels.
    """
    frequency = plane_frequencies(size)
    phase = torch.einsum("yxi,ni->yxn", frequency, smear)
    coherence = torch.sinc(phase[..., :, None] - phase[..., None, :])
    amplitude = share.clamp(0, 1 - _LEAST_NOISE).sqrt().permute(1, 2, 0)
    covariance = coherence * amplitude[..., :, None] * amplitude[..., None, :]
    total = covariance.clone()
    total.diagonal(dim1=-2, dim2=-1).fill_(1.0)
    # Most frequencies hold nothing that is shared.
    used = (share > 0).any(dim=0)
    precision = torch.eye(len(smear)).repeat(*used.shape, 1, 1)
    precision[used] = torch.linalg.inv(total[used])
    return Predictor(precision, covariance, 2 * torch.pi * frequency)


def predict_views(patches_rfft: Tensor, predictor: Predictor) -> Tensor:
    """Say what each view should be by the others, times how surely that is known.

    Parameters
    ----------
    patches_rfft
        `(b, n, y, x // 2 + 1)`; zero where there is no view.
    predictor
        For these n views.

    Returns
    -------
    Tensor
        As the patches; its product with the conjugate of a view is the logarithm of the likelihood of the view's
        place.
    """
    weights = -predictor.precision.clone()
    weights.diagonal(dim1=-2, dim2=-1).zero_()
    return torch.einsum("yxuv,bvyx->buyx", weights.to(patches_rfft.dtype), patches_rfft)


def information_matrix(predictor: Predictor) -> Tensor:
    """`(2 n, 2 n)` expected information on the views' places xy: the Hessian of the negative log likelihood.

    It has the form of a graph's Laplacian: a common shift of all views is unknown.
    """
    strength = -(predictor.precision * predictor.covariance)
    strength.diagonal(dim1=-2, dim2=-1).zero_()
    doubled = torch.full(strength.shape[:2], 2.0)
    doubled[:, 0] = 1.0
    square = predictor.frequency[..., :, None] * predictor.frequency[..., None, :] * doubled[..., None, None]
    links = torch.einsum("yxuv,yxij->uivj", strength, square).double()
    links = (links + links.permute(2, 3, 0, 1)) / 2
    count = links.shape[0]
    information = -links
    for view in range(count):
        information[view, :, view, :] += links[view].sum(dim=1)
    return information.reshape(2 * count, 2 * count)
