"""Files of strangers: each reader meets one that would run code, one that is cut short and one whose lengths lie."""

import gzip
import io
import json
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch

from ddeq import DiscreteMeasure, flow
from ddeq.data import load_mesh, load_mnist_pc, load_modelnet
from ddeq.files import read_checkpoint
from ddeq.flows import Trajectory
from ddeq.functionals import PotentialEnergy
from ddeq.nn import LearnedReference, build, load_weights, save_weights, trusted_packages

pytestmark = pytest.mark.unchecked  # bad input meets our own errors
TERA = 10**13


class Evil:
    """Whoever unpickles this makes the folder ``evil`` in the working directory."""

    def __reduce__(self):
        return os.mkdir, ("evil",)


@pytest.fixture(autouse=True)
def _nothing_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert not (tmp_path / "evil").exists()


def trajectory():
    mu = DiscreteMeasure(torch.zeros(2, 3, 1))
    return flow(PotentialEnergy(lambda x: x.square().sum(-1)), mu, steps=2)


def weights(path):
    configuration = {"class": "LearnedReference", "n": 3, "dim": 2, "mark_dim": 1}
    save_weights(path, build(configuration), configuration, "normalize")


SAFETENSORS = {
    "measure": (DiscreteMeasure.load, lambda path: DiscreteMeasure(torch.zeros(3, 2)).save(path)),
    "trajectory": (Trajectory.load, lambda path: trajectory().save(path)),
    "weights": (load_weights, weights),
}


@pytest.mark.parametrize("kind", SAFETENSORS)
def test_safetensors(kind, tmp_path):
    read, write = SAFETENSORS[kind]
    file = tmp_path / "file.safetensors"
    write(file)
    whole = file.read_bytes()
    length = struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8 : 8 + length])
    name = next(n for n in header if n != "__metadata__")
    header[name] |= {"shape": [TERA], "dtype": "F32", "data_offsets": [0, 4 * TERA]}
    lying = json.dumps(header).encode()
    for content in (
        pickle.dumps(Evil()),
        whole[:-3],
        whole[: 8 + length // 2],
        b"",
        struct.pack("<Q", TERA) + whole[8:],
        struct.pack("<Q", len(lying)) + lying + whole[8 + length :],
    ):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"path: .* cannot be read as a safetensors file"):
            read(file)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("parts_of_functional", torch.tensor(TERA)),
        ("taken", torch.tensor([1.0])),
        ("memory.7", torch.zeros(2)),
        ("energies", torch.zeros(3)),
        ("steps", torch.zeros(3, dtype=torch.long)),
        ("times", torch.zeros(2)),
        ("weights", torch.zeros(3, 2, 4)),
        ("points", torch.zeros(3, 2, 3, 1, dtype=torch.long)),
        ("status", torch.zeros(3)),
    ],
)
def test_trajectories_whose_parts_do_not_fit(name, value, tmp_path):
    from safetensors.torch import load_file, save_file

    file = tmp_path / "flow.safetensors"
    trajectory().save(file)
    save_file(load_file(file) | {name: value}, file)
    with pytest.raises(ValueError, match=r"path: .* holds no trajectory: "):
        Trajectory.load(file)


@pytest.mark.parametrize(
    ("configuration", "message"),
    [
        ({"class": "os.mkdir", "path": "evil"}, "class: expected one of"),
        ({"class": "LearnedReference", "n": 10**15, "dim": 2}, "numbers up to"),
        ({"class": "LearnedReference", "n": 10**6, "dim": 10**6, "mark_dim": 1}, "do not fit"),
        ({"class": "LearnedReference", "n": "many", "dim": 2, "mark_dim": 1}, "n: expected a whole number"),
        ({"class": "Stop"}, "describes no torch.nn.Module"),
        ("LearnedReference", "describes no torch.nn.Module"),
    ],
)
def test_weights_with_another_configuration(configuration, message, tmp_path):
    file = tmp_path / "model.safetensors"
    save_weights(file, LearnedReference(3, 2, 1), configuration, "normalize")
    with pytest.raises(ValueError, match=message):
        load_weights(file)


