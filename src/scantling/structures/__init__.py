"""The types that flow through scantling; import them from here."""

from scantling.structures.instances import Instances
from scantling.structures.masks import ImageMasks, Masks, RoiMasks
from scantling.structures.sample import Batch, Frame, Sample

__all__ = ["Batch", "Frame", "ImageMasks", "Instances", "Masks", "RoiMasks", "Sample"]
