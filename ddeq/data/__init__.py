"""Data sets of point clouds as measures: pairs of a `DiscreteMeasure` and a label."""

from ddeq.data.augmentation import RandomAffine
from ddeq.data.dataset import MeasureDataset
from ddeq.data.digits import load_digits
from ddeq.data.mnist import load_mnist_pc
from ddeq.data.modelnet import load_modelnet
from ddeq.data.normalization import normalize

__all__ = ["MeasureDataset", "RandomAffine", "load_digits", "load_mnist_pc", "load_modelnet", "normalize"]
