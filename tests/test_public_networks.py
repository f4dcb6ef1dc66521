"""A sample of the public networks, those whose packages need nothing but PyTorch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SAMPLE = ("gcn_jumping_knowledge", "sage_jumping_knowledge")


@pytest.mark.slow
def test_a_sample_of_public_networks_is_right(tmp_path):
    packages = tmp_path / "packages"
    command = [sys.executable, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", "--target", packages]
    fetched = subprocess.run([*command, "torch-geometric"], capture_output=True, text=True, check=False)
    if fetched.returncode:
        pytest.skip(f"torch-geometric cannot be fetched here: {fetched.stderr[-300:]}")
    output = tmp_path / "networks.json"
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "benchmarks.public_networks",
        "--output",
        output,
        "--names",
        *SAMPLE,
    ]
    environment = {**os.environ, "PYTHONPATH": str(packages)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    results = json.loads(output.read_text()) if output.exists() else {}
    assert set(results) == {*SAMPLE}, done.stdout + done.stderr
    for name, found in results.items():
        for which in ("plain", "fused"):
            assert (found[which]["file"], found[which]["verdict"]) == ("right", "passed"), (name, which, found)


def test_the_table_is_of_the_stored_results():
    from benchmarks.public_networks import NETWORKS, PAGE, RESULTS, page

    data = json.loads(RESULTS.read_text())
    assert PAGE.read_text() == page(data)
    assert set(data) == set(NETWORKS)
    assert len(data) >= 24
    for name, found in data.items():
        for which in ("plain", "fused"):
            file, verdict = found[which]["file"], found[which].get("verdict")
            assert (file, verdict) == ("right", "passed") or file.startswith("refused: ExportError"), (name, found)
