"""Measure-consistent networks: attention, pooling, encoders, the equilibrium cell, and DDEQs.

Every layer is a function of measures (measure consistency, T1): it weighs atoms by their mass, so that splitting an atom, or
padding with atoms of mass zero, changes nothing. `EquilibriumCell` is held to contract by a penalty, `ContractiveCell`
contracts by construction and bears a certificate. `DDEQ` puts an encoder, a cell and a reference together; `Classifier` reads
its equilibrium. `InducedSetEncoder` sees the input as a whole, `LocalEncoder` its geometry around each atom. `build` makes
models from configurations, `load_pretrained` gives those that come with the library.
"""

from ddeq.nn.attention import KeysAndValues, MeasureAttention, measure_attention
from ddeq.nn.cell import EquilibriumCell
from ddeq.nn.coarsening import coarsen
from ddeq.nn.configuration import build, trusted_packages
from ddeq.nn.context import Context
from ddeq.nn.contractive import ContractiveCell, interaction, norm_bound
from ddeq.nn.ddeq import DDEQ, CollapseWarning
from ddeq.nn.dropout import Dropout
from ddeq.nn.encoder import InducedSetEncoder
from ddeq.nn.heads import Classifier, Completer, Head
from ddeq.nn.layers import MLP, AttentionBlock, FourierEmbedding
from ddeq.nn.local import LocalBlock, LocalConvolution
from ddeq.nn.local_encoder import LocalEncoder
from ddeq.nn.pooling import MaxPooling, MeanPooling
from ddeq.nn.pretrained import load_pretrained, load_weights, pretrained_preprocessing, save_weights
from ddeq.nn.reference import GaussianReference, LearnedReference, Reference
from ddeq.solvers.diagnostics import effective_support, jacobian_penalty, spectral_radius

__all__ = [
    "DDEQ",
    "MLP",
    "AttentionBlock",
    "Classifier",
    "CollapseWarning",
    "Completer",
    "Context",
    "ContractiveCell",
    "Dropout",
    "EquilibriumCell",
    "FourierEmbedding",
    "GaussianReference",
    "Head",
    "InducedSetEncoder",
    "KeysAndValues",
    "LearnedReference",
    "LocalBlock",
    "LocalConvolution",
    "LocalEncoder",
    "MaxPooling",
    "MeanPooling",
    "MeasureAttention",
    "Reference",
    "build",
    "coarsen",
    "effective_support",
    "interaction",
    "jacobian_penalty",
    "load_pretrained",
    "load_weights",
    "measure_attention",
    "norm_bound",
    "pretrained_preprocessing",
    "save_weights",
    "spectral_radius",
    "trusted_packages",
]
