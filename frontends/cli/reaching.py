"""What a client tells of a server that it cannot use, whichever command asks."""

from __future__ import annotations

from core.errors import ExitCode, Problem, UserError
from frontends.cli.options import KEY_VARIABLE

_UNTRUSTED = "CERTIFICATE_VERIFY_FAILED"  # in what OpenSSL says


def wants_a_key(url: str) -> UserError:
    return UserError.of(f"the server at {url} wants a key", "--api-key", f"give it with --api-key, or in ${KEY_VARIABLE}")


def no_address(url: str) -> UserError:
    return UserError.of(f"{url!r} is no address of a server", "--url", "give one like http://127.0.0.1:8000")


def untrusted(url: str, why: str) -> UserError | None:
    """Where ``why``, the connection's own words, says that the certificate is not trusted."""
    if _UNTRUSTED not in why:
        return None
    problem = Problem(
        f"the certificate of {url} is not trusted",
        "--url",
        ("name the file of whoever signed it, PEM: SSL_CERT_FILE=ca.pem", "check that --url names the host it is made for"),
    )
    return UserError(problem, exit_code=ExitCode.FAILED)
