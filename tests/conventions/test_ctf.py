"""CTF: sign, axes and units are those of RELION and, after its conversion, of Warp."""

import mrcfile
import pytest
import torch

from verglas.ops.ctf import ctf_2d


@pytest.mark.relion
@pytest.mark.parametrize(("angle", "shift"), [(30.0, 0.0), (-75.0, 60.0)])
def test_image_is_relions(relion, tmp_path, angle, shift):
    relion(
        "relion_ctf_toolbox", "--simulate", "ctf.mrc", "--angpix", 1.5, "--box", 64, "--kV", 200, "--Cs", 1.4,
        "--Q0", 0.07, "--defU", 12000, "--defV", 10000, "--defAng", angle, "--phase_shift", shift,
    )  # fmt: skip
    centred = torch.from_numpy(mrcfile.read(tmp_path / "ctf.mrc").copy())
    expected = torch.fft.ifftshift(centred)[:, :33]
    image = ctf_2d(
        (64, 64), 1.5, defocus_u_angstrom=12000.0, defocus_v_angstrom=10000.0, defocus_angle_deg=angle,
        voltage_kv=200.0, cs_mm=1.4, amplitude_contrast=0.07, phase_shift_deg=shift,
    )  # fmt: skip
    # In RELION's centred image Nyquist is negative, here it is positive; astigmatism tells them apart.
    inner = [row for row in range(64) if row != 32]
    torch.testing.assert_close(image[inner, :32], expected[inner, :32], atol=1e-4, rtol=0)


def test_image_is_warps(shared_data):
    expected = torch.from_numpy(mrcfile.read(shared_data / "formats" / "warp" / "ctf_reference.mrc").copy())
    first = ctf_2d(
        (256, 256), 1.1, defocus_u_angstrom=(1.5 + 0.3 / 2) * 1e4, defocus_v_angstrom=(1.5 - 0.3 / 2) * 1e4,
        defocus_angle_deg=25.0, voltage_kv=300.0, cs_mm=2.7, amplitude_contrast=0.1,
        phase_shift_deg=0.4 * 180, bfactor_a2=40.0,
    )  # fmt: skip
    torch.testing.assert_close(0.9 * first, expected[0], atol=1e-3, rtol=0)
    second = ctf_2d(
        (256, 256), 1.5, defocus_u_angstrom=2.5e4, defocus_v_angstrom=2.5e4, defocus_angle_deg=0.0,
        voltage_kv=200.0, cs_mm=2.7, amplitude_contrast=0.07, bfactor_a2=40.0,
    )  # fmt: skip
    torch.testing.assert_close(second, expected[1], atol=1e-3, rtol=0)


@pytest.mark.relion
def test_relion_multiplies_projections_by_it_unsigned_at_the_origin(relion, tmp_path):
    # A point projects to a point, and a point times the CTF is the point spread: its sum is CTF(0) = +A.
    volume = torch.zeros(32, 32, 32)
    volume[16, 16, 16] = 1
    with mrcfile.new(tmp_path / "map.mrc", volume.numpy()) as file:
        file.voxel_size = 2.0
    columns = [
        "rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast", "rlnDefocusU", "rlnDefocusV",
        "rlnDefocusAngle", "rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnMagnification", "rlnDetectorPixelSize",
        "rlnImageName",
    ]  # fmt: skip
    values = "300 2.7 0.1 8000 8000 0 0 0 0 10000 2.0 1@none.mrcs"
    loop = "".join(f"_{name} #{i + 1}\n" for i, name in enumerate(columns))
    (tmp_path / "poses.star").write_text(f"data_\n\nloop_\n{loop}{values}\n")
    relion("relion_project", "--i", "map.mrc", "--o", "proj", "--ang", "poses.star", "--ctf", "--angpix", 2)
    image = torch.from_numpy(mrcfile.read(tmp_path / "proj.mrcs").squeeze().copy()).double()
    expected = ctf_2d(
        (32, 32), 2.0, defocus_u_angstrom=8000.0, defocus_v_angstrom=8000.0, defocus_angle_deg=0.0,
        voltage_kv=300.0, cs_mm=2.7, amplitude_contrast=0.1,
    ).double()  # fmt: skip
    transform = torch.fft.rfftn(torch.fft.ifftshift(image)).real
    inside = (torch.arange(17) > 0) & (torch.arange(17) < 12)
    scale = (transform[0, inside] / expected[0, inside]).median()
    assert scale > 0
    torch.testing.assert_close(transform[0, inside] / scale, expected[0, inside], atol=0.03, rtol=0)
