"""What is known of a membrane in a class average."""

from dataclasses import dataclass

from verglas.errors import UserError


@dataclass(frozen=True)
class MembraneRecord:
    """A membrane of a class average, in pixels of the average.

    Parameters
    ----------
    average
        Number of the average in its stack, from 1: the class number of its particles.
    stack
        File that holds the average.
    centre_yx
        Where the curve passes nearest to the middle of the image.
    theta_deg
        Direction there, from the y axis towards x.
    kappa
        Curvature there, 1/pixel; positive when the curve bends against its normal.
    distance
        Between the leaflets.
    sigma1, sigma2
        Widths of the leaflets against and along the normal.
    quality
        Correlation of the average with curve and profile near the curve.
    pixel_size_angstrom
        Of the average; none when the table does not say, and the pixels are those of the particles.
    size
        Side of the average; none likewise.
    control_yx
        Four control points of a Bézier curve; none for an arc.
    """

    average: int
    stack: str
    centre_yx: tuple[float, float]
    theta_deg: float
    kappa: float
    distance: float
    sigma1: float
    sigma2: float
    quality: float = 1.0
    pixel_size_angstrom: float | None = None
    size: int | None = None
    control_yx: tuple[tuple[float, float], ...] | None = None

    def __post_init__(self) -> None:
        if not self.distance > 0 or self.average < 1:
            raise UserError(
                f"a membrane must have a positive distance of leaflets and a class from 1; got {self.distance} and "
                f"{self.average}"
            )
        if self.control_yx is not None and len(self.control_yx) != 4:
            raise UserError(f"a cubic curve has 4 control points; got {len(self.control_yx)}")
