"""The kernels of `ddeq.kernels`, where one looks for them when writing a functional."""

from ddeq.kernels import *  # noqa: F403
from ddeq.kernels import __all__ as __all__
