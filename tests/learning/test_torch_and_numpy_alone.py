"""Stages, methods, models and learning need torch and NumPy alone: they run on any GPU machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cu_ray import plugins

ROOT = Path(__file__).parents[2]
HIDDEN = [
    *("ray", "optuna", "pydantic", "pandas", "pyarrow", "rich", "click", "scipy", "torchvision", "yaml", "safetensors"),
    *("matplotlib", "h5py", "psutil", "PIL"),
]
PROGRAM = f"""
import sys

sys.modules.update(dict.fromkeys({HIDDEN}))  # importing one of them raises ModuleNotFoundError
sys.path.insert(0, {str(ROOT)!r})
from cu_ray import plugins
from cu_ray.stages.pipeline import Workbench
from tests.protocol.tiny import MemoryStore, tiny_dataset, trial_spec

dataset = tiny_dataset()
record = Workbench(dataset, MemoryStore()).run_trial(trial_spec(dataset, plugins.find("methods", sys.argv[1])()))
assert record.ok, record.error
assert record.scores["acc_corr"] is not None
for name in plugins.names("models"):
    plugins.find("models", name)().build((32, 32, 3), 10)
"""


@pytest.mark.parametrize("method", plugins.names("methods"))
def test_a_trial_runs_with_torch_and_numpy_alone(method):
    done = subprocess.run([sys.executable, "-c", PROGRAM, method], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
