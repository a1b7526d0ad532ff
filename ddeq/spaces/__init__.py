"""Where atoms live: Euclidean space, boxes, half-spaces, simplices, spheres, tori, products of them, and manifolds of geoopt.

A `Space` projects points, makes gradients and noise tangent, retracts and transports; ``ddeq.flow(..., space=...)``,
``ddeq.flows.equilibrium(..., space=...)`` and ``ddeq.fixed_point(..., space=...)`` keep every atom on it.
"""

from ddeq.spaces.box import Box
from ddeq.spaces.euclidean import Euclidean
from ddeq.spaces.half_space import HalfSpace
from ddeq.spaces.manifold import Manifold
from ddeq.spaces.product import Product
from ddeq.spaces.simplex import Simplex
from ddeq.spaces.space import Space
from ddeq.spaces.sphere import Sphere
from ddeq.spaces.torus import Torus

__all__ = ["Box", "Euclidean", "HalfSpace", "Manifold", "Product", "Simplex", "Space", "Sphere", "Torus"]
