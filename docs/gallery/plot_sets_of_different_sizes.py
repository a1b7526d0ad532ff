"""
Sets of different sizes in one batch
====================================

*How do I put sets of different sizes into one batch, without a mask?* :term:`Pad <padding>` them with :term:`atoms <atom>` that
weigh nothing. A function of :term:`measures <measure>`, weighted sets of points, cannot see those. We classify small clouds by
their shape, and watch what happens to a set when a much larger one joins its batch.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

import ddeq
from ddeq.nn import DDEQ, MLP, Classifier, ContractiveCell, InducedSetEncoder, LearnedReference, MeanPooling
from ddeq.viz import plot_measure

# %%
# Points at random on the outline of a triangle, a square or a circle, which is turned at random too; between 10 and 60 of
# them.


def cloud(label, n, generator):
    corners = (3, 4, 60)[label]
    side = torch.randint(corners, (n,), generator=generator) + torch.rand(1, generator=generator)
    angle, to = 2 * torch.pi * side / corners, torch.rand(n, 1, generator=generator)
    a, b = [torch.stack([t.cos(), t.sin()], -1) for t in (angle, angle + 2 * torch.pi / corners)]
    return torch.lerp(a, b, to)


def clouds(count, generator):
    labels = torch.randint(3, (count,), generator=generator)
    sizes = torch.randint(10, 61, (count,), generator=generator)
    return [cloud(int(label), int(n), generator) for label, n in zip(labels, sizes, strict=True)], labels


# %%
# `DiscreteMeasure.from_clouds` gives each of ``n`` points the weight ``1/n`` and pads with atoms of weight zero. Areas are
# masses in the picture: padding is not seen.

generator = torch.Generator().manual_seed(0)
three = [cloud(label, n, generator) for label, n in enumerate((12, 25, 60))]
rho = ddeq.DiscreteMeasure.from_clouds(three)
figure, axes = plt.subplots(1, 3, figsize=(7.6, 2.9), layout="constrained")
for axis, name, mu in zip(axes, ("triangle", "square", "circle"), rho, strict=True):
    plot_measure(mu, axis, color="#1f3b57", area=1500, clip_on=False)
    axis.set(xlim=(-1.1, 1.1), ylim=(-1.1, 1.1))
    axis.set_title(f"{name}: {int(mu.support().sum())} of {mu.n} atoms", fontsize=10)
plt.show()

# %%
# Three classifiers, trained on the same batches.
#
# - *A small* :term:`DDEQ`: attention to the points, a :term:`fixed point` of a map on measures, a mean over it, all of them
#   weighed.
# - *A weighted mean* of features of the points: `MeanPooling`.
# - *A padded mean*: the same network without the weights. It divides the sum over the padded tensor by its length.


class Mean(nn.Module):
    def __init__(self, weighted):
        super().__init__()
        self.features, self.scores, self.weighted = MLP(2, 64, 64), MLP(64, 64, 3), weighted

    def forward(self, sets):
        if self.weighted:
            mu = ddeq.DiscreteMeasure.from_clouds(sets)
            return self.scores(MeanPooling()(self.features(mu.points), mu))
        return self.scores(self.features(nn.utils.rnn.pad_sequence(sets, batch_first=True)).mean(-2))


class Equilibrium(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = Classifier(DDEQ(InducedSetEncoder(2, 32), ContractiveCell(32, 4), LearnedReference(8, 32, 4)), 3)

    def forward(self, sets):
        return self.model(ddeq.DiscreteMeasure.from_clouds(sets))


torch.manual_seed(0)
models = nn.ModuleDict({"DDEQ": Equilibrium(), "weighted mean": Mean(True), "padded mean": Mean(False)})
optimizer = torch.optim.Adam(models.parameters(), lr=3e-3)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=250)
for _ in range(250):
    sets, labels = clouds(48, generator)
    loss = sum(nn.functional.cross_entropy(model(sets), labels) for model in models.values())
    optimizer.zero_grad()
    loss.backward()
    for model in models.values():
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    optimizer.step()
    schedule.step()

# %%
# Now a batch of two: one of the three sets above, and another set, which grows. On the right the same for 200 new sets: all
# in one batch, whose largest set grows. Nothing happens to the sets themselves.

models.eval()
mates, places = (60, 100, 200, 500, 1000), ("alone", "60", "100", "200", "500", "1000")
sets, labels = clouds(200, torch.Generator().manual_seed(1))
colours = {"weighted mean": "#e0a030", "padded mean": "#d1495b", "DDEQ": "#1f3b57"}


def in_company(model, sets):  # scores of each set alone, and of all in one batch with another set
    alone = torch.cat([model([x]) for x in sets])
    return torch.stack([alone, *(model([*sets, cloud(2, n, generator)])[:-1] for n in mates)])


figure, (left, right) = plt.subplots(1, 2, figsize=(9.0, 3.5), layout="constrained")
for name, colour in colours.items():
    look = {"color": colour, "marker": "o", "ms": 4, "ls": "--" if name == "DDEQ" else "-"}
    with torch.no_grad():
        scores = in_company(models[name], sets)
        for label, x in enumerate(three):
            probability = in_company(models[name], [x]).softmax(-1)[:, 0, label]
            left.plot(places, probability, label=name if label == 0 else None, **look)
    share = (scores.argmax(-1) == labels).float().mean(-1)
    right.plot(places, share, **look)
    change = float((scores - scores[0]).abs().max())
    print(f"{name:14s} {share[0]:.1%} right alone, {share[-1]:.1%} beside 1000 points; scores change by up to {change:.0e}")
for axis, what in ((left, "probability of the right shape"), (right, "share of 200 sets put right")):
    axis.set(xlabel="points of the largest set in the batch", ylabel=what, ylim=(-0.03, 1.05))
    axis.spines[["top", "right"]].set_visible(False)
figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
plt.show()

# %%
# What weighs its atoms gives to each set what it gives to it alone, to rounding: it is a
# :term:`function of the measure <measure consistency>` (T1). The padded mean never becomes good, and whether it is right about a
# set depends on the company. `ddeq.testing.check_map` finds such mistakes in layers of your own.
