"""A stand-in for the hub, on this machine: what huggingface_hub asks of it to make, fill and read a repository."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0" * 39 + "1"


class Hub(ThreadingHTTPServer):
    """Repositories by name: files by path."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value: Any, status: int = 200) -> None:
        self._answer(status, json.dumps(value).encode(), Content_Type="application/json")

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_POST(self) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        body = self._body()
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'user'}/{asked['name'].split('/')[-1]}"
            self.server.repositories.setdefault(name, {})
            if asked.get("private") or asked.get("visibility") == "private":
                self.server.private.add(name)
            self._json({"url": f"{self.server.url}/{name}"})
        elif parts[:2] == ["api", "models"] and "preupload" in parts:
            asked = json.loads(body)
            plan = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
            self._json({"files": [{"path": file["path"], **plan} for file in asked["files"]]})
        elif parts[:2] == ["api", "models"] and "commit" in parts:
            name = "/".join(parts[2:4])
            files = self.server.repositories[name]
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            self._json({"success": True, "commitOid": COMMIT, "commitUrl": f"{self.server.url}/{name}/commit/{COMMIT}"})
        else:
            self._json({}, 200 if parts[:2] == ["api", "validate-yaml"] else 404)

    def do_GET(self) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"] and "/".join(parts[2:4]) in self.server.repositories:
            files = self.server.repositories["/".join(parts[2:4])]
            names = sorted(files)
            if "tree" in parts:
                entries = [
                    {"type": "file", "path": n, "size": len(files[n]), "oid": hashlib.sha1(files[n]).hexdigest()}
                    for n in names
                ]
                self._json(entries)
            else:
                self._json({"id": "/".join(parts[2:4]), "sha": COMMIT, "siblings": [{"rfilename": n} for n in names],
                            "private": False, "tags": [], "downloads": 0, "likes": 0})  # fmt: skip
        elif len(parts) > 4 and parts[2] == "resolve":
            content = self.server.repositories.get("/".join(parts[:2]), {}).get("/".join(parts[4:]))
            if content is None:
                self._answer(404, X_Error_Code="EntryNotFound")
            else:
                self._answer(200, content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit=COMMIT)
        else:
            self._answer(401, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")

    do_HEAD = do_GET
