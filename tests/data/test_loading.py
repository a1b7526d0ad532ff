"""Batches: buckets of measures of about the same size, processes side by side, interruptions, samples of one's own."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from ddeq import DiscreteMeasure
from ddeq.data import BucketSampler, MeasureDataset, RandomSubsample, collate, generator_for, load_digits
from ddeq.testing import assert_close


def ragged(sizes, dim=2):
    total = int(sum(sizes))
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    weights = torch.rand(total, generator=torch.Generator().manual_seed(1)) + 0.1
    return MeasureDataset(
        torch.arange(total * dim).reshape(total, dim) * 1.0, weights, offsets, torch.arange(len(sizes)), [*map(str, sizes)]
    )


def test_generators_are_functions_of_their_keys():
    draws = [
        torch.rand(4, generator=generator_for(*keys)).tolist()
        for keys in ((0,), (0, 0), (0, 1), (1, 0), (0, "0"), (0, 0, 0), (-1,))
    ]
    assert len({tuple(d) for d in draws}) == len(draws)
    assert torch.rand(4, generator=generator_for(0, torch.tensor(1))).tolist() == draws[2]
    assert draws[2] == torch.rand(4, generator=generator_for(0, 1)).tolist()


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=60),
    batch_size=st.integers(1, 9),
    world_size=st.integers(1, 4),
    epoch=st.integers(0, 3),
    shuffle=st.booleans(),
)
def test_every_index_comes_once_in_disjoint_batches(sizes, batch_size, world_size, epoch, shuffle):
    if len(sizes) < world_size:
        with pytest.raises(ValueError, match="enough measures"):
            BucketSampler(sizes, batch_size, rank=0, world_size=world_size)
        return
    ranks = []
    for rank in range(world_size):
        sampler = BucketSampler(sizes, batch_size, 5, shuffle=shuffle, rank=rank, world_size=world_size)
        sampler.set_epoch(epoch)
        ranks.append(list(sampler))
        assert len(ranks[-1]) == len(sampler)
    batches = [batch for rank in ranks for batch in rank]
    assert sorted(i for batch in batches for i in batch) == list(range(len(sizes)))
    assert len({len(rank) for rank in ranks}) == 1
    lengths = {len(batch) for batch in batches}
    assert max(lengths) <= batch_size
    assert max(lengths) - min(lengths) <= 1


@given(sizes=st.lists(st.integers(1, 40), min_size=8, max_size=60), epoch=st.integers(0, 3), drop_last=st.booleans())
def test_a_resumed_epoch_goes_on_as_it_would_have(sizes, epoch, drop_last):
    def sampler():
        return BucketSampler(sizes, 4, 3, drop_last=drop_last, rank=1, world_size=2)

    whole = sampler()
    whole.set_epoch(epoch)
    batches = list(whole)
    for start in range(len(batches) + 1):
        rest = sampler()
        rest.resume(epoch, start)
        rest.set_epoch(epoch)  # a training loop says so in any case
        assert list(rest) == batches[start:]
        assert len(rest) == len(batches) - start
        rest.set_epoch(epoch + 1)
        assert len(rest) == len(batches)


def test_sizes_in_a_batch_are_close_and_orders_change():
    sizes = torch.randint(30, 350, (5000,), generator=torch.Generator().manual_seed(0))
    sampler = BucketSampler(sizes, 50, seed=1, spread=0.1)
    first = list(sampler)
    for batch in first:
        assert sizes[batch].max() <= 1.1 * sizes[batch].min() + 5
    padded = sum(len(b) * int(sizes[b].max()) for b in first) / int(sizes.sum())
    assert padded < 1.07
    largest = torch.tensor([int(sizes[b].max()) for b in first]).float()
    assert abs(torch.corrcoef(torch.stack([largest, torch.arange(100.0)]))[0, 1]) < 0.3  # no curriculum
    assert list(sampler) == first
    sampler.set_epoch(1)
    second = list(sampler)
    assert {frozenset(b) for b in first}.isdisjoint(frozenset(b) for b in second)
    assert list(BucketSampler(sizes, 50, seed=2)) != first


def test_processes_have_batches_of_about_the_same_size_at_each_step():
    sizes = torch.arange(10, 410)
    ranks = [list(BucketSampler(sizes, 10, rank=rank, world_size=4, spread=0.0)) for rank in range(4)]
    for step in zip(*ranks, strict=True):
        largest = [int(sizes[b].max()) for b in step]
        assert max(largest) - min(largest) <= 30


def test_dropping_leaves_full_batches():
    sampler, dropped = BucketSampler(range(1, 24), 5, drop_last=True), set()
    for epoch in range(10):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert [len(b) for b in batches] == [5] * 4
        dropped |= set(range(23)) - {i for b in batches for i in b}
    assert len(dropped) > 8  # others in each epoch
    assert max(dropped) - min(dropped) > 10  # large and small ones


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([], 2), {}, "sizes: expected at least one"),
        (([1, 0], 2), {}, "sizes"),
        (([1.5, 2.0], 2), {}, "sizes"),
        (([1, 2], 0), {}, "batch_size: expected a whole number >= 1, got 0"),
        (([1, 2], 1), {"spread": -1.0}, "spread"),
        (([1, 2], 1), {"rank": 2, "world_size": 2}, "rank: expected a number from 0 to 1, got 2"),
        (([1, 2], 4), {"drop_last": True}, "enough measures"),
    ],
)
def test_bad_options_of_the_sampler_are_named(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        BucketSampler(*arguments, **options)
    with pytest.raises(ValueError, match="start: expected a number from 0 to 2, got 3"):
        BucketSampler([1, 2], 1).resume(0, 3)


def test_loaders_serve_buckets():
    data = load_digits("test")
    loader = data.loader(50, shuffle=True, bucket=True, seed=4)
    labels, epochs = [], []
    for epoch in range(2):
        loader.batch_sampler.set_epoch(epoch)
        epochs.append(list(loader))
        labels.append(torch.cat([y for _, y in epochs[-1]]))
    assert torch.equal(labels[0].sort().values, data.labels.sort().values)
    assert not torch.equal(*labels)
    again = data.loader(50, shuffle=True, bucket=True, seed=4)
    for (mu, y), (nu, z) in zip(again, epochs[0], strict=True):
        assert torch.equal(mu.points, nu.points)
        assert torch.equal(y, z)
    ordered = [int(mu.n) for mu, _ in data.loader(50, bucket=True)]
    assert ordered == sorted(ordered)
    assert [len(y) for _, y in data.loader(100, drop_last=True)] == [100, 100, 100]


def test_loaders_refuse_what_they_have_no_use_for():
    data = ragged([1, 2, 3])
    for options in ({"seed": 3}, {"world_size": 2}, {"rank": 1, "world_size": 2}):
        with pytest.raises(ValueError, match="bucket: expected True"):
            data.loader(2, **options)
    with pytest.raises(ValueError, match="generator: expected None"):
        data.loader(2, bucket=True, generator=torch.Generator())


def test_workers_give_the_same_batches():
    data = ragged([3, 1, 4, 1, 5, 9, 2, 6])
    options = {"shuffle": True, "bucket": True, "seed": 1}
    for (mu, y), (nu, z) in zip(data.loader(3, **options), data.loader(3, num_workers=1, **options), strict=True):
        assert torch.equal(mu.points, nu.points)
        assert torch.equal(mu.weights, nu.weights)
        assert torch.equal(y, z)


class Pairs(torch.utils.data.Dataset):
    """A user's own data set: a part of a measure, the whole, and a number."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, i):
        mu, label = self.data[i]
        return {"part": RandomSubsample(2)(mu, generator_for(0, i)), "whole": (mu, label, torch.ones(2) * i)}


