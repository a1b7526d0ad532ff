"""Functionals that remember nothing, to compare with."""

from ddeq import Functional


class Cold(Functional):
    """Another functional without its memory."""

    removable = True

    def __init__(self, functional):
        super().__init__()
        self.functional = functional
        self.smoothness, self.tolerance = functional.smoothness, functional.tolerance

    def forward(self, mu):
        return self.functional(mu)

    def first_variation(self, mu, x=None):
        return self.functional.first_variation(mu, x)

    def wasserstein_gradient(self, mu, x=None):
        return self.functional.wasserstein_gradient(mu, x)