def test_checkpoints(tmp_path):
    """Through the one function with which training, prediction and export read them."""
    file = tmp_path / "last.ckpt"
    torch.save({"state_dict": {"a": torch.zeros(300)}, "configuration": {}}, file)
    whole = file.read_bytes()
    assert set(read_checkpoint(file)) == {"state_dict", "configuration"}
    torch.save({"state_dict": Evil()}, file)
    with pytest.raises(ValueError, match=r"path: .* it names posix.mkdir, which would be run; nothing was"):
        read_checkpoint(file)
    broken = [whole[:-40], whole[:100], b"", pickle.dumps(Evil())]
    torch.save({"state_dict": Evil()}, legacy := io.BytesIO(), _use_new_zipfile_serialization=False)
    broken.append(legacy.getvalue())
    broken.append(whole.replace(struct.pack("<II", 1200, 1200), struct.pack("<II", 1200, 2**32 - 2)))
    for content in broken:
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"path: .*zip archive|path: .*is said to hold"):
            read_checkpoint(file)
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:  # the tensor is said to be larger than its bytes
        entries = {n: archive.read(n) for n in archive.namelist()}
    with zipfile.ZipFile(file, "w") as archive:
        for n, content in entries.items():
            number = struct.pack("<BH", ord("M"), 300)
            archive.writestr(n, content.replace(number, b"J" + struct.pack("<i", 2**31 - 1)) if n.endswith("pkl") else content)
    with pytest.raises(ValueError, match=r"path: .* cannot be read as a checkpoint"):
        read_checkpoint(file)
    torch.save([1], file)
    with pytest.raises(ValueError, match="expected a mapping"):
        read_checkpoint(file)


