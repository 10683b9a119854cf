"""A model hub on a loopback port: the few endpoints of Hugging Face's that fetching a snapshot needs."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """``repos``: name -> {file name: bytes}. Files in ``cut`` break off halfway, once.

    ``requests`` records (method, path, Range header).
    """

    def __init__(self, repos, gated=(), cut=()):
        self.repos = repos
        self.gated = set(gated)
        self.cut = set(cut)
        self.requests = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                hub.answer(self)

            do_HEAD = do_GET

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *exc):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def fetched(self):
        """Names of files whose content was asked for."""
        return [path.rsplit("/", 1)[-1] for method, path, _ in self.requests if method == "GET" and "/resolve/" in path]

    def answer(self, http):
        path = unquote(urlsplit(http.path).path)
        self.requests.append((http.command, path, http.headers.get("Range")))
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self.answer_api(http, "/".join(parts[2:4]), parts[4], parts[5])
        elif len(parts) >= 5 and parts[2] == "resolve":
            self.answer_file(http, "/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        else:
            self.send(http, 404, b"", {"X-Error-Code": "EntryNotFound"})

    def refused(self, http, repo, revision):
        code, error = 404, None
        if repo not in self.repos:
            error = "RepoNotFound"
        elif repo in self.gated:
            code, error = 403, "GatedRepo"
        elif revision not in ("main", COMMIT):
            error = "RevisionNotFound"
        if error:
            self.send(http, code, b"{}", {"X-Error-Code": error})
        return error

    def answer_api(self, http, repo, kind, revision):
        if self.refused(http, repo, revision):
            return
        files = self.repos[repo]
        if kind == "revision":
            body = {
                "id": repo,
                "sha": COMMIT,
                "siblings": [{"rfilename": name} for name in files],
                "private": False,
                "tags": [],
            }
        else:
            body = [{"type": "file", "path": name, "size": len(data), "oid": etag(data)} for name, data in files.items()]
        self.send(http, 200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def answer_file(self, http, repo, revision, name):
        if self.refused(http, repo, revision):
            return
        data = self.repos[repo].get(name)
        if data is None:
            self.send(http, 404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{etag(data)}"', "Accept-Ranges": "bytes"}
        asked = http.headers.get("Range")
        if asked:
            start = int(asked.removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            self.send(http, 206, data[start:], headers)
        elif name in self.cut and http.command == "GET":
            self.cut.remove(name)
            self.send(http, 200, data, headers, only=len(data) // 2)
        else:
            self.send(http, 200, data, headers)

    def send(self, http, code, body, headers, only=None):
        http.send_response(code)
        for name, value in headers.items():
            http.send_header(name, value)
        http.send_header("Content-Length", str(len(body)))
        http.end_headers()
        if http.command != "HEAD":
            http.wfile.write(body[:only])
        if only is not None:
            http.close_connection = True


def etag(data):
    return hashlib.sha1(data).hexdigest()
