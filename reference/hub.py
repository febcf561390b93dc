"""Checks the test server with `huggingface_hub`: uploads, downloads, caches, revisions and refusals.

    python reference/hub.py --server target/debug/hub-test-server

Starts the server, drives it with PyPI's client, and asks the server for its requests.
Nothing leaves this machine.
The exit status is 1 if a check fails.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

PART = 3 << 20


class Server:
    """The test server, with its URLs. Commands to the server are lines of JSON."""

    def __init__(self, binary, *options):
        command = [str(binary), "--page", "5", "--multipart", f"{2 * PART},{PART}", "--token", "hf_zhen=zhen", *options]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.endpoint = json.loads(self.process.stdout.readline())["endpoint"]

    def ask(self, do, **values):
        self.process.stdin.write(json.dumps({"do": do, **values}) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def requests(self, method=None, part="", host=None):
        """Returns the requests so far and clears them."""
        found = self.ask("requests")["requests"]
        self.ask("clear")
        return [
            request
            for request in found
            if method in (None, request["method"]) and part in request["target"] and host in (None, request["host"])
        ]

    def stop(self):
        self.process.stdin.close()
        self.process.wait(timeout=10)


class Checks:
    """Prints a line for each check, and counts checks and failures."""

    def __init__(self):
        self.held = self.failed = 0

    def check(self, what, holds, found=""):
        self.held += bool(holds)
        self.failed += not holds
        print(f"{'ok  ' if holds else 'FAIL'} {what}{'' if holds else f': {found!r}'}", flush=True)

    def equal(self, what, found, expected):
        self.check(what, found == expected, (found, expected))

    def raises(self, what, error, call):
        """Checks that `call` raises `error`, and returns the exception."""
        try:
            found = call()
        except Exception as raised:  # a different exception is a failed check, and the script continues
            self.check(what, type(raised) is error, f"{type(raised).__name__}: {raised}")
            return raised
        self.check(what, False, found)
        return None


def content(size, seed):
    """Returns bytes that are neither text nor repetitive."""
    blocks = (hashlib.sha256(f"{seed} {block}".encode()).digest() for block in range(size // 32 + 1))
    return b"".join(blocks)[:size]


def tree(folder):
    """Returns the files of a folder by path, except those that the client writes for itself."""
    files = (path for path in sorted(Path(folder).rglob("*")) if path.is_file())
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
    return {path: data for path, data in found.items() if not path.startswith(".cache") and path != ".gitattributes"}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--server", type=Path, required=True, help="the program hub-test-server")
    arguments = parser.parse_args()
    binary = arguments.server.resolve()
    checks = Checks()
    with tempfile.TemporaryDirectory() as scratch:
        Path(scratch, "server").mkdir()
        os.environ["TMPDIR"] = f"{scratch}/server"
        server = Server(binary)
        # huggingface_hub reads these variables only while it is imported.
        os.environ.update(
            HF_ENDPOINT=server.endpoint, HF_HOME=f"{scratch}/home", HF_HUB_DISABLE_XET="1", HF_HUB_DISABLE_PROGRESS_BARS="1",
            HF_HUB_DISABLE_TELEMETRY="1", HF_HUB_DISABLE_IMPLICIT_TOKEN="1", HF_HUB_VERBOSITY="error",
        )
        for name in ("HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HUGGING_FACE_HUB_TOKEN"):
            os.environ.pop(name, None)
        warnings.simplefilter("ignore")
        try:
            for step in (accounts, uploads, downloads, resuming, revisions, refusals, races, faults):
                try:
                    step(server, checks, Path(scratch))
                except Exception:
                    traceback.print_exc()
                    checks.check(f"{step.__name__} came to its end", False)
            today(binary, checks, Path(scratch))
        finally:
            server.stop()
        checks.equal("the server leaves nothing behind", list(Path(scratch, "server").iterdir()), [])
    print(f"{checks.held} of {checks.held + checks.failed} checks hold")
    sys.exit(1 if checks.failed else 0)


def today(binary, checks, scratch):
    """Checks a server that redirects small files, as the Hub has done since 2025."""
    from huggingface_hub import hf_hub_download

    server = Server(binary, "--resolve-cache")
    try:
        server.ask("model", id="zhen/m", private=True, files={"a b.txt": "text"})
        file = hf_hub_download("zhen/m", "a b.txt", endpoint=server.endpoint, token="hf_zhen", cache_dir=scratch / "today")
        found = server.requests()
        checks.equal("a small file behind a redirect", Path(file).read_text(), "text")
        checks.equal("a small file behind a redirect: answers", [r["status"] for r in found], [307, 200, 200])
        checks.check("a small file behind a redirect: the token goes along", all(r["authorization"] for r in found), found)
    finally:
        server.stop()


def api(token="hf_zhen"):
    from huggingface_hub import HfApi

    return HfApi(token=token)


def accounts(server, checks, scratch):
    from huggingface_hub.errors import HfHubHTTPError

    server.ask("user", name="guan", token="hf_guan")
    server.ask("user", name="guan", token="hf_reads", read_only=True)
    server.ask("user", name="old", token="hf_old")
    server.ask("expire", token="hf_old")
    server.ask("member", org="palace", user="zhen")
    who = api().whoami()
    checks.equal("whoami: name and organisations", (who["name"], [org["name"] for org in who["orgs"]]), ("zhen", ["palace"]))
    checks.equal("whoami: role of a token that reads", api("hf_reads").whoami()["auth"]["accessToken"]["role"], "read")
    for what, token in (("expired", "hf_old"), ("unknown", "hf_none")):
        error = checks.raises(f"whoami: a token that is {what}", HfHubHTTPError, api(token).whoami)
        checks.equal("whoami: its status", error and error.response.status_code, 401)

    checks.equal("create_repo: address", str(api().create_repo("zhen/made")), f"{server.endpoint}/zhen/made")
    error = checks.raises("create_repo: a second time", HfHubHTTPError, lambda: api().create_repo("zhen/made"))
    checks.equal("create_repo: its status", error and error.response.status_code, 409)
    checks.equal("create_repo: a second time, exist_ok", api().create_repo("zhen/made", exist_ok=True).repo_id, "zhen/made")
    checks.equal("create_repo: for an organisation", api().create_repo("palace/made", private=True).repo_id, "palace/made")
    checks.equal("create_repo: private", api().model_info("palace/made").private, True)
    checks.equal("create_repo: public", api().model_info("zhen/made").private, False)
    for what, token in (("another's name", "hf_guan"), ("a token that reads", "hf_reads")):
        error = checks.raises(f"create_repo: {what}", HfHubHTTPError, lambda token=token: api(token).create_repo("zhen/other"))
        checks.equal("create_repo: its status", error and error.response.status_code, 403)
    for visibility in ("private", "public"):
        api().update_repo_settings("zhen/made", visibility=visibility)
        checks.equal(f"update_repo_settings: {visibility}", api().model_info("zhen/made").private, visibility == "private")
    error = checks.raises("update_repo_settings: another's", HfHubHTTPError, lambda: api("hf_guan").update_repo_settings("zhen/made", private=True))
    checks.equal("update_repo_settings: its status", error and error.response.status_code, 403)
    error = checks.raises("create_repo: no token", HfHubHTTPError, lambda: api(False).create_repo("zhen/other"))
    checks.equal("create_repo: its status", error and error.response.status_code, 401)


def uploads(server, checks, scratch):
    folder = scratch / "folder"
    (folder / "nested/deep").mkdir(parents=True)
    files = {
        "README.md": b"---\nlicense: mit\n---\n# Card\n",
        "config.json": b'{"a": 1}\n',
        "empty.txt": b"",
        "nested/deep/notes.txt": "甄嬛\n".encode(),
        "nested/small.safetensors": content(1000, "small"),
        "model.safetensors": content(2 * PART + 12345, "model"),
        "exact.safetensors": content(3 * PART, "exact"),
        "no-text": b"\0\1\2",
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    server.ask("clear")
    done = api().upload_folder(repo_id="zhen/made", folder_path=folder, commit_message="first")
    found = server.requests()
    parts = [r["received"] for r in found if r["method"] == "PUT" and "partNumber" in r["target"]]
    puts = [r["received"] for r in found if r["method"] == "PUT" and "partNumber" not in r["target"]]
    checks.equal("upload_folder: sizes of the parts", sorted(parts), sorted([PART] * 5 + [12345]))
    checks.equal("upload_folder: small large files in one piece", sorted(puts), [3, 1000])
    checks.equal("upload_folder: no token goes to the storage host", [r for r in found if r["host"] == "storage" and r["authorization"]], [])
    checks.check("upload_folder: every request was answered well", all(r["status"] == 200 for r in found), found)
    commits = server.ask("commits", id="zhen/made")
    checks.equal("upload_folder: one commit on the first", [c["title"] for c in commits["commits"]], ["initial commit", "first"])
    checks.equal("upload_folder: the id of its commit", done.oid, commits["refs"]["refs/heads/main"])

    (folder / "config.json").write_bytes(b'{"a": 2}\n')
    (folder / "new.safetensors").write_bytes(content(1000, "small"))
    api().upload_folder(repo_id="zhen/made", folder_path=folder, commit_message="second")
    found = server.requests()
    checks.equal("upload_folder again: nothing large is sent twice, even under a new name", [r for r in found if r["method"] == "PUT"], [])
    sent = sum(r["received"] for r in found if "/commit/" in r["target"])
    checks.check("upload_folder again: the commit has only what changed", 0 < sent < 600, sent)
    same = api().upload_folder(repo_id="zhen/made", folder_path=folder)
    checks.equal("upload_folder, nothing new: no commit is sent", server.requests(part="/commit/"), [])
    commits = server.ask("commits", id="zhen/made")
    checks.equal("upload_folder, nothing new: the commit that is there", same.oid, commits["refs"]["refs/heads/main"])

    (folder / ".gitignore").write_text("*.log\n")
    (folder / "run.log").write_text("private\n")
    api().upload_folder(repo_id="zhen/made", folder_path=folder, delete_patterns="empty.txt", ignore_patterns="empty.txt")
    names = api().list_repo_files("zhen/made")
    checks.check("upload_folder: what .gitignore names stays home", "run.log" not in names and ".gitignore" in names, names)
    checks.check("upload_folder: delete_patterns", "empty.txt" not in names, names)
    (folder / "empty.txt").unlink()
    (folder / "run.log").unlink()
    api().delete_folder("nested/deep", "zhen/made")
    checks.check("delete_folder", "nested/deep/notes.txt" not in api().list_repo_files("zhen/made"))
    api().upload_file(path_or_fileobj=folder / "nested/deep/notes.txt", path_in_repo="nested/deep/notes.txt", repo_id="zhen/made")


def downloads(server, checks, scratch):
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, snapshot_download

    folder = scratch / "folder"
    snapshot = snapshot_download("zhen/made")
    checks.equal("snapshot_download: every file, byte for byte", tree(snapshot), tree(folder))
    found = server.requests()
    checks.check("snapshot_download: the tree came in pages", sum("/tree/" in r["target"] for r in found) > 1)
    checks.equal("snapshot_download: no token goes to the storage host", [r for r in found if r["host"] == "storage" and r["authorization"]], [])
    snapshot_download("zhen/made")
    checks.equal("snapshot_download again: only the revision is asked for", [r["method"] for r in server.requests()], ["GET"])
    local = snapshot_download("zhen/made", local_dir=scratch / "local", allow_patterns="*.safetensors")
    wanted = {name: data for name, data in tree(folder).items() if name.endswith(".safetensors")}
    checks.equal("snapshot_download: to a folder, with patterns", tree(local), wanted)

    for name in ("config.json", "model.safetensors"):
        server.ask("clear")
        hf_hub_download("zhen/made", name)
        found = server.requests()
        checks.equal(f"hf_hub_download, cached: only the tag of {name} is asked for", [r["method"] for r in found], ["HEAD"])
        data = (folder / name).read_bytes()
        meta = get_hf_file_metadata(hf_hub_url("zhen/made", name))
        git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        tag = git if name == "config.json" else hashlib.sha256(data).hexdigest()
        checks.equal(f"metadata of {name}: tag and size", (meta.etag, meta.size), (tag, len(data)))
    infos = {info.path: info for info in api().get_paths_info("zhen/made", ["model.safetensors", "nested", "none"], expand=True)}
    checks.equal("get_paths_info: what is there", sorted(infos), ["model.safetensors", "nested"])
    checks.check("get_paths_info: a folder and a large file", infos["model.safetensors"].lfs and infos["nested"].tree_id, infos)
    flat = sorted(entry.path for entry in api().list_repo_tree("zhen/made", "nested"))
    checks.equal("list_repo_tree: one folder", flat, ["nested/deep", "nested/small.safetensors"])
    info = api().model_info("zhen/made", files_metadata=True)
    sizes = {s.rfilename: s.size for s in info.siblings if s.rfilename != ".gitattributes"}
    checks.equal("model_info: names and sizes", sizes, {name: len(data) for name, data in tree(folder).items()})
    titles = [commit.title for commit in api().list_repo_commits("zhen/made")]
    checks.equal("list_repo_commits: newest first", (len(titles), titles[-2:]), (6, ["first", "initial commit"]))


def resuming(server, checks, scratch):
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.file_download import http_get

    # After an interruption, the client resumes from its last complete chunk. A chunk of 10 MB, the default, would be
    # larger than these files.
    constants.DOWNLOAD_CHUNK_SIZE = 1 << 16
    for what, path, name in (("large", "/objects/", "model.safetensors"), ("small", "/resolve/", "config.json")):
        whole = (scratch / "folder" / name).read_bytes()
        server.ask("fault", method="GET", path=path, then={"cut_after": len(whole) // 2})
        server.ask("clear")
        file = hf_hub_download("zhen/made", name, cache_dir=scratch / f"cut-{what}")
        checks.equal(f"a {what} file cut half-way: whole in the end", Path(file).read_bytes(), whole)
        found = server.requests("GET", path)
        statuses = [200, 206] if what == "large" else [200, 200]
        checks.equal(f"a {what} file cut half-way: what comes then", [r["status"] for r in found], statuses)
        if what == "large":
            checks.equal("a large file cut half-way: its rest alone is asked for", found[1]["range"], f"bytes={len(whole) // 2 >> 16 << 16}-")
    for name in ("model.safetensors", "config.json"):
        whole = (scratch / "folder" / name).read_bytes()
        left = scratch / f"{name}.incomplete"
        left.write_bytes(whole[:5])
        url = get_hf_file_metadata(hf_hub_url("zhen/made", name)).location
        with left.open("ab") as file:
            http_get(url, file, resume_size=5, expected_size=len(whole))
        checks.equal(f"{name} left incomplete: whole in the end", left.read_bytes(), whole)
        checks.equal(f"{name} left incomplete: its rest alone comes", server.requests("GET")[-1]["sent"], len(whole) - 5)


def revisions(server, checks, scratch):
    from huggingface_hub import hf_hub_download

    first = next(c["id"] for c in server.ask("commits", id="zhen/made")["commits"] if c["title"] == "first")

    def read(revision):
        return Path(hf_hub_download("zhen/made", "config.json", revision=revision)).read_bytes()

    checks.equal("a revision by commit", read(first), b'{"a": 1}\n')
    checks.equal("main", read("main"), b'{"a": 2}\n')
    api().create_tag("zhen/made", tag="v1", revision=first)
    api().create_branch("zhen/made", branch="side", revision=first)
    checks.equal("a tag", read("v1"), b'{"a": 1}\n')
    done = api().upload_file(path_or_fileobj=b'{"a": 3}\n', path_in_repo="config.json", repo_id="zhen/made", revision="side")
    checks.equal("a branch", (read("side"), read("main")), (b'{"a": 3}\n', b'{"a": 2}\n'))
    checks.equal("a branch: its commit", api().model_info("zhen/made", revision="side").sha, done.oid)
    proposed = api("hf_guan").upload_folder(repo_id="zhen/made", folder_path=scratch / "folder/nested", path_in_repo="proposed", create_pr=True)
    number = proposed.pr_num
    checks.equal("create_pr: its ref", proposed.pr_revision, f"refs/pr/{number}")
    names = api().list_repo_files("zhen/made", revision=proposed.pr_revision)
    checks.check("create_pr: its files are on its ref only", "proposed/small.safetensors" in names and not any(n.startswith("proposed") for n in api().list_repo_files("zhen/made")), names)
    checks.equal("a file of a pull request", Path(hf_hub_download("zhen/made", "proposed/small.safetensors", revision=f"refs/pr/{number}")).read_bytes(), content(1000, "small"))
    opened = api().create_pull_request("zhen/made", title="by hand")
    checks.equal("create_pull_request: its ref", opened.git_reference, f"refs/pr/{opened.num}")
    refs = api().list_repo_refs("zhen/made", include_pull_requests=True)
    names = [sorted(ref.name for ref in group) for group in (refs.branches, refs.tags, refs.pull_requests)]
    checks.equal("list_repo_refs", names, [["main", "side"], ["v1"], [str(number), str(opened.num)]])


def refusals(server, checks, scratch):
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError, HfHubHTTPError, RemoteEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError,
    )

    server.ask("model", id="zhen/secret", private=True, files={"a.txt": "a"})
    server.ask("model", id="zhen/gated", gated="auto", files={"a.txt": "a", "model.safetensors": "w"})

    def fetch(id, token, name="a.txt", **more):
        return lambda: hf_hub_download(id, name, token=token, **more)

    for who, token, status in (("no token", False, 401), ("another's token", "hf_guan", 404)):
        for what, id in (("a private", "zhen/secret"), ("an unknown", "zhen/none")):
            error = checks.raises(f"{what} repository, {who}", RepositoryNotFoundError, fetch(id, token))
            checks.equal(f"{what} repository, {who}: its status", error and error.response.status_code, status)
            checks.raises(f"{what} repository, {who}: model_info", RepositoryNotFoundError, lambda id=id, token=token: api(token).model_info(id))
    checks.equal("a private repository, its owner", Path(fetch("zhen/secret", "hf_zhen")()).read_text(), "a")
    for who, token, status in (("no token", False, 401), ("a token without access", "hf_guan", 403)):
        for name in ("a.txt", "model.safetensors"):
            error = checks.raises(f"a gated repository, {who}, {name}", GatedRepoError, fetch("zhen/gated", token, name))
            checks.equal(f"a gated repository, {who}, {name}: its status", error and error.response.status_code, status)
    checks.raises("a gated repository: snapshot_download", GatedRepoError, lambda: snapshot_download("zhen/gated", token="hf_guan"))
    checks.equal("a gated repository: model_info", api("hf_guan").model_info("zhen/gated").gated, "auto")
    server.ask("grant", id="zhen/gated", user="guan")
    checks.equal("a gated repository, granted", Path(fetch("zhen/gated", "hf_guan")()).read_text(), "a")
    checks.raises("an unknown revision", RevisionNotFoundError, fetch("zhen/made", "hf_zhen", revision="none"))
    checks.raises("an unknown revision: model_info", RevisionNotFoundError, lambda: api().model_info("zhen/made", revision="none"))
    full = api().model_info("zhen/made").sha
    checks.raises("an abbreviated commit", RevisionNotFoundError, fetch("zhen/made", "hf_zhen", "config.json", revision=full[:7]))
    checks.raises("an unknown file", RemoteEntryNotFoundError, fetch("zhen/made", "hf_zhen", "none.txt"))
    checks.raises("an unknown folder", RemoteEntryNotFoundError, lambda: list(api().list_repo_tree("zhen/made", "none")))
    checks.raises("deleting an unknown file", RemoteEntryNotFoundError, lambda: api().delete_file("none.txt", "zhen/made"))

    def send(token, id="zhen/made", data=b"x"):
        return lambda: api(token).upload_file(path_or_fileobj=data, path_in_repo="x.txt", repo_id=id)

    for what, token, status in (("another's token", "hf_guan", 403), ("a token that reads", "hf_reads", 403), ("an expired token", "hf_old", 401)):
        error = checks.raises(f"upload_file: {what}", HfHubHTTPError, send(token))
        checks.equal(f"upload_file: {what}: its status", error and error.response.status_code, status)
    checks.raises("upload_file: an unknown repository", RepositoryNotFoundError, send("hf_zhen", "zhen/none"))
    error = checks.raises(
        "a card that is no YAML", ValueError, lambda: api().upload_file(path_or_fileobj=b"---\nnonsense\n---\n", path_in_repo="README.md", repo_id="zhen/made")
    )
    checks.check("a card that is no YAML: what is wrong", "nonsense" in str(error), str(error))


def races(server, checks, scratch):
    from huggingface_hub import CommitOperationAdd
    from huggingface_hub.errors import BadRequestError, HfHubHTTPError

    def send(parent, text):
        operation = CommitOperationAdd("race.txt", text)
        return lambda: api().create_commit("zhen/made", [operation], commit_message="race", parent_commit=parent)

    before = api().model_info("zhen/made").sha
    after = send(before, b"one")().oid
    error = checks.raises("parent_commit: another was faster", HfHubHTTPError, send(before, b"two"))
    checks.equal("parent_commit: its status", error and error.response.status_code, 412)
    commits = server.ask("commits", id="zhen/made")
    checks.equal("parent_commit: nothing was changed", commits["refs"]["refs/heads/main"], after)
    checks.equal("parent_commit: the one before", commits["commits"][-1]["parents"], [before])
    send(after, b"two")()

    # The upload of this file seems to succeed, but the storage host stores nothing.
    server.ask("fault", method="PUT", path="/uploads/", then={"status": 200})
    server.ask("fault", method="POST", path="/objects/verify", then={"status": 200, "body": "{}"})
    lost = CommitOperationAdd("lost.safetensors", content(500, "lost"))
    head = api().model_info("zhen/made").sha
    checks.raises("a large file that never came", BadRequestError, lambda: api().create_commit("zhen/made", [lost, CommitOperationAdd("beside.txt", b"x")], commit_message="lost"))
    checks.equal("a large file that never came: nothing was changed", api().model_info("zhen/made").sha, head)


def faults(server, checks, scratch):
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    server.ask("clear")
    server.ask("fault", method="PUT", path="/uploads/", then={"cut_upload": 1 << 20})
    server.ask("fault", method="PUT", path="/uploads/", after=1, then={"status": 503})
    data = content(2 * PART + 1, "cut")
    api().upload_file(path_or_fileobj=data, path_in_repo="cut.safetensors", repo_id="zhen/made")
    sent = [(r["status"], r["received"]) for r in server.requests("PUT", "/uploads/")]
    checks.check("a part that is cut and one that is refused are sent again", len(sent) == 5 and sent[0][0] is None and 503 in [s for s, _ in sent], sent)
    file = hf_hub_download("zhen/made", "cut.safetensors")
    checks.equal("what came in the end is whole", Path(file).read_bytes(), data)
    server.ask("fault", method="GET", path="/objects/", times=1, then={"status": 429, "headers": {"Retry-After": "1"}})
    file = hf_hub_download("zhen/made", "cut.safetensors", cache_dir=scratch / "busy")
    checks.equal("429 and Retry-After: asked again", (Path(file).read_bytes() == data, len(server.requests("GET", "/objects/"))), (True, 3))
    server.ask("fault", method="GET", path="/objects/", times=9, then={"shorten": 1000})
    checks.raises("a body that is too short", OSError, lambda: hf_hub_download("zhen/made", "cut.safetensors", cache_dir=scratch / "short"))
    server.ask("clear_faults")
    server.ask("fault", method="POST", path="/commit/", then={"status": 500})
    head = api().model_info("zhen/made").sha
    checks.raises("500 to a commit", HfHubHTTPError, lambda: api().upload_file(path_or_fileobj=b"y", path_in_repo="y.txt", repo_id="zhen/made"))
    checks.equal("500 to a commit: nothing was changed", api().model_info("zhen/made").sha, head)


if __name__ == "__main__":
    main()