def npz(path, **arrays):
    """An ``.npz`` file; where an array is a shape, only the header says it."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            content = io.BytesIO()
            if isinstance(array, tuple):
                np.lib.format.write_array_header_1_0(content, {"descr": "|u1", "fortran_order": False, "shape": array})
                content.write(b"12345")
            else:
                np.save(content, array)
            archive.writestr(f"{name}.npy", content.getvalue())


DIGIT = {"points": np.ones((1, 3), np.uint8), "offsets": np.array([0, 1]), "labels": np.array([1])}
SHAPE = {"points": np.ones((1, 4, 3)), "labels": np.array([0]), "class_names": np.array(["a"])}


@pytest.mark.parametrize(("read", "good"), [(load_mnist_pc, DIGIT), (load_modelnet, SHAPE)], ids=["mnist", "modelnet"])
def test_npz(read, good, tmp_path):
    file = tmp_path / "train.npz"
    npz(file, **good)
    whole = file.read_bytes()
    for changed in ({"labels": np.array([Evil()], object)}, {"points": (TERA, 3)}, {"points": (2**62, 2**62, 3)}):
        npz(file, **(good | changed))
        with pytest.raises(ValueError, match=r"path: .* cannot be read as an .npz file of plain arrays"):
            read(file)
    for content in (whole[:-30], whole[:50], b"", pickle.dumps(Evil())):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"path: .* cannot be read as an .npz file of plain arrays"):
            read(file)


def test_hdf5(tmp_path):
    h5py = pytest.importorskip("h5py")
    file, secret = tmp_path / "ply_data_train0.h5", tmp_path / "secret"
    secret.write_bytes(bytes(range(96)))

    def write(data=None, label=True, **options):
        with h5py.File(file, "w") as opened:
            if label:
                opened["label"] = np.zeros((1, 1), np.uint8)
            if isinstance(data, h5py.ExternalLink | h5py.SoftLink):
                opened["data"] = data
            else:
                opened.create_dataset("data", **options)

    lies = {"shape": (TERA // 100, 100, 3), "dtype": "f4"}
    layout = h5py.VirtualLayout((1, 4, 3), "f8")
    layout[:] = h5py.VirtualSource(str(secret), "data", (1, 4, 3))
    write(data=None, shape=(1, 4, 3), dtype="f8", compression="gzip")
    for options in (
        lies,
        lies | {"chunks": (1, 100, 3), "compression": "gzip"},
        {"shape": (1, 4, 3), "dtype": "f8", "external": [(str(secret), 0, 96)]},
        {"shape": (1, 4, 3), "dtype": h5py.string_dtype()},
        {"data": h5py.ExternalLink(str(secret), "data")},
        {"data": h5py.SoftLink("/label")},
    ):
        write(**options)
        with pytest.raises(ValueError, match=r"path: .*(data set 'data'|data sets)"):
            load_modelnet(file)
    with h5py.File(file, "w") as opened:
        opened["label"] = np.zeros((1, 1), np.uint8)
        opened.create_virtual_dataset("data", layout)
    with pytest.raises(ValueError, match="in the file itself"):
        load_modelnet(file)
    with h5py.File(file, "w") as opened:
        opened["label"], opened["data"] = np.zeros((1, 1), np.uint8), np.random.default_rng(0).normal(size=(1, 4, 3))
    whole = file.read_bytes()
    assert len(load_modelnet(file)) == 1
    for content in (whole[:-30], whole[:50], b"", pickle.dumps(Evil())):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"path: .* cannot be read as HDF5"):
            load_modelnet(file)


def idx(*shape, data=b""):
    return bytes([0, 0, 8, len(shape)]) + b"".join(n.to_bytes(4, "big") for n in shape) + data


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_idx(pack, tmp_path):
    images, labels = tmp_path / "train-images-idx3-ubyte", tmp_path / "train-labels-idx1-ubyte"
    labels.write_bytes(pack(idx(1, data=b"\1")))
    good = idx(1, 28, 28, data=b"\1" * 784)
    images.write_bytes(pack(good))
    assert len(load_mnist_pc(images)) == 1
    for content in (
        pickle.dumps(Evil()),
        pack(good)[:-20],
        pack(good[:-5]),
        pack(good[:10]),
        b"",
        pack(idx(2**32 - 1, 2**32 - 1, 2**32 - 1, data=b"\1")),
        pack(idx(2**31, 2**31, 4, data=b"")),  # wraps to zero in 64 bits
    ):
        images.write_bytes(content)
        with pytest.raises(ValueError, match="path: "):
            load_mnist_pc(images)


PLY = "ply\nformat binary_little_endian 1.0\nelement vertex {}\n" + "".join(f"property float {c}\n" for c in "xyz")
PLY += "element face {}\nproperty list uchar int vertex_indices\nend_header\n"
CORNERS = np.eye(3, dtype="<f4").tobytes()
FACE = struct.pack("<B3i", 3, 0, 1, 2)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.ply", PLY.format(TERA, 1).encode() + CORNERS + FACE),
        ("a.ply", PLY.format(3, TERA).encode() + CORNERS + FACE),
        ("a.ply", PLY.format(3, 1).encode() + CORNERS[:20]),
        ("a.stl", bytes(80) + struct.pack("<I", 2**32 - 1) + bytes(50)),
        ("a.off", f"OFF\n{TERA} {TERA} 0\n0 0 0\n".encode()),
        ("a.off", b"OFF\n3 1 0\n0 0 0\n1 0"),
        *((f"a.{kind}", pickle.dumps(Evil())) for kind in ("ply", "stl", "off", "obj", "glb", "dict", "pkl", "npz", "zip")),
    ],
)
def test_meshes(name, content, tmp_path):
    pytest.importorskip("trimesh")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match="path: "):
        load_mesh(tmp_path / name)


@pytest.mark.parametrize(
    "name",
    [
        "os.mkdir",
        "subprocess.Popen",
        "torch.hub.load",
        "torch.nn.utils.parametrize.os.mkdir",
        "torch.nn.modules.module.OrderedDict",
        "torch.nn.init.constant_",
        "ddeqs.evil.Model",
        "builtins.exec",
        ".os.mkdir",
    ],
)
def test_configurations_name_nothing_that_runs(name):
    for configuration in ({"class": name}, {"class": "Classifier", "model": [{"class": name, "path": "evil"}]}):
        with pytest.raises(ValueError, match="class: "):
            build(configuration, dotted=True)


def test_configurations_of_packages_that_are_trusted():
    with pytest.raises(ValueError, match=r"class: .*trusted_packages\('fractions'\)"):
        build({"class": "fractions.Fraction", "numerator": 2}, dotted=True)
    with trusted_packages("fractions"):
        assert build({"class": "fractions.Fraction", "numerator": 2}, dotted=True) == 2
        with pytest.raises(ValueError, match="class: "):
            build({"class": "fractions.Fraction", "numerator": 2})
    with pytest.raises(ValueError, match="class: "):
        build({"class": "fractions.Fraction", "numerator": 2}, dotted=True)
    with pytest.raises(ValueError, match="names: "), trusted_packages("my-project"):
        pass


def test_pickled_measures_and_trajectories_are_loaded_by_default(tmp_path):
    mu = DiscreteMeasure(torch.randn(2, 3, 2), marks=torch.randn(2, 3, 1))
    torch.save({"mu": mu, "flow": trajectory()}, tmp_path / "both.pt")
    both = torch.load(tmp_path / "both.pt")
    assert torch.equal(both["mu"].marks, mu.marks)
    assert torch.equal(both["flow"].measures.points, trajectory().measures.points)
