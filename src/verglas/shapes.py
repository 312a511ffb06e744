"""Names for the array shapes of design section 3; batch dimensions come first, written `...`.

The tests run every public op under beartype, so these annotations are checked, not only read.
"""

from jaxtyping import Bool, Complex, Float
from torch import Tensor

Image = Float[Tensor, "... y x"]
"""`(..., y, x)` image or stack."""

Volume = Float[Tensor, "... z y x"]
"""`(..., z, y, x)` volume."""

ImageRfft = Complex[Tensor, "... y kx"]
"""`(..., y, x // 2 + 1)` half transform of an image: `rfftn`, norm "backward", not shifted."""

VolumeRfft = Complex[Tensor, "... z y kx"]
"""`(..., z, y, x // 2 + 1)` half transform of a volume."""

Mask = Bool[Tensor, "..."]
"""Boolean array of any shape."""

Rotations = Float[Tensor, "... 3 3"]
"""`(..., 3, 3)` matrices acting on column vectors of xyz."""

Affines = Float[Tensor, "... 4 4"]
"""`(..., 4, 4)` matrices acting on homogeneous column vectors of xyz."""

Vectors = Float[Tensor, "... 3"]
"""`(..., 3)` vectors; the argument's name says xyz or zyx."""

Values = Float[Tensor, "..."]
"""Floating-point array of any shape."""
