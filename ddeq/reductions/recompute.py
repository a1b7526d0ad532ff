from ddeq.autodiff.recompute import *  # noqa: F403
