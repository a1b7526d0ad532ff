"""The paper's tasks, from data to numbers: Lightning modules, and the demonstration that `python -m ddeq demo` runs."""

from ddeq.experiments.classification import ClassificationTask, Evaluation, build_classifier, evaluate

__all__ = ["ClassificationTask", "Evaluation", "build_classifier", "evaluate"]
