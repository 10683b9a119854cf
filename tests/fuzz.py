"""python tests/fuzz.py SECONDS: a server of a tiny model, asked by schemathesis whatever its description allows, and more."""

import subprocess
import sys

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,unsupported_method"
SERVE = [sys.executable, "-m", "core.serve", "--model", "random:tiny", "--port", "0", "--log-level", "warning"]


def main(seconds: str) -> int:
    with subprocess.Popen(SERVE, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            url = server.stdout.readline().removeprefix("listening on ").strip()
            fuzz = ["schemathesis", "run", f"{url}/openapi.json", "--checks", CHECKS, "--max-time", seconds]
            fuzz += ["--exclude-path", "/v1/pause"]  # nothing is served afterwards, as it should be
            fuzz += ["--request-timeout", "30", "--phases", "coverage,fuzzing", "--continue-on-failure"]
            found = subprocess.run(fuzz, check=False).returncode
            return found if server.poll() is None else 1
        finally:
            server.terminate()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
