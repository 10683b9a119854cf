"""Triton is made for Linux on x86-64 alone, where ``pip install -e .[dev]`` brings it: there these tests always run."""

import os
import platform
import sys

HAS_TRITON = sys.platform == "linux" and platform.machine() == "x86_64"
# In an interpreter of their own: whether kernels are interpreted is settled when Triton is imported.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
collect_ignore_glob = [] if HAS_TRITON else ["*"]
if not INTERPRETED:
    collect_ignore_glob.append("interpreted/*")


def pytest_report_header():
    return [] if HAS_TRITON else ["no Triton for this platform, its kernels are not tested"]
