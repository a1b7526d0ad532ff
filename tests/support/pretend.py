"""A pretend accelerator in pure Python: ``torch.device("pretend")``, computed on the CPU, which raises where a GPU would.

    import pretend                              # registers the device, for the whole process
    x = torch.randn(5, 2).to("pretend")         # module.to("pretend"), torch.zeros(3, device="pretend"), ...
    with pretend.counting() as waits:           # Counter of (kind, places in the package): host synchronisations
        ...

Tensors are wrapper subclasses that claim a PrivateUse1 device in C++ too, so that ``.device``, functorch and autograd (which runs
their backward in a thread of the device) agree. ``__torch_dispatch__`` sees every operation below autograd, runs it on CPU
tensors and wraps the results; operations without tensors come through a fallback of the PrivateUse1 key.

What raises: CPU tensors of one dimension or more next to device tensors (of none too, where CUDA's operation takes no scalars:
matrix products, cat, gather, ...); ``.numpy()``, ``np.asarray``; generators of another device; pinning; linear algebra and cdist
in half precision; drivers of ``lstsq`` other than gels. What differs as it may on a GPU: empty tensors hold NaN, and sorts that
are not asked to be stable put ties in the reverse order (CUDA's sort of at most 32 numbers is not stable).

What it cannot do: generators of its own, ``torch.compile``, what autocast keeps in single precision, a GPU's rounding and races.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

__all__ = ["DEVICE", "NAME", "counting"]

NAME = "pretend"
PACKAGE = str(Path(__file__).parents[2] / "ddeq") + os.sep
"""Places of synchronisations are lines of files in this folder."""
DEPTH = 3
"""So many of them are kept, innermost first."""
HALF = (torch.float16, torch.bfloat16)
aten = torch.ops.aten


class _Module(_DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return list(HALF)

    # torch.random.fork_rng asks every device; this one draws on the CPU.
    def get_rng_state(self, device: object = None) -> Tensor:
        return torch.empty(0, dtype=torch.uint8, device="cpu")

    def set_rng_state(self, state: Tensor, device: object = None) -> None:
        pass


_setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
DEVICE = torch.device(NAME, 0)
_counters: list[Counter[tuple[str, str]]] = []


@contextmanager
def counting() -> Iterator[Counter[tuple[str, str]]]:
    """Host synchronisations within the block: ``(kind, places)`` to how often. An operation in autograd's thread counts too."""
    _counters.append(counter := Counter())
    try:
        yield counter
    finally:
        _counters.remove(counter)


def note(kind: str) -> None:
    """Count a synchronisation of this kind."""
    frame, places = sys._getframe(1) if _counters else None, []
    while frame is not None and len(places) < DEPTH:
        name = frame.f_code.co_filename
        if name.startswith(PACKAGE):
            places.append(f"{name.removeprefix(PACKAGE)}:{frame.f_lineno}")
        frame = frame.f_back
    for counter in _counters:
        counter[kind, " < ".join(places) or "outside"] += 1


class Pretend(Tensor):
    """A tensor of the device; ``raw`` is the one of the CPU that computes."""

    raw: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, raw: Tensor) -> Pretend:
        like = {"strides": raw.stride(), "storage_offset": raw.storage_offset(), "dtype": raw.dtype}
        return torch.Tensor._make_wrapper_subclass(cls, raw.shape, device=DEVICE, **like)

    def __init__(self, raw: Tensor) -> None:
        if type(raw) is not Tensor or not raw.is_cpu:
            raise TypeError(f"expected a plain tensor of the CPU, got {type(raw).__name__} on {raw.device}")
        self.raw = raw.detach()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return execute(func, args, kwargs or {})

    @property
    def data(self) -> Tensor:
        return Pretend(self.raw)

    @data.setter
    def data(self, value: Pretend) -> None:
        torch.Tensor.data.__set__(self, value)
        self.raw = value.raw

    def __deepcopy__(self, memo: Any) -> Tensor:
        assert self.is_leaf, "Only Tensors created explicitly by the user support the deepcopy protocol at the moment"
        copied = Pretend(self.raw.clone()).requires_grad_(self.requires_grad)
        return torch.nn.Parameter(copied, self.requires_grad) if isinstance(self, torch.nn.Parameter) else copied

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        note("print")
        return repr(self.raw)[:-1] + f", device='{NAME}:0')"

    def tolist(self) -> Any:
        note("tolist")
        return self.raw.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        if force:
            return self.detach().cpu().numpy()
        raise TypeError(f"can't convert {NAME}:0 device type tensor to numpy. Use Tensor.cpu() first")

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        return self.numpy()


