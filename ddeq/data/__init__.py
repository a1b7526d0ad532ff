"""Data sets of point clouds as measures: pairs of a `DiscreteMeasure` and a label.

- `MeasureDataset` holds labelled clouds of different sizes; `load_digits`, `load_mnist_pc` and `load_modelnet` read some, each
  from the formats in which it is published; `load_mesh` and `sample_mesh` make measures of surfaces, and `normalize` gives
  every shape the same place and size. `digit_measure` and `shape_measure` do this with clouds from elsewhere.
- Augmentations are random maps of measures, called with a batch and a generator: `RandomAffine`, `RandomRotation`,
  `RandomScaling`, `RandomShift`, `Jitter`, `RandomSubsample`, one after the other in a `Compose`. `MixHalfSpaces` joins two.
- Completion tasks part a measure into what is known and what is missing: `RemoveDiscs`, `RemoveHalfSpace`.
- What is random is a function of seed, epoch and number (`generator_for`), and so are the batches of a `BucketSampler`: a run
  that goes on after an interruption gives what it would have given. `collate` makes batches of your own samples.
"""

from ddeq.data.augmentation import Augmentation, Compose, RandomAffine, RandomRotation, RandomScaling, RandomShift
from ddeq.data.buckets import BucketSampler
from ddeq.data.collation import collate
from ddeq.data.completion import Removal, RemoveDiscs, RemoveHalfSpace
from ddeq.data.dataset import MeasureDataset
from ddeq.data.digits import load_digits
from ddeq.data.meshes import load_mesh, sample_mesh
from ddeq.data.mixing import Mixed, MixHalfSpaces, Mixing
from ddeq.data.mnist import load_mnist_pc
from ddeq.data.modelnet import load_modelnet
from ddeq.data.normalization import normalize
from ddeq.data.perturbation import Jitter, RandomSubsample
from ddeq.data.preprocessing import digit_measure, shape_measure
from ddeq.data.randomness import generator_for

__all__ = [
    "Augmentation",
    "BucketSampler",
    "Compose",
    "Jitter",
    "MeasureDataset",
    "MixHalfSpaces",
    "Mixed",
    "Mixing",
    "RandomAffine",
    "RandomRotation",
    "RandomScaling",
    "RandomShift",
    "RandomSubsample",
    "Removal",
    "RemoveDiscs",
    "RemoveHalfSpace",
    "collate",
    "digit_measure",
    "generator_for",
    "load_digits",
    "load_mesh",
    "load_mnist_pc",
    "load_modelnet",
    "normalize",
    "sample_mesh",
    "shape_measure",
]
