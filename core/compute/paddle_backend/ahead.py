"""The backend, imported as a plan's engine wants it, and before there is one."""

from core.compute.paddle_backend.framework import imported_quietly

with imported_quietly():
    from core.compute.paddle_backend.backend import PaddleBackend as PaddleBackend
