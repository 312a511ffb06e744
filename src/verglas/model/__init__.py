"""Frozen records of the domain. They hold what is known; they compute nothing."""

from verglas.model.image_particles import Aberrations as Aberrations
from verglas.model.image_particles import ImageParticles as ImageParticles
from verglas.model.local_field import LocalField as LocalField
from verglas.model.motion import MotionModel as MotionModel
from verglas.model.optics import Optics as Optics
from verglas.model.particles import Particles as Particles
from verglas.model.particles import join_particles as join_particles
from verglas.model.region import Region as Region
from verglas.model.tilt_series import ImageReference as ImageReference
from verglas.model.tilt_series import TiltSeries as TiltSeries
from verglas.model.tomogram import Tomogram as Tomogram
from verglas.model.weights import AppliedWeights as AppliedWeights
from verglas.model.weights import DefocusSurface as DefocusSurface
