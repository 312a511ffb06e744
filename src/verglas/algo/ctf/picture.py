"""The power spectrum of an image as a picture: half data, half model."""

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter1d

from verglas.algo.ctf.micrograph import ImageDefocus
from verglas.algo.ctf.spectra import CellSpectra
from verglas.model import Optics
from verglas.ops.ctf import ctf_2d

FloatArray = npt.NDArray[np.floating]


def draw_power(
    cells: CellSpectra, optics: Optics, found: ImageDefocus
) -> tuple[npt.NDArray[np.float32], float]:
    """Lay the mean power of all tiles, less its background, beside CTF².

    Parameters
    ----------
    cells
        Of the image.
    optics
        Voltage, Cs and amplitude contrast.
    found
        The fit.

    Returns
    -------
    tuple
        `(n, n)` the origin in the middle, data on the right, where x is positive, the model on the left, both
        from about 0 to 1; and the pixel size of the image that it is the spectrum of, Å.
    """
    power = np.asarray(cells.power_2d)
    n = power.shape[0]
    ky, kx = np.fft.fftfreq(n)[:, None] * n, np.arange(power.shape[1])[None]
    ring = np.round(np.hypot(ky, kx)).astype(int)
    count = np.bincount(ring.ravel())
    mean = np.bincount(ring.ravel(), np.log(np.maximum(power, 1e-30)).ravel()) / np.maximum(count, 1)
    # Wider than a ring of the CTF, so the background has none.
    background = gaussian_filter1d(mean, max(2.0, n / 40), mode="nearest")
    ripple = np.log(np.maximum(power, 1e-30)) - background[ring]
    spread = np.sqrt(
        gaussian_filter1d(np.bincount(ring.ravel(), np.square(ripple).ravel()) / np.maximum(count, 1), 4)
    )
    data = np.clip(0.5 + 0.35 * ripple / np.maximum(spread[ring], 1e-6), 0, 1)
    u, v, angle = found.principal
    transfer = ctf_2d(
        (n, n),
        cells.power_2d_pixel_angstrom,
        defocus_u_angstrom=u,
        defocus_v_angstrom=v,
        defocus_angle_deg=angle,
        voltage_kv=optics.voltage_kv,
        cs_mm=optics.cs_mm,
        amplitude_contrast=optics.amplitude_contrast,
        phase_shift_deg=found.phase_shift_deg,
    )
    model = transfer.square().numpy()
    picture = np.empty((n, n), np.float32)
    half = n // 2
    rows = np.fft.fftshift(np.arange(n))
    right = power.shape[1] - (n % 2 == 0)
    picture[:, half : half + right] = data[rows, :right][:, : n - half]
    # The left half is the right one turned by half a turn.
    mirror = (-rows) % n
    picture[:, :half] = model[mirror][:, half:0:-1]
    return picture, float(cells.power_2d_pixel_angstrom)
