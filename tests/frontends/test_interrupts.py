"""Ctrl-C before a command has begun."""

import signal
import subprocess
import sys

import pytest

from core.interrupts import INTERRUPTED, ended_at_once
from tests.frontends.conftest import ROOT

HERE = "from core.interrupts import ended_at_once; import os, signal, sys\n"


def ended(code):
    command = [sys.executable, "-c", HERE + code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    return done.returncode, done.stdout, done.stderr


def test_it_ends_the_program_without_a_word():
    assert ended("with ended_at_once(): os.kill(os.getpid(), signal.SIGINT); print('never')") == (INTERRUPTED, "", "")


@pytest.mark.parametrize("program", ["frontends.cli.main", "core.serve"])
def test_it_does_so_while_a_command_is_imported(program):
    """The first thing that a command imports of the composition sends the signal."""
    hook = (
        "import importlib.abc, runpy\n"
        "class Interrupts(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'core.compose': os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupts())\n"
        "sys.argv = ['dovetail', 'serve', '--version']\n"
        f"runpy.run_module('{program}', run_name='__main__')"
    )
    assert ended(hook) == (INTERRUPTED, "", "")


def test_afterwards_and_for_those_who_listen_themselves_it_is_as_before():
    with ended_at_once():
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    usual = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with ended_at_once():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, usual)