NO_SCALARS = {  # no TensorIterator: CUDA takes no CPU tensor there, of dimension zero neither
    *("cat", "stack", "mm", "bmm", "addmm", "baddbmm", "mv", "addmv", "dot", "vdot", "ger", "addr", "cumsum", "cumprod"),
    *(
        "gather",
        "scatter",
        "scatter_",
        "scatter_add",
        "scatter_add_",
        "scatter_reduce",
        "index_select",
        "index_add",
        "index_add_",
    ),
    *("index_copy", "index_copy_", "take", "searchsorted", "bucketize", "convolution", "native_layer_norm", "embedding", "lerp"),
    *("_scaled_dot_product_flash_attention_for_cpu", "_cdist_forward", "_cdist_backward", "sort", "topk"),
}
SYNCHRONISE = {
    *("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique", "_unique2", "unique_dim", "unique_consecutive"),
    *("bincount", "_linalg_check_errors", "_linalg_eigh", "_linalg_svd", "linalg_eig", "linalg_lstsq", "histc"),
}
NOT_IN_HALF = ("linalg_", "_linalg", "cholesky", "triangular_solve", "lu_", "_cdist", "geqrf", "ormqr")
EMPTIES = {"empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}


def execute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation on CPU tensors as if it ran on the device."""
    name, flat = func._schema.name.split("::")[1], tree_flatten((args, kwargs))[0]
    mine = [t for t in flat if isinstance(t, Pretend)]
    cpu = [t for t in flat if isinstance(t, Tensor) and not isinstance(t, Pretend)]
    if name in ("_to_copy", "copy_"):
        return _copy(func, name, args, kwargs)
    _check(func, name, args, kwargs, mine, cpu)
    if name in SYNCHRONISE or (name == "repeat_interleave" and len(args) < 2 and kwargs.get("output_size") is None):
        note({"_local_scalar_dense": "item"}.get(name, name))
    ours, target = bool(mine), kwargs.get("device")
    if target is not None:
        ours, kwargs = torch.device(target).type == NAME, kwargs | {"device": _real(target)}
    if name == "_efficientzerotensor":  # has no memory, and its key would be lost
        func = aten.zeros.default
    raw_args, raw_kwargs = tree_map_only(Pretend, lambda t: t.raw, (args, kwargs))
    unstable = name in ("sort", "argsort")
    result = _unstable(func, raw_args, raw_kwargs) if unstable else func(*raw_args, **raw_kwargs)
    if name in EMPTIES and result.is_floating_point():
        result.fill_(torch.nan)
    for t in mine:
        if t.shape != t.raw.shape or t.stride() != t.raw.stride():  # squeeze_, resize_ and such
            with torch._C._DisableTorchDispatch():
                torch.Tensor.data.__set__(t, Pretend(t.raw))
    if not ours:
        return result
    known = {id(t.raw): t for t in mine}  # operations in place give back what they were given
    return tree_map_only(Tensor, lambda t: known[id(t)] if id(t) in known else Pretend(t), result)


def _check(func: Any, name: str, args: Any, kwargs: dict[str, Any], mine: list[Pretend], cpu: list[Tensor]) -> None:
    here, generator = bool(mine) or torch.device(kwargs.get("device") or "cpu").type == NAME, kwargs.get("generator")
    if here and generator is not None and generator.device.type != NAME:
        raise RuntimeError(f"Expected a '{NAME}' device type for generator but found '{generator.device.type}' ({func})")
    if (here and kwargs.get("pin_memory")) or name == "_pin_memory":
        raise RuntimeError("only dense CPU tensors can be pinned")
    if not mine:
        return
    if name.startswith("_histogramdd") or (name.startswith(NOT_IN_HALF) and any(t.dtype in HALF for t in mine)):
        raise NotImplementedError(f"{func} is not implemented on CUDA for {mine[0].dtype}")
    if name == "linalg_lstsq" and kwargs.get("driver") not in (None, "gels"):
        raise RuntimeError("torch.linalg.lstsq: parameter `driver` should be 'gels' on CUDA")
    wrong = [t for t in cpu if t.ndim or name in NO_SCALARS or name.startswith(NOT_IN_HALF)]
    if name in INDEXING:
        indices, value = [t for t in args[1] if t is not None], args[2] if len(args) > 2 else None
        filled = value is not None and len(indices) == 1 and value.numel() == 1  # becomes masked_fill
        if any(t.dtype in (torch.bool, torch.uint8) for t in indices) and not filled:
            note("boolean index")
        if any(not isinstance(t, Pretend) for t in indices):
            note("index on the CPU")
        wrong = [t for t in (args[0], value) if t is not None and not isinstance(t, Pretend) and (t.ndim or t is args[0])]
    elif (name == "where" or (func._schema.is_mutable and name.endswith("_"))) and not isinstance(args[0], Pretend):
        wrong = cpu
    if wrong:
        shapes = [(tuple(t.shape), str(t.device)) for t in (*mine, *cpu)]
        raise RuntimeError(f"Expected all tensors to be on the same device, but found at least two devices ({func}: {shapes})")


def _real(device: Any) -> torch.device:
    return torch.device("cpu") if torch.device(device).type == NAME else torch.device(device)


def _copy(func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
    to, source = (args[0], args[1]) if name == "copy_" else (None, args[0])
    was, target = isinstance(source, Pretend), kwargs.get("device")
    becomes = isinstance(to, Pretend) if to is not None else was if target is None else torch.device(target).type == NAME
    raw = source.raw if was else source
    if was != becomes and str(target) != "meta":
        ahead = raw.is_pinned() and (bool(kwargs.get("non_blocking")) or (len(args) > 2 and args[2] is True))
        if was or not ahead:
            note("to the CPU" if was else "from the CPU" if raw.ndim else "from the CPU (dim 0)")
    if to is not None:
        (to.raw if becomes else to).copy_(raw)
        return to
    raw = func(raw, **(kwargs | ({} if target is None else {"device": _real(target)})))
    return Pretend(raw) if becomes else raw


def _unstable(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """A sort that is not asked to be stable: equal numbers come in the reverse order."""
    x, named = args[0], dict(zip([a.name for a in func._schema.arguments], args, strict=False)) | kwargs
    if named.get("stable") or x.ndim == 0 or "values" in kwargs:
        return func(*args, **kwargs)
    dim = named.get("dim", -1)
    values, index = x.flip(dim).sort(dim=dim, descending=named.get("descending", False), stable=True)
    index = x.shape[dim] - 1 - index
    return index if func._schema.name.endswith("argsort") else (values, index)


_others = torch.library.Library("_", "IMPL")
_others.fallback(lambda func, *args, **kwargs: execute(func, args, kwargs), "PrivateUse1")
_direct = torch.library.Library("aten", "IMPL")
for _op in ("copy_", "arange", "range", "linspace", "logspace", "eye", "randperm", "tril_indices", "triu_indices"):
    for _overload in (o for o in getattr(aten, _op).overloads() if "out" not in o and "names" not in o):
        _func = getattr(getattr(aten, _op), _overload)  # these shut the Python key out, or resize what they made empty
        _direct.impl(_func, lambda *args, _func=_func, **kwargs: execute(_func, args, kwargs), "PrivateUse1")
_autocast = torch.library.Library("_", "IMPL", "AutocastPrivateUse1")
_autocast.fallback(torch.library.fallthrough_kernel)  # without it autocast finds no kernels


def _lower(func: Any) -> Any:
    """An operation that CUDA runs in half precision under autocast."""

    def lowered(*args: Any, **kwargs: Any) -> Any:
        half, key = torch.get_autocast_dtype(NAME), torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)
        with torch._C._ExcludeDispatchKeyGuard(key):
            return func(*tree_map_only(Tensor, lambda t: t.to(half) if t.dtype == torch.float32 else t, args), **kwargs)

    return lowered


for _op in ("mm", "bmm", "addmm", "baddbmm", "linear", "matmul"):
    _direct.impl(_op, _lower(getattr(aten, _op)), "AutocastPrivateUse1")
