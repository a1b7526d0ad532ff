"""One notion of closeness for all checks: by dtype, and by the size of what was added up."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["assert_close"]


def assert_close(
    actual: Tensor,
    expected: Tensor,
    law: str = "",
    *,
    scale: float | Tensor = 0.0,
    units: float = 2e3,
    rtol: float | None = None,
    hint: str = "",
) -> None:
    """Assert that two tensors agree to rounding.

    Parameters
    ----------
    actual, expected
        What is compared.
    law
        What is broken if they differ; the message begins with it.
    scale
        Size of the terms that were added up, where the result may be much smaller than they.
    units
        Rounding units of the dtype that are allowed, relative to the largest entry or to ``scale``.
    rtol
        Allowed relative difference in the place of ``units``.
    hint
        What to look for if they differ; the message ends with it.

    Raises
    ------
    AssertionError
        If they differ, or are not finite, or their shapes or dtypes are not the same.
    """
    actual, expected = actual.detach(), expected.detach()
    if (actual.shape, actual.dtype) != (expected.shape, expected.dtype):
        raise AssertionError(
            f"{law}: expected shape {tuple(expected.shape)} and {expected.dtype}, got {tuple(actual.shape)} and {actual.dtype}"
        )
    if not bool(torch.isfinite(actual).all() & torch.isfinite(expected).all()):
        raise AssertionError(f"{law}: not finite: got {_shown(actual)}, expected {_shown(expected)}")
    if not actual.numel():
        return
    allowed = units * torch.finfo(actual.dtype).eps if rtol is None else rtol
    size = torch.maximum(torch.maximum(actual.abs().max(), expected.abs().max()), torch.as_tensor(scale).to(actual).abs().max())
    difference = (actual - expected).abs().max()
    if difference > allowed * size:
        raise AssertionError(
            f"{law}: got {_shown(actual)}, expected {_shown(expected)}; largest difference {difference:.3e}, "
            f"allowed {allowed * size:.3e}" + (f". {hint}" if hint else "")
        )


def _shown(t: Tensor) -> str:
    flat = [f"{v:.6g}" for v in t.flatten()[:6].tolist()]
    return f"[{', '.join(flat)}{', ...' if t.numel() > 6 else ''}]"
