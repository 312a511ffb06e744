import math

import pytest
import torch

from verglas.errors import UserError
from verglas.ops import ctf
from verglas.units import electron_wavelength_angstrom

SCOPE = {"voltage_kv": 300.0, "cs_mm": 2.7, "amplitude_contrast": 0.1}


def _direct(s, direction_deg, u, v, angle, voltage, cs, contrast, shift, bfactor):
    """The formula of the textbook for one frequency, in plain Python."""
    wavelength = electron_wavelength_angstrom(voltage)
    defocus = u * math.cos(math.radians(direction_deg - angle)) ** 2
    defocus += v * math.sin(math.radians(direction_deg - angle)) ** 2
    gamma = math.pi / 2 * cs * 1e7 * wavelength**3 * s**4 - math.pi * wavelength * defocus * s**2
    phase = math.sqrt(1 - contrast**2)
    gamma -= math.radians(shift)
    return (contrast * math.cos(gamma) - phase * math.sin(gamma)) * math.exp(-bfactor * s * s / 4)


def test_image_matches_the_formula():
    shape, pixel = (12, 15), 1.7
    defocus_u = torch.tensor([15000.0, -8000.0], dtype=torch.float64)
    image = ctf.ctf_2d(
        shape, pixel, defocus_u_angstrom=defocus_u, defocus_v_angstrom=defocus_u - 3000,
        defocus_angle_deg=torch.tensor([20.0, -70.0]), voltage_kv=200.0, cs_mm=1.4, amplitude_contrast=0.07,
        phase_shift_deg=torch.tensor([0.0, 80.0]), bfactor_a2=torch.tensor([0.0, 60.0]),
    )  # fmt: skip
    assert image.shape == (2, 12, 8)
    for item, row, column in [(0, 0, 0), (0, 2, 5), (0, 9, 7), (1, 0, 0), (1, 11, 3), (1, 5, 0)]:
        y, x = (row if row < 7 else row - 12) / (12 * pixel), column / (15 * pixel)
        expected = _direct(
            math.hypot(y, x), math.degrees(math.atan2(y, x)), defocus_u[item].item(), defocus_u[item].item() - 3000,
            [20.0, -70.0][item], 200.0, 1.4, 0.07, [0.0, 80.0][item], [0.0, 60.0][item],
        )  # fmt: skip
        assert image[item, row, column].item() == pytest.approx(expected, abs=1e-5)


def test_line_is_the_image_along_an_axis():
    defocus = torch.tensor([[9000.0], [21000.0]], dtype=torch.float64)
    image = ctf.ctf_2d(
        (16, 16), 2.0, defocus_u_angstrom=defocus, defocus_v_angstrom=defocus, defocus_angle_deg=0.0, **SCOPE
    )
    frequency = torch.arange(9, dtype=torch.float64) / 32
    torch.testing.assert_close(ctf.ctf_1d(frequency, defocus, **SCOPE), image[..., 0, :])
    assert image.shape == (2, 1, 16, 9)
    assert (image[..., 0, 0] - 0.1).abs().max() < 1e-12  # CTF(0) = +A


def test_numbers_give_single_precision():
    image = ctf.ctf_2d(
        (8, 8),
        2.0,
        defocus_u_angstrom=1e4,
        defocus_v_angstrom=1e4,
        defocus_angle_deg=0.0,
        device="cpu",
        **SCOPE,
    )
    assert image.dtype == torch.float32


