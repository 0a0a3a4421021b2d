"""Data: image sets from many sources, decoded once per machine, splits that hold images out, noise and imbalance."""

from rolekd_ray.data.images import ImageSet
from rolekd_ray.data.sources import SOURCES, load_image_set
from rolekd_ray.data.splits import Split, stratified_split

__all__ = ["SOURCES", "ImageSet", "Split", "load_image_set", "stratified_split"]