def test_samples_of_ones_own_are_put_together():
    data = ragged([3, 5, 2])
    (batch,) = DataLoader(Pairs(data), 3, collate_fn=collate)
    mu, labels, numbers = batch["whole"]
    expected, _ = data.batch(range(3))
    assert torch.equal(mu.weights, expected.weights)
    assert torch.equal(labels, torch.arange(3))
    assert torch.equal(numbers[:, 0], torch.arange(3.0))
    assert batch["part"].points.shape == (3, 2, 2)
    assert_close(batch["part"].mass(), mu.mass())
    assert collate([data[0][0], data[2][0]]).batch_shape == (2,)
    with pytest.raises(ValueError, match=r"measures\[1\]: expected atoms of dimension 2"):
        collate([(data[0][0], 0), (DiscreteMeasure(torch.zeros(2, 3)), 0)])


def test_loaders_pin_measures(monkeypatch):
    from torch.utils.data._utils.pin_memory import pin_memory

    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda t: t + 0)  # needs an accelerator
    batch = ragged([3, 5, 2]).batch([0, 1])
    mu, labels = pin_memory(batch)
    assert isinstance(mu, DiscreteMeasure)
    assert mu.points is not batch[0].points
    assert torch.equal(mu.points, batch[0].points)
    assert torch.equal(labels, batch[1])
