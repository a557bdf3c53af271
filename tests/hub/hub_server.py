"""A Hub of one process: the calls that huggingface_hub makes to push and pull, over real bytes and real hashes."""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

LARGE = (".safetensors", ".arrow")
REPO = r"(?:/api/(?P<api>model|dataset)s|/(?P<web>datasets)|)/(?P<name>[\w.-]+/[\w.-]+)"


@dataclass
class Repo:
    """Branches point at commits; a commit is a listing of paths, each a (sha256, is it a large file)."""

    private: bool = False
    commits: dict[str, dict[str, tuple[str, bool]]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict) -> str:
        """A new commit on a branch; its name is a hash of what is in it."""
        parent = self.branches.get(branch, "")
        name = hashlib.sha1(json.dumps([parent, branch, sorted(files.items())]).encode()).hexdigest()
        self.commits[name], self.branches[branch] = files, name
        return name

    def resolve(self, revision: str) -> str | None:
        """The commit a branch or commit name stands for."""
        return revision if revision in self.commits else self.branches.get(revision)


class HubServer(ThreadingHTTPServer):
    """`log` lists requests as (method, path); `received` the bytes of each large file that arrived whole.

    While `cut` names the hash of a large file, its upload is cut off after half of its bytes.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[tuple[str, str], Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.log: list[tuple[str, str]] = []
        self.received: list[str] = []
        self.cut: str | None = None
        self.token = "hf_test"
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def files(self, kind: str, name: str, revision: str = "main") -> dict[str, bytes]:
        """What a repository holds."""
        repo = self.repos[kind, name]
        return {path: self.blobs[sha] for path, (sha, _) in repo.commits[repo.resolve(revision)].items()}

    def add(self, kind: str, name: str, files: dict[str, bytes], branch: str = "main") -> None:
        """Puts files into a repository as if somebody had pushed them."""
        repo = self.repos.setdefault((kind, name), Repo())
        held = dict(repo.commits.get(repo.branches.get(branch, ""), {}))
        for path, data in files.items():
            held[path] = (self.store(data), path.endswith(LARGE))
        repo.commit(branch, held)

    def store(self, data: bytes) -> str:
        sha = hashlib.sha256(data).hexdigest()
        self.blobs[sha] = data
        return sha

    def oid(self, sha: str, large: bool) -> str:
        """What git calls it: the hash of a pointer's target, or of a blob."""
        data = self.blobs[sha]
        return sha if large else hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def handle_any(self):
        parts = urlsplit(self.path)
        self.route, self.query = unquote(parts.path), parse_qs(parts.query)
        self.server.log.append((self.command, self.route))
        for method, pattern, answer in ROUTES:
            match = re.fullmatch(pattern, self.route)
            if match and self.command in method.split():
                return answer(self, **match.groupdict())
        return self.reply(404, {"error": f"no route {self.command} {self.route}"})

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    # ---- what the routes answer

    def create(self):
        asked = self.body()
        if not self.may_write():
            return None
        key = asked.get("type") or "model", f"{asked['organization']}/{asked['name']}"
        url = f"{self.server.url}/{'' if key[0] == 'model' else 'datasets/'}{key[1]}"
        if key in self.server.repos:
            return self.reply(409, {"error": "You already created this repository", "url": url})
        repo = self.server.repos[key] = Repo(private=asked.get("visibility") == "private")
        repo.commit("main", {})
        return self.reply(200, {"url": url, "name": key[1], "id": "1"})

    def validate(self):
        content = self.body()["content"]
        errors, warnings = [], []
        try:
            if not content.startswith("---"):
                warnings = [{"message": "empty or missing yaml metadata in repo card"}]
            elif not isinstance(yaml.safe_load(content.split("---")[1]), dict):
                errors = [{"message": "the metadata is not an object"}]
        except yaml.YAMLError as error:
            errors = [{"message": str(error)}]
        self.reply(400 if errors else 200, {"errors": errors, "warnings": warnings})

    def branch(self, branch, **place):
        self.body()
        repo = self.repo(**place)
        if repo and self.may_write():
            if branch in repo.branches:
                return self.reply(409, {"error": "Reference already exists"})
            repo.branches[branch] = repo.branches["main"]
            self.reply(200, {})

    def preupload(self, revision, **place):
        asked, repo = self.body(), self.repo(**place)
        if repo:
            held = repo.commits[repo.resolve(revision)]
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                    "shouldIgnore": False,
                    "oid": self.server.oid(*held[file["path"]]) if file["path"] in held else None,
                }
                for file in asked["files"]
            ]
            self.reply(200, {"files": files})

    def batch(self, **place):
        asked = self.body()
        if self.repo(**place) and self.may_write():
            objects = []
            for wanted in asked["objects"]:
                entry = {"oid": wanted["oid"], "size": wanted["size"]}
                if wanted["oid"] not in self.server.blobs:  # what is there is not asked for again
                    entry["actions"] = {"upload": {"href": f"{self.server.url}/storage/{wanted['oid']}"}}
                objects.append(entry)
            self.reply(200, {"transfer": "basic", "objects": objects}, "application/vnd.git-lfs+json")

    def put(self, sha):
        size = int(self.headers["Content-Length"])
        if self.server.cut == sha:
            self.rfile.read(size // 2)
            self.close_connection = True
            self.connection.close()
            return
        data = self.rfile.read(size)
        if hashlib.sha256(data).hexdigest() != sha:
            return self.reply(400, {"error": "the content is not what its name says"})
        self.server.blobs[sha] = data
        self.server.received.append(sha)
        self.reply(200, {})

    def commit(self, revision, **place):
        lines = [json.loads(line) for line in self.raw().splitlines()]
        repo = self.repo(**place)
        if not repo or not self.may_write():
            return None
        files = dict(repo.commits[repo.resolve(revision)])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = (self.server.store(base64.b64decode(value["content"])), False)
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.server.blobs:
                    return self.reply(400, {"error": f"{value['path']}: its content never arrived"})
                files[value["path"]] = (value["oid"], True)
        name = repo.commit(revision, files)
        self.reply(200, {"commitUrl": f"{self.server.url}/{place['name']}/commit/{name}", "commitOid": name})

    def info(self, revision=None, **place):
        repo = self.repo(**place)
        commit = self.at(repo, revision or "main")
        if commit:
            held = [{"rfilename": path} for path in repo.commits[commit]]
            found = {"id": place["name"], "sha": commit, "private": repo.private, "siblings": held, "tags": []}
            self.reply(200, {"_id": "1", "modelId": place["name"], "downloads": 0, "likes": 0, **found})

    def tree(self, revision, folder="", **place):
        repo = self.repo(**place)
        commit = self.at(repo, revision)
        if commit:
            rows = []
            for path, (sha, large) in sorted(repo.commits[commit].items()):
                if path.startswith(f"{folder}/" if folder else ""):
                    size = len(self.server.blobs[sha])
                    row = {"type": "file", "path": path, "size": size, "oid": self.server.oid(sha, False)}
                    rows.append(row | ({"lfs": {"oid": sha, "size": size, "pointerSize": 134}} if large else {}))
            if folder and not rows:
                return self.reply(404, {"error": "no such folder"}, code="EntryNotFound")
            self.reply(200, rows)

    def resolve(self, revision, path, **place):
        repo = self.repo(**place)
        commit = self.at(repo, revision)
        if commit and path not in repo.commits[commit]:
            self.reply(404, {"error": "Entry not found"}, code="EntryNotFound")
        elif commit:
            sha, large = repo.commits[commit][path]
            extra = {"X-Repo-Commit": commit, "ETag": f'"{self.server.oid(sha, large)}"', "Accept-Ranges": "bytes"}
            self.reply(200, self.server.blobs[sha], "application/octet-stream", headers=extra)

    # ---- parts

    def repo(self, name, api=None, web=None) -> Repo | None:
        """The repository of a route; a private one is there for its owner only."""
        repo = self.server.repos.get((api or ("dataset" if web else "model"), name))
        if repo is None or (repo.private and not self.owner()):
            self.reply(401, {"error": "Repository not found"}, code="RepoNotFound")
            return None
        return repo

    def at(self, repo: Repo | None, revision: str) -> str | None:
        commit = repo.resolve(revision) if repo else None
        if repo and not commit:
            self.reply(404, {"error": "Invalid rev id"}, code="RevisionNotFound")
        return commit

    def owner(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.server.token}"

    def may_write(self) -> bool:
        if not self.owner():
            self.reply(401, {"error": "Invalid username or password."})
        return self.owner()

    def raw(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def body(self) -> dict:
        return json.loads(self.raw() or b"{}")

    def reply(self, status: int, content, kind: str = "application/json", code: str = "", headers=None):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


ROUTES = (
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", Handler.validate),
    ("PUT", r"/storage/(?P<sha>[0-9a-f]{64})", Handler.put),
    ("POST", rf"{REPO}/branch/(?P<branch>.+)", Handler.branch),
    ("POST", rf"{REPO}/preupload/(?P<revision>.+)", Handler.preupload),
    ("POST", rf"{REPO}/commit/(?P<revision>.+)", Handler.commit),
    ("POST", rf"{REPO}\.git/info/lfs/objects/batch", Handler.batch),
    ("GET", rf"{REPO}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?", Handler.tree),
    ("GET HEAD", rf"{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", Handler.resolve),
    ("GET", rf"{REPO}/revision/(?P<revision>.+)", Handler.info),
    ("GET", rf"{REPO}", Handler.info),
)
