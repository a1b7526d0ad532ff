"""Classifiers of point clouds by others, written from their papers, that train and are evaluated as our DDEQ is.

Each is an ``nn.Module`` that takes a batch of measures and a generator for its dropout to logits. Atoms of mass zero are
padding: they enter no maximum, no neighbourhood and no batch statistics. What else of a measure a network sees is said in
its docstring: `DeepSets` with mean pooling and `SetTransformer` are functions of the measure, networks with maxima are
functions of its support, and `PointTransformer` is a function of the list of its atoms. `PCN` takes what is known of a measure to
a coarse and a detailed completion.
"""

from ddeq.experiments.baselines.base import Baseline
from ddeq.experiments.baselines.deep_sets import DeepSets
from ddeq.experiments.baselines.pcn import PCN
from ddeq.experiments.baselines.point_transformer import PointTransformer
from ddeq.experiments.baselines.pointnet import PointNet
from ddeq.experiments.baselines.set_transformer import SetTransformer

__all__ = ["BASELINES", "PCN", "Baseline", "DeepSets", "PointNet", "PointTransformer", "SetTransformer"]

BASELINES: dict[str, type[Baseline]] = {
    "pointnet": PointNet,
    "deep_sets": DeepSets,
    "set_transformer": SetTransformer,
    "point_transformer": PointTransformer,
}
"""The classifiers by name; each is made with ``dim``, ``num_classes`` and its own options."""
