"""The library that runs models tells nobody of its use."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    "module", ["services.decision.ranker.session", "services.decision.ranker.trial", "learning.export"]
)
def test_onnx_runtime_reports_nothing_to_its_maker(module: str, tmp_path: Path) -> None:
    """Where it would, it makes an identifier of the device in the home folder as soon as it is loaded."""
    environment = {"HOME": str(tmp_path), "PYTHONPATH": ":".join(filter(None, sys.path))}
    subprocess.run([sys.executable, "-c", f"import {module}"], env=environment, check=True, timeout=60)
    assert not list(tmp_path.rglob("*onnxruntime*"))
