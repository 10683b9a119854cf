"""Everything that is run on this project, each in an environment of its own: `pip install nox`, then `nox -s NAME`."""

from __future__ import annotations

from pathlib import Path

import nox

nox.needs_version = ">=2024.10"
nox.options.default_venv_backend = "venv"
nox.options.sessions = ["lint", "types", "imports", "tests"]
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_missing_interpreters = True

EXAMPLE = "examples/third_party_plugin"
EXAMPLE_BACKEND = "examples/numpy_backend"
ON_ANY_BACKEND = (
    "tests/compute/test_paddle.py",
    "tests/compute/test_whole_model.py",
    "tests/models/test_logits.py",
    "tests/must_show/test_paddle.py",
    "tests/must_show/test_same_tokens.py",
    "tests/must_show/test_speculation.py",
    "tests/must_show/test_structured_output.py",
    "tests/service/test_end_to_end.py",
    "plugins/sampler_rejection/tests/test_composed.py",
)
SOURCES = ("core", "frontends", "plugins", "noxfile.py", "docs")


@nox.session
def serve(session: nox.Session) -> None:
    """Serve the demo model, or what is asked for: nox -s serve -- --model random:tiny."""
    session.install(".[all]")
    session.run("python", "-m", "core.serve", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """The test suite, on the CPU: nox -s tests -- tests/engine -k preempt.

    Without arguments, in two parts: many small tests beside each other, a thread each, then those that want the machine alone.
    """
    session.install("-e", ".[all,dev]")
    if session.posargs:
        session.run("pytest", "-m", "not (gpu or browser)", *session.posargs)
        return
    alone = "perf or soak or heavy"
    beside = ("--numprocesses", "auto", "--maxprocesses", "8", "--dist", "worksteal")
    session.run("pytest", "-m", f"not (gpu or browser or {alone})", *beside, env={"OMP_NUM_THREADS": "1"})
    session.run("pytest", "-m", f"({alone}) and not gpu")


@nox.session
def lint(session: nox.Session) -> None:
    session.install("ruff>=0.8")
    session.run("ruff", "check", *session.posargs)
    session.run("ruff", "format", "--check")


@nox.session
def types(session: nox.Session) -> None:
    """mypy, against the packages of the session ``tests`` where that has run: PyTorch need not be unpacked twice."""
    tests = Path(session.virtualenv.location).parent / "tests" / "bin" / "python"
    if tests.exists():
        session.install("mypy>=1.13")
        session.run("mypy", "--python-executable", str(tests), *(session.posargs or SOURCES))
    else:
        session.install("-e", ".[all,dev]")
        session.run("mypy", *(session.posargs or SOURCES))


@nox.session
def imports(session: nox.Session) -> None:
    """Who may see whom: .importlinter. Imports are read, not executed, so what is imported need not be there."""
    session.install("import-linter>=2.1")
    session.install("--no-deps", "-e", ".")
    session.run("lint-imports")


@nox.session(reuse_venv=False)
def third_party(session: nox.Session) -> None:
    """The example plugins, distributions of their own: installed beside this one, put through their contracts, served with."""
    session.install(".[all]")
    session.install(f"{EXAMPLE}[dev]", f"{EXAMPLE_BACKEND}[dev]")
    root = Path.cwd()
    session.chdir(EXAMPLE)  # away from the checkout: what is tested is what was installed
    shown = session.run("python", "-m", "core.serve", "--list-plugins", silent=True)
    if "sampler_top_nsigma" not in str(shown):
        session.error(f"--list-plugins does not show the example plugin:\n{shown}")
    session.run("pytest", *session.posargs)
    session.chdir(root / EXAMPLE_BACKEND)
    session.run("pytest", *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session
def docs(session: nox.Session) -> None:
    """Check that the generated pages are current; nox -s docs -- --write writes them anew."""
    session.install("-e", ".[all]")
    session.run("python", "docs/build.py", *(session.posargs or ["--check"]))


@nox.session
def site(session: nox.Session) -> None:
    """Build the documentation's site, in site/; nox -s site -- serve shows it while it is written."""
    session.install("mkdocs-material>=9.5")
    session.run("mkdocs", *(session.posargs or ["build", "--quiet"]), env={"NO_MKDOCS_2_WARNING": "1"})


@nox.session
def fuzz(session: nox.Session) -> None:
    """Ten minutes of requests made from the server's own description: nothing may break. nox -s fuzz -- 60 for a minute."""
    session.install(".[all]", "schemathesis>=4")
    seconds = session.posargs[0] if session.posargs else "600"
    session.run("python", "tests/fuzz.py", seconds)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure: nox -s bench -- --help."""
    session.install("-e", ".[all,bench]")
    session.run("python", "-m", "core.bench", *session.posargs)


@nox.session
def paddle(session: nox.Session) -> None:
    """What is no backend's own, on torch and on PaddlePaddle's CPU wheel, and what is PaddlePaddle's own."""
    session.install("-e", ".[all,dev,paddle]")
    beside = ("--numprocesses", "auto", "--maxprocesses", "8", "--dist", "worksteal")
    session.run(
        "pytest",
        "-m",
        "not (gpu or perf or soak or heavy)",
        *("--backend", "torch", "--backend", "paddle"),
        *(session.posargs or (*beside, *ON_ANY_BACKEND)),
        env={"OMP_NUM_THREADS": "1"},
    )


@nox.session
def web(session: nox.Session) -> None:
    """The page, driven in a Chromium (apt-get install chromium): nox -s web -- --screenshots also renews docs/images/."""
    session.install("-e", ".[all,dev,browser]")
    asked = [each for each in session.posargs if each != "--screenshots"]
    pictures = {"PAGE_PICTURES": "docs/images"} if "--screenshots" in session.posargs else {}
    session.run("pytest", "-m", "browser", *(asked or ["tests/web"]), env=pictures)


@nox.session
def gpu(session: nox.Session) -> None:
    """The tests that need a CUDA device."""
    session.install("-e", ".[all,dev]")
    session.run("pytest", "-m", "gpu", *session.posargs)
