"""Data with known truth, made by another route than the code it judges.

Bodies are sums of Gaussians (`scatterers`, from `atoms`, `solids`, `phantoms`, `membranes`, `supports`),
drawn or transformed exactly (`render`, `kernels`), arranged in a `specimen` (`placement`, `orientations`),
seen through a microscope and a camera (`imaging`, `detector`, `views`) as `tilt_series` (planned by
`tilt_scheme`), `particles` or `movies`. Nothing here uses `verglas.ops` but the matrices of the tilt
geometry.
"""
