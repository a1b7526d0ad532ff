"""Models from configurations, and files of weights that hold theirs."""

import pytest
import torch

from ddeq import DiscreteMeasure
from ddeq.data import RemoveDiscs
from ddeq.functionals import Wasserstein
from ddeq.iteration import Stop
from ddeq.nn import Classifier, LocalEncoder, build, load_pretrained, load_weights, pretrained_preprocessing, save_weights

SMALL = {
    "class": "Classifier",
    "num_classes": 3,
    "model": {
        "class": "DDEQ",
        "encoder": {"class": "LocalEncoder", "dim": 2, "width": 8, "features": 8, "inner": 4, "centres": 5, "pooled": 8},
        "cell": {"class": "EquilibriumCell", "width": 8, "mark_dim": 2},
        "reference": {"class": "LearnedReference", "n": 3, "dim": 8, "mark_dim": 2},
        "stop": {"class": "Stop", "rtol": 1e-3, "max_steps": 30},
    },
}


def test_a_configuration_names_classes_and_options():
    model = build(SMALL)
    assert isinstance(model, Classifier)
    assert isinstance(model.model.encoder, LocalEncoder)
    assert model.model.stop == Stop(rtol=1e-3, max_steps=30)
    assert build([{"a": 1}, (2, "b")]) == [{"a": 1}, [2, "b"]]


@pytest.mark.parametrize(
    ("configuration", "message"),
    [
        ({"class": "Stopp"}, "class: expected one of .*Stop.*'Stopp'"),
        ({"class": "build"}, "class: expected one of"),
        ({"class": "Stop", "rtoll": 1}, "Stop: .*rtoll.*rtol"),
        ({"class": "os.getcwd"}, "class: expected one of"),
        ({"class": "LearnedReference", "n": 2}, "LearnedReference: .*dim"),
    ],
)
def test_what_cannot_be_built_says_why(configuration, message):
    with pytest.raises(ValueError, match=message):
        build(configuration)


def test_dotted_names_are_imported_where_they_are_trusted():
    assert isinstance(build({"class": "torch.nn.Linear", "in_features": 2, "out_features": 1}, dotted=True), torch.nn.Linear)
    with pytest.raises(ValueError, match="cannot be imported"):
        build({"class": "torch.nn.Linearr"}, dotted=True)


def test_weights_come_back_with_their_model(tmp_path):
    model, rho = build(SMALL).eval(), DiscreteMeasure(torch.randn(2, 7, 2))
    file = tmp_path / "model.safetensors"
    save_weights(file, model, SMALL, "shape_measure")
    torch.manual_seed(0)
    before = torch.get_rng_state()
    again = load_weights(file)
    assert torch.equal(torch.get_rng_state(), before)
    assert not again.training
    assert torch.equal(again(rho), model(rho))


def test_files_that_are_none(tmp_path):
    from safetensors.torch import save_file

    file = tmp_path / "plain.safetensors"
    save_file({"a": torch.zeros(2)}, file)
    with pytest.raises(ValueError, match="expected weights with a configuration"):
        load_weights(file)
    other = SMALL | {"num_classes": 4}
    save_weights(file, build(SMALL), other, "shape_measure")
    with pytest.raises(ValueError, match="do not fit their configuration"):
        load_weights(file)


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ValueError, match="name: expected one of"):
        load_pretrained("cifar")
    with pytest.raises(ValueError, match="name: expected one of"):
        pretrained_preprocessing("cifar")


def shape():
    return torch.randn(300, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([3.0, 1.0, 0.2]) + 7.0


def seven():
    """A digit as MNIST's pixels have it: columns, rows from below, intensities."""
    top = [(x, 20, 250) for x in range(8, 20)] + [(x, 19, 200) for x in range(8, 20)]
    down = [(18 - k // 2, 18 - k, v) for k in range(14) for v in (255,)] + [(17 - k // 2, 18 - k, 180) for k in range(14)]
    return torch.tensor(top + down, dtype=torch.float32)


@pytest.mark.parametrize(
    ("name", "raw", "classes", "most"),
    [("modelnet40", shape(), 40, 1_000_000), ("mnist_pc", seven(), 10, 600_000)],
    ids=["modelnet40", "mnist_pc"],
)
def test_shipped_weights_solve_and_do_not_care_how_a_cloud_is_stored(name, raw, classes, most):
    classifier, preprocess = load_pretrained(name), pretrained_preprocessing(name)
    rho = preprocess(raw)
    with torch.no_grad():
        logits = classifier(rho)
        assert bool(classifier.solution.converged)
        for same in (rho.permute_atoms(torch.randperm(rho.n)), rho.split_atom(5, 0.4), rho.pad_atoms(9)):
            assert (classifier(same).softmax(-1) - logits.softmax(-1)).abs().max() < 1e-3
    assert logits.shape == (classes,)
    assert sum(p.numel() for p in classifier.parameters()) <= most


def test_the_shipped_completer_finds_what_is_missing_of_a_seven():
    """At any number of atoms, however the known part is stored: nearer to the whole than the known part is."""
    completer, whole = load_pretrained("mnist_pc_completion"), pretrained_preprocessing("mnist_pc_completion")(seven())
    whole = DiscreteMeasure(whole.points.expand(6, -1, -1), whole.weights.expand(6, -1))
    known, _ = RemoveDiscs(2, 0.35)(whole, torch.Generator().manual_seed(0))
    distance = Wasserstein(whole.normalized())
    with torch.no_grad():
        for n in (None, 128):
            completed = completer(known, n=n)
            assert bool(completer.solution.converged.all())
            assert completed.n - whole.n == (64 if n is None else n)
            assert distance(completed.normalized()).mean() < 0.5 * distance(known.normalized()).mean()
        for same in (known.permute_atoms(torch.arange(known.n).flip(0)), known.split_atom(5, 0.4), known.pad_atoms(9)):
            assert (completer.missing(same).points - completer.missing(known).points).abs().max() < 1e-2
    assert sum(p.numel() for p in completer.parameters()) <= 600_000


def test_the_shipped_digits_classifier_reads_a_seven():
    rho = pretrained_preprocessing("mnist_pc")(seven())
    with torch.no_grad():
        probabilities = load_pretrained("mnist_pc")(rho).softmax(-1)
    assert int(probabilities.argmax()) == 7
    assert float(probabilities.max()) > 0.5
