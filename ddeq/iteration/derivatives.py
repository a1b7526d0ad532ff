from ddeq.autodiff.derivatives import *  # noqa: F403