def test_astigmatism_has_its_axes():
    u, v, angle = torch.tensor(20000.0), torch.tensor(16000.0), torch.tensor(30.0)
    directions = torch.tensor([30.0, 120.0, 75.0, -150.0])
    assert ctf.astigmatic_defocus(directions, u, v, angle).tolist() == pytest.approx(
        [20000, 16000, 18000, 20000]
    )
    # A larger defocus has its zeros at lower frequency: the first ring is short along 30 degrees, y up.
    zero = ctf.zero_frequency(u, **SCOPE).item()
    image = ctf.ctf_2d(
        (512, 512), 2.0, defocus_u_angstrom=u, defocus_v_angstrom=v, defocus_angle_deg=angle, **SCOPE
    )
    y, x = (round(zero * 1024 * f(math.radians(30))) for f in (math.sin, math.cos))
    assert abs(image[y, x]) < 0.05
    assert abs(image[-y, x]) > 0.3


@pytest.mark.parametrize(
    ("cs", "shift", "order"), [(2.7, 0.0, 1), (2.7, 90.0, 1), (0.0, 0.0, 3), (0.001, 30.0, 2)]
)
def test_zeros_are_zeros(cs, shift, order):
    scope = SCOPE | {"cs_mm": cs, "phase_shift_deg": shift}
    defocus = torch.tensor([5000.0, 15000.0, 30000.0], dtype=torch.float64)
    zeros = ctf.zero_frequency(defocus, order=order, **scope)
    values = torch.stack([ctf.ctf_1d(z[None], d, **scope)[0] for z, d in zip(zeros, defocus, strict=True)])
    assert values.abs().max() < 1e-9
    below = [(ctf.ctf_1d(torch.linspace(0, z, 4000)[1:-1].double(), d, **scope).sign().diff() != 0).sum().item()
             for z, d in zip(zeros.tolist(), defocus, strict=True)]  # fmt: skip
    assert below == [order - 1] * 3


def test_missing_zeros_are_nan():
    assert ctf.zero_frequency(torch.tensor([-5000.0, 100.0]), **SCOPE).isnan().all()
    with pytest.raises(UserError, match="order"):
        ctf.zero_frequency(torch.tensor(1e4), order=0, **SCOPE)


def test_gradient_reaches_the_parameters():
    u, v, angle, shift, bfactor = (
        torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (900.0, 800.0, 10.0, 5.0, 3.0)
    )
    assert torch.autograd.gradcheck(
        lambda u, v, a, p, b: ctf.ctf_2d(
            (6, 6), 2.0, defocus_u_angstrom=u, defocus_v_angstrom=v, defocus_angle_deg=a,
            phase_shift_deg=p, bfactor_a2=b, **SCOPE
        ),
        (u, v, angle, shift, bfactor),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "word"),
    [({"voltage_kv": 0.0}, "voltage_kv"), ({"amplitude_contrast": 1.5}, "amplitude_contrast")],
)
def test_bad_microscopes_are_refused(change, word):
    with pytest.raises(UserError, match=word):
        ctf.ctf_1d(torch.ones(2), torch.tensor(1e4), **(SCOPE | change))


def test_images_have_two_axes():
    with pytest.raises(UserError, match="shape"):
        ctf.ctf_2d(
            (4, 4, 4), 1.0, defocus_u_angstrom=1.0, defocus_v_angstrom=1.0, defocus_angle_deg=0.0, **SCOPE
        )


def test_the_wave_turns_with_the_defocus() -> None:
    """Its imaginary part is the CTF, and a change of defocus is one factor."""
    common = {**SCOPE, "defocus_angle_deg": 30.0}
    first, second = (
        ctf.aberration_wave_2d((32, 48), 2.5, defocus_u_angstrom=z + 300.0, defocus_v_angstrom=z, **common)
        for z in (15000.0, 17000.0)
    )
    image = ctf.ctf_2d((32, 48), 2.5, defocus_u_angstrom=17300.0, defocus_v_angstrom=17000.0, **common)
    torch.testing.assert_close(second.imag, image)
    y, x = ctf.frequency_axes((32, 48), 2.5)
    turn = torch.exp(1j * math.pi * electron_wavelength_angstrom(300.0) * 2000.0 * (y**2 + x**2))
    torch.testing.assert_close(first * turn, second, rtol=1e-3, atol=1e-4)
