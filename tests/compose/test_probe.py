import json
import subprocess
import sys

import pytest

from core.compose.probe import DeviceProbe, probe_devices
from core.errors import UserError
from tests.compose.fakes import CUDA


def test_the_child_prints_what_this_machine_has():
    child = subprocess.run([sys.executable, "-m", "core.compose.probe"], capture_output=True, text=True, check=True)
    probe = DeviceProbe.from_json(child.stdout)
    assert probe.cores >= 1
    assert 0 < probe.free_bytes <= probe.memory_bytes
    assert probe.cpu_name


def test_asking_gives_the_same_machine():
    probe = probe_devices({"PATH": ""})
    assert probe.memory_bytes == probe_devices({"PATH": ""}).memory_bytes
    assert probe.note == ""


def test_the_variable_replaces_the_asking():
    assert probe_devices({"DOVETAIL_DEVICE_PROBE": CUDA.to_json()}) == CUDA


@pytest.mark.parametrize("text", ["{}", "[]", "nonsense", json.dumps({"cores": 3})])
def test_a_variable_that_is_no_probe_is_refused(text):
    with pytest.raises(UserError) as error:
        probe_devices({"DOVETAIL_DEVICE_PROBE": text})
    assert error.value.problems[0].where == "$DOVETAIL_DEVICE_PROBE"
    assert error.value.problems[0].what.startswith("the device probe is not what `python -m core.compose.probe` prints: ")


def test_a_child_that_hangs_leaves_a_cpu_and_a_note():
    probe = probe_devices({}, timeout=0.001)
    assert probe.devices == ()
    assert probe.note == "the device probe did not answer in 0.001 s: no CUDA device is assumed"


def test_a_child_that_fails_leaves_a_cpu_and_a_note(monkeypatch, tmp_path):
    crash = tmp_path / "sitecustomize.py"
    crash.write_text("import sys; sys.exit('driver on fire')")
    probe = probe_devices({"PYTHONPATH": str(tmp_path)})
    assert probe.devices == ()
    assert probe.cores >= 1
    assert probe.note.startswith("the device probe failed (")
    assert probe.note.endswith("): no CUDA device is assumed")
