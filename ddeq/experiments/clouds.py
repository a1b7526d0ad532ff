"""The data of an experiment: loaders of training, validation and test measures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import lightning
from torch import Tensor
from torch.utils.data import DataLoader

from ddeq.data import BucketSampler, MeasureDataset, load_digits, load_mnist_pc, load_modelnet
from ddeq.data.dataset import as_it_is
from ddeq.measures import DiscreteMeasure

__all__ = ["Clouds"]

Batches = DataLoader[tuple[DiscreteMeasure, Tensor]]


class TrainingLoader(Batches):
    """Batches of a `BucketSampler` that begin where the trainer is: at the epoch and the batch of its next step."""

    batch_sampler: BucketSampler

    def __init__(self, data: MeasureDataset, sampler: BucketSampler, trainer: lightning.Trainer, **options: Any) -> None:
        batches: Any = data  # a data set of batches, by __getitems__
        super().__init__(batches, batch_sampler=sampler, collate_fn=as_it_is, **options)
        self._trainer = trainer

    def __len__(self) -> int:
        return self.batch_sampler.steps  # of an epoch, wherever in it this begins

    def __iter__(self) -> Any:
        limit = self._trainer.limit_train_batches
        batches = min(len(self), limit) if isinstance(limit, int) else int(len(self) * limit)
        accumulated = self._trainer.accumulate_grad_batches  # the last step of an epoch may be of fewer
        epoch, step = divmod(self._trainer.global_step, -(-batches // accumulated))
        self.batch_sampler.resume(epoch, step * accumulated)
        return super().__iter__()

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the trainer's number of steps says all. That there is this method says that one can go on in an epoch."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to do."""


class Clouds(lightning.LightningDataModule):
    """Labelled measures in batches of about the same size, in an order that is a function of the seed and the epoch.

    A run that goes on from a checkpoint finds the batch at which it stopped.

    Parameters
    ----------
    dataset
        ``"digits"`` (embedded), ``"mnist_pc"`` or ``"modelnet"``.
    path
        File or folder, as `ddeq.data.load_mnist_pc` and `ddeq.data.load_modelnet` take it; none for the digits.
    batch_size, test_batch_size
        Size of the batches in training and else.
    seed
        Of the order.
    num_workers, pin_memory
        As in `torch.utils.data.DataLoader`.
    limit
        Use only so many training measures, for trials; None for all.
    test_split
        The split that ``test`` and ``predict`` use; the digits have no validation split, and use ``"test"`` throughout.

    Raises
    ------
    ValueError
        If a ``path`` is given for the digits, or none for the others.
    """

    def __init__(
        self,
        dataset: Literal["digits", "mnist_pc", "modelnet"] = "digits",
        path: str | None = None,
        *,
        batch_size: int = 64,
        test_batch_size: int = 128,
        seed: int = 0,
        num_workers: int = 0,
        pin_memory: bool = False,
        limit: int | None = None,
        test_split: Literal["train", "validation", "test"] = "test",
    ) -> None:
        super().__init__()
        if (path is None) != (dataset == "digits"):
            wanted = "no path, since it is embedded" if dataset == "digits" else "the path of its file or folder"
            raise ValueError(f"path: {dataset} needs {wanted}, got {path!r}")
        self.dataset, self.path, self.seed, self.limit, self.test_split = dataset, path, seed, limit, test_split
        self.batch_size, self.test_batch_size = batch_size, test_batch_size
        self.loading: dict[str, Any] = {"num_workers": num_workers, "pin_memory": pin_memory}
        self._splits: dict[str, MeasureDataset] = {}

    def split(self, name: str) -> MeasureDataset:
        """The measures of the split ``name``, loaded at first use."""
        if self.dataset == "digits" and name == "validation":
            name = "test"
        if name not in self._splits:
            load: Callable[[Any], MeasureDataset] = {
                "digits": lambda split: load_digits(split),
                "mnist_pc": lambda split: load_mnist_pc(str(self.path), split),
                "modelnet": lambda split: load_modelnet(str(self.path), split),
            }[self.dataset]
            data = load(name)
            self._splits[name] = data.subset(range(min(self.limit, len(data)))) if name == "train" and self.limit else data
        return self._splits[name]

    def train_dataloader(self) -> TrainingLoader:
        """Batches of training measures; a `RuntimeError` where no trainer has this data module."""
        trainer = self.trainer
        if trainer is None:
            raise RuntimeError(
                "train_dataloader: expected a data module that belongs to a Trainer; use split('train').loader(...)"
            )
        data = self.split("train")
        sampler = BucketSampler(
            data.sizes, self.batch_size, self.seed, drop_last=True, rank=trainer.global_rank, world_size=trainer.world_size
        )
        return TrainingLoader(data, sampler, trainer, **self.loading)

    def steps(self, trainer: lightning.Trainer) -> int:
        """Number of steps of a whole training, without making a loader: that would begin before a checkpoint is read.

        Raises
        ------
        ValueError
            If the ``trainer`` has neither ``max_steps`` nor ``max_epochs``.
        """
        if trainer.max_steps > 0:
            return int(trainer.max_steps)
        epochs = trainer.max_epochs or -1
        if epochs < 0:
            raise ValueError(f"trainer: expected max_epochs or max_steps, since the learning rate follows them, got {epochs}")
        batches = len(self.split("train")) // (self.batch_size * trainer.world_size)
        limit = trainer.limit_train_batches
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        return int(epochs * -(-batches // trainer.accumulate_grad_batches))

    def val_dataloader(self) -> Batches:
        """Batches of the validation split, in its order."""
        return self._in_order("validation")

    def test_dataloader(self) -> Batches:
        """Batches of the split ``test_split``, in its order."""
        return self._in_order(self.test_split)

    def predict_dataloader(self) -> Batches:
        """The same batches as for a test."""
        return self._in_order(self.test_split)

    def _in_order(self, name: str) -> Batches:
        return self.split(name).loader(self.test_batch_size, **self.loading)

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        """The measures and labels of ``batch`` on ``device``, whichever loader ``dataloader_idx`` it comes from."""
        return batch[0].to(device), batch[1].to(device)
