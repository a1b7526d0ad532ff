"""The paper's tasks, from data to numbers.

`ClassificationTask` and `CompletionTask` are Lightning modules for a model, `Clouds` one for data; ``python -m ddeq fit`` puts
them together as a file in ``configs`` says, with a `ConvergenceGuard`. `baselines` holds the networks of others. ``python -m ddeq
export`` writes weights that ship, ``python -m ddeq demo`` runs the demonstration.
"""

from ddeq.experiments.classification import ClassificationTask, Evaluation, build_classifier, evaluate
from ddeq.experiments.clouds import Clouds
from ddeq.experiments.completion import CompletionEvaluation, CompletionTask, evaluate_completion
from ddeq.experiments.guard import ConvergenceGuard
from ddeq.experiments.logs import KeptCSVLogger
from ddeq.experiments.paper import paper_flow
from ddeq.experiments.task import EquilibriumTask

__all__ = [
    "ClassificationTask",
    "Clouds",
    "CompletionEvaluation",
    "CompletionTask",
    "ConvergenceGuard",
    "EquilibriumTask",
    "Evaluation",
    "KeptCSVLogger",
    "build_classifier",
    "evaluate",
    "evaluate_completion",
    "paper_flow",
]
