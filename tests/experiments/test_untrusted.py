"""The command line reads configurations and checkpoints of strangers and runs nothing that they name."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from ddeq.experiments import ClassificationTask
from ddeq.experiments.export import export

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys, traceback
from ddeq.__main__ import main
for arguments in {cases!r}:
    try:
        main(arguments)
        print("RAN")
    except (Exception, SystemExit) as error:
        print("REFUSED", type(error).__name__, " ".join(str(error).split()))
    sys.stderr.write("END\\n")
"""


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


def config(path, classifier=None, callback=None, **trainer):
    digits = yaml.safe_load((ROOT / "configs/digits.yaml").read_text())
    digits["trainer"] |= {"callbacks": [callback] if callback else [], "logger": False, "fast_dev_run": True} | trainer
    if classifier is not None:
        digits["model"]["init_args"]["classifier"] = classifier
    path.write_text(yaml.safe_dump(digits))
    return str(path)


@pytest.mark.xdist_group("training")
def test_command_line(tmp_path):
    checkpoint = tmp_path / "evil.ckpt"
    torch.save({"state_dict": Evil()}, checkpoint)
    truncated = tmp_path / "short.ckpt"
    torch.save({"state_dict": {"a": torch.zeros(99)}}, truncated)
    truncated.write_bytes(truncated.read_bytes()[:-50])
    (tmp_path / "project.py").write_text("import os\nos.makedirs('imported', exist_ok=True)\nclass Model:\n    pass\n")
    good, hooks = config(tmp_path / "good.yaml"), "lightning.pytorch.callbacks.LambdaCallback"
    cases = {
        "predict": ["predict", "--config", good, "--ckpt_path", str(checkpoint)],
        "resume": ["fit", "--config", good, "--ckpt_path", str(checkpoint)],
        "short": ["test", "--config", good, "--ckpt_path", str(truncated)],
        "asked": ["fit", "--config", good, "--weights_only", "false"],
        "hook": [
            "fit",
            "--config",
            config(tmp_path / "hook.yaml", callback={"class_path": hooks, "init_args": {"setup": "os.abort"}}),
        ],
        "callback": ["fit", "--config", config(tmp_path / "callback.yaml", callback={"class_path": "project.Model"})],
        "class": ["fit", "--config", config(tmp_path / "class.yaml", {"class": "project.Model"})],
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(cases=list(cases.values()))],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"},
    )
    said = dict(zip(cases, done.stdout.splitlines(), strict=True))
    errors = dict(zip(cases, done.stderr.split("END\n"), strict=False))
    assert all(line.startswith("REFUSED") for line in said.values()), said
    assert not (tmp_path / "evil").exists()
    assert not (tmp_path / "imported").exists()
    for name in ("predict", "resume"):
        assert "posix.mkdir, which would be run; nothing was" in said[name]
    assert "is it whole?" in said["short"]
    assert "weights_only: " in said["asked"]
    for name in ("hook", "callback"):
        assert "is not allowed" in said[name] + errors[name], (said[name], errors[name])
    assert "--trust project" in said["class"] + errors["class"]


def test_export_and_lightning(tmp_path):
    file = tmp_path / "last.ckpt"
    torch.save({"state_dict": Evil(), "configuration": {}}, file)
    with pytest.raises(ValueError, match="which would be run"):
        export(file, tmp_path / "out.safetensors", "digits", None)
    with pytest.raises(ValueError, match="which would be run"):
        ClassificationTask.load_from_checkpoint(file)
    for configuration, message in (
        ({"class": "os.mkdir", "path": str(tmp_path / "evil")}, "is of no package among"),
        ({"class": "ddeq.experiments.export.export"}, "expected a torch.nn.Module or a dataclass"),
        ({"class": "ddeq.experiments.export.argparse.FileType"}, "cannot be imported"),
        ({"class": "torch.nn.Linear", "in_features": 2**20, "out_features": 2**20}, "do not fit"),
        ({"class": "torch.nn.Linear", "in_features": 10**12, "out_features": 2}, "numbers up to"),
    ):
        torch.save({"state_dict": {"model.a": torch.zeros(3)}, "configuration": configuration}, file)
        with pytest.raises(ValueError, match=message):
            export(file, tmp_path / "out.safetensors", "digits", None)
    assert not (tmp_path / "evil").exists()
