"""PyTorch's default dtype decides nothing: results have the measures' dtype, and a rule of the house finds what follows it."""

import ast

import everywhere
import placed
import pytest
import torch
from torch.utils._pytree import tree_leaves

PLACE = everywhere.Place(torch.float32)


@pytest.mark.parametrize("name", everywhere.RUNS)
def test_results_do_not_depend_on_the_default_dtype(name):
    wanted = tree_leaves(everywhere.RUNS[name](PLACE))
    torch.set_default_dtype(torch.float64)
    try:
        found = tree_leaves(everywhere.RUNS[name](PLACE))
    finally:
        torch.set_default_dtype(torch.float32)
    for a, b in zip(wanted, found, strict=True):
        assert a.dtype == b.dtype
        assert a.dtype is not torch.float64
        assert torch.equal(a, b) or (a - b).abs().max() <= 1e-5 * a.abs().max()


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("torch.zeros(3)", True),
        ("torch.zeros(3, dtype=x.dtype)", True),
        ("torch.full((3,), 1, device=x.device)", True),
        ("torch.arange(3)", True),
        ("torch.where(mask, 0.0, -torch.inf)", True),
        ("f(torch.tensor(0.5)).to(x)", True),
        ("torch.zeros(3, dtype=x.dtype, device=x.device)", False),
        ("torch.zeros(3, **options)", False),
        ("torch.arange(3, device=x.device)", False),
        ("torch.where(mask, 0.0, -torch.inf).to(x)", False),
        ("torch.where(mask, x, 0.0)", False),
        ("nn.Parameter(torch.randn(3) * 0.1)", False),
        ("self.register_buffer('a', torch.zeros(3))", False),
    ],
)
def test_the_rule(line, wrong):
    assert bool(list(placed._unplaced(ast.parse(line)))) == wrong
