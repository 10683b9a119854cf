"""Triton is made for Linux on x86-64 alone, where ``pip install -e .[dev]`` brings it: there the kernel's tests always run."""

import importlib.util
import platform
import sys
from pathlib import Path

import pytest

HAS_TRITON = sys.platform == "linux" and platform.machine() == "x86_64"
collect_ignore = [] if HAS_TRITON else ["test_kernel.py"]


def pytest_report_header():
    return [] if HAS_TRITON else ["sampler_rejection: no Triton for this platform, its kernel is not tested"]


@pytest.fixture(scope="session")
def reference():
    """The module ``reference.py`` beside this file."""
    spec = importlib.util.spec_from_file_location("sampler_rejection_reference", Path(__file__).with_name("reference.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
