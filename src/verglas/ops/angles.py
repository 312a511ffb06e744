"""Which orientations of a template are tried.

Convention
----------
emClarity's angles mean R = Rz(phi) Rx(theta) Rz(psi - phi): theta tips the template's z axis over, phi is the
direction into which it is tipped, psi the turn about its own axis. The helical form is Rz(phi) Rx(theta) Ry(psi)
for a helix along the template's y axis. All matrices take the template to the specimen.
"""

import math

import torch
from torch import Tensor

from verglas.errors import UserError
from verglas.ops.geometry import axis_rotations
from verglas.ops.rotation import so3_grid
from verglas.ops.symmetry import symmetry_matrices
from verglas.shapes import Rotations

_FARTHEST_AXIS = {"T": 70.6, "O": 54.8, "I": 31.8}
"""Degrees between any direction and the nearest one that a symmetric template's z axis can be turned to."""

_TURN = {"T": 120.0, "O": 90.0, "I": 180.0}
"""Degrees of the rotation about the z axis that leaves the template as it is."""


def uniform_grid(step_deg: float, symmetry: str = "C1") -> Rotations:
    """Spread orientations evenly over all that the symmetry leaves different.

    Parameters
    ----------
    step_deg
        Distance of neighbours, above 0 and up to 90 degrees.
    symmetry
        Point group of the template.

    Returns
    -------
    Tensor
        `(n, 3, 3)` float64.

    Raises
    ------
    UserError
        When the step is out of range or there is no such group.
    """
    group = symmetry_matrices(symmetry)
    # The grid parts views of the reference, which are turned by the inverse of the group's elements: the same set.
    return so3_grid(step_deg, group if len(group) > 1 else None)


def emclarity_grid(
    theta_out_deg: float,
    step_out_deg: float,
    theta_in_deg: float,
    step_in_deg: float,
    *,
    symmetry: str = "C1",
    helical: bool = False,
) -> Rotations:
    """Lay the grid that emClarity's `Tmp_angleSearch = [out, step, in, step]` describes.

    Out of plane, theta runs from 0 to `theta_out_deg`, and from 180 down as well when that is negative; phi
    takes steps of the same length on the circle of each theta. In plane, psi runs from minus to plus
    `theta_in_deg`. A symmetric template needs no theta beyond its next axis and no psi beyond its period.
    emClarity also limits phi for O and I, which leaves orientations out; here phi always takes the whole circle.

    Parameters
    ----------
    theta_out_deg, step_out_deg
        Range and step out of plane; a step of 0 only goes with a range of 0.
    theta_in_deg, step_in_deg
        Half the range and step in plane; likewise.
    symmetry
        Point group of the template, whose main axis is z.
    helical
        The helix lies along the template's y axis: phi takes the whole circle in the plane, theta runs from
        minus to plus `theta_out_deg`, and psi turns about the helix.

    Returns
    -------
    Tensor
        `(n, 3, 3)` float64.

    Raises
    ------
    UserError
        When a range or a step is out of bounds, or there is no such group.
    """
    _check_range("out of plane", abs(theta_out_deg), step_out_deg)
    _check_range("in plane", theta_in_deg, step_in_deg)
    if helical:
        phi = _full_circle(step_out_deg or 360.0)
        theta = _centred_range(abs(theta_out_deg), step_out_deg, 360.0)
        psi = _centred_range(theta_in_deg, step_in_deg, 360.0)
        triples = torch.cartesian_prod(phi, theta, psi)
        return (
            axis_rotations(triples[:, 0], "z")
            @ axis_rotations(triples[:, 1], "x")
            @ axis_rotations(triples[:, 2], "y")
        )
    farthest, period = _limits(symmetry)
    both = theta_out_deg < 0 and farthest == 180.0
    tips = _from_zero(abs(theta_out_deg), step_out_deg, farthest)
    if both:
        tips = torch.unique(torch.cat([tips, 180 - tips]).round(decimals=6))
    psi = _centred_range(theta_in_deg, step_in_deg, period)
    rows = []
    for theta in tips.tolist():
        sine = math.sin(math.radians(theta))
        circle = _full_circle(step_out_deg / sine if sine > 1e-6 else 360.0)
        pairs = torch.cartesian_prod(circle, psi)
        rows.append(torch.stack([pairs[:, 0], torch.full_like(pairs[:, 0], theta), pairs[:, 1]], dim=1))
    phi, theta_all, psi_all = torch.cat(rows).unbind(1)
    return axis_rotations(phi, "z") @ axis_rotations(theta_all, "x") @ axis_rotations(psi_all - phi, "z")


def _limits(symmetry: str) -> tuple[float, float]:
    """Largest theta, and the period of psi."""
    symmetry_matrices(symmetry)
    name = symmetry.strip().upper()
    if name[0] in _TURN:
        return _FARTHEST_AXIS[name[0]], _TURN[name[0]]
    return (90.0 if name[0] == "D" else 180.0), 360.0 / int(name[1:])


def _check_range(name: str, extent: float, step: float) -> None:
    if not (0 <= extent <= 180 and 0 <= step <= 180) or (step == 0 and extent > 0):
        raise UserError(
            f"the angles {name} must range up to 180 degrees with a positive step; got {extent:g} with step {step:g}"
        )


def _from_zero(extent: float, step: float, farthest: float) -> Tensor:
    """Angles from 0 to `extent`, or where the symmetry ends them to within half a step of that."""
    count = math.floor(min(extent, farthest + step / 2) / step + 1e-6) if step else 0
    return torch.arange(count + 1, dtype=torch.float64) * step


def _centred_range(extent: float, step: float, period: float) -> Tensor:
    """Angles from minus to plus `extent`; a whole period without its repeated end."""
    if step == 0:
        return torch.zeros(1, dtype=torch.float64)
    if 2 * extent >= period - 1e-6:
        return _full_circle(step, period)
    reach = math.floor(extent / step + 1e-6)
    return torch.arange(-reach, reach + 1, dtype=torch.float64) * step


def _full_circle(step: float, period: float = 360.0) -> Tensor:
    """Angles that divide the period into the fewest steps not longer than `step`."""
    count = max(1, math.ceil(period / step - 1e-6))
    return torch.arange(count, dtype=torch.float64) * (period / count)
