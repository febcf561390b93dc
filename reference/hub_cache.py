"""Checks that danlu and `huggingface_hub` share one cache, one token and one lock. Measures the speed of large files.

    python reference/hub_cache.py --danlu target/release/danlu --server target/release/hub-test-server --base BASE [--gigabytes 2]

Both use the test server on this machine, which `hub.py` checks with `huggingface_hub`.
BASE is a small model's folder.
The exit status is 1 if a check fails.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from hub import Checks, Server

TOKEN = "hf_zhen"


class Home:
    """A separate home for caches and token, used by both programs."""

    def __init__(self, scratch, name, server, danlu):
        self.danlu_binary, self.folder = danlu, Path(scratch, name)
        self.folder.mkdir()
        self.variables = dict(os.environ, HF_ENDPOINT=server.endpoint, HF_HOME=str(self.folder), HF_HUB_DISABLE_XET="1",
                              HF_HUB_DISABLE_PROGRESS_BARS="1", HF_HUB_DISABLE_TELEMETRY="1", LANG="C")
        for name in ("HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH"):
            self.variables.pop(name, None)

    def danlu(self, *words, stdin="", **variables):
        ran = subprocess.run([self.danlu_binary, *words], env=self.variables | variables, input=stdin, capture_output=True, text=True)
        if ran.returncode:
            raise RuntimeError(f"danlu {' '.join(words)}: {ran.stderr}")
        return ran.stdout.strip()

    def python(self, code, **variables):
        ran = subprocess.run([sys.executable, "-c", code], env=self.variables | variables, capture_output=True, text=True)
        if ran.returncode:
            raise RuntimeError(f"{code}: {ran.stderr[-2000:]}")
        return ran.stdout.strip()

    def measured(self, *command):
        """Returns the seconds and the peak memory in MB of a process."""
        start, peak = time.monotonic(), 0
        process = subprocess.Popen(command, env=self.variables, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        # The peak that the system reports for a finished child includes this program's memory at the fork. The child's
        # own peak is therefore read while it runs.
        while process.poll() is None:
            try:
                status = Path(f"/proc/{process.pid}/status").read_text()
                peak = max(peak, *(int(line.split()[1]) * 1024 / 1e6 for line in status.splitlines() if line.startswith("VmHWM")), 0)
            except OSError:
                pass
            time.sleep(0.002)
        if process.returncode:
            raise RuntimeError(process.stderr.read().decode())
        return time.monotonic() - start, peak


def bodies(server):
    """Returns the requests for file content since the last call."""
    return [r for r in server.requests("GET") if "/resolve/" in r["target"] or r["host"] == "storage"]


def shared_cache(server, checks, home):
    """Checks that each program uses the downloads of the other."""
    snapshot = "from huggingface_hub import snapshot_download as s; print(s('zhen/base'%s))"
    mine, theirs = home("mine"), home("theirs")
    python = theirs.python(snapshot % "")
    server.requests()
    reply = theirs.danlu("chat", "zhen/base", "--prompt", "你好", "--max-new-tokens", "8", "--temperature", "0")
    checks.equal("danlu uses what Python fetched, without a request", server.requests(), [])
    checks.equal("danlu pull is at the same commit and folder", theirs.danlu("pull", "zhen/base"), python)
    checks.equal("and asks for no file", bodies(server), [])

    danlu = mine.danlu("pull", "zhen/base")
    server.requests()
    checks.equal("danlu's layout is Python's", danlu.removeprefix(str(mine.folder)), python.removeprefix(str(theirs.folder)))
    offline = {"HF_HUB_OFFLINE": "1"}
    checks.equal("Python finds it offline", mine.python(snapshot % "", **offline), danlu)
    one = "from huggingface_hub import hf_hub_download as h; print(h('zhen/base', 'model.safetensors'))"
    checks.equal("Python asks for no file that danlu fetched", (mine.python(one), bodies(server)), (f"{danlu}/model.safetensors", []))
    load = ("from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; m = M.from_pretrained('zhen/base'); "
            "print(len(T.from_pretrained('zhen/base')), m.num_parameters())")
    checks.check("transformers loads it offline", mine.python(load, **offline))
    few = home("few")
    few.python(snapshot % ", allow_patterns=['*.safetensors', 'config.json', 'tokenizer.json']")
    words = ("chat", "zhen/base", "--prompt", "你好", "--max-new-tokens", "8", "--temperature", "0")
    checks.equal("danlu fetches what it needs of a model that Python fetched in part", few.danlu(*words), reply)
    server.requests()
    checks.equal("and asks no more the next time", (few.danlu(*words), server.requests()), (reply, []))
    checks.equal("danlu says the same on both", mine.danlu(
        "chat", "zhen/base", "--prompt", "你好", "--max-new-tokens", "8", "--temperature", "0", HF_HUB_OFFLINE="1"), reply)


def shared_token(server, checks, home):
    """Checks that a login in one program is valid in the other."""
    here = home("token")
    here.danlu("login", stdin=TOKEN)
    who = "from huggingface_hub import whoami; print(whoami()['name'])"
    checks.equal("Python is who danlu logged in", here.python(who), "zhen")
    here.danlu("logout")
    checks.equal("Python has no token after danlu's logout", here.python("from huggingface_hub import get_token; print(get_token())"), "None")
    here.python(f"from huggingface_hub import login; login('{TOKEN}')")
    checks.check("danlu is who Python logged in", here.danlu("whoami").startswith("zhen"))


def shared_lock(checks, home, base):
    """Checks that each program waits while the other downloads the same file."""
    here = home("lock")
    digest = hashlib.sha256(Path(base, "model.safetensors").read_bytes()).hexdigest()
    lock = here.folder / "hub/.locks/models--zhen--base" / f"{digest}.lock"
    lock.parent.mkdir(parents=True)
    from filelock import FileLock

    with FileLock(lock):
        process = subprocess.Popen([here.danlu_binary, "pull", "zhen/base"], env=here.variables, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL)
        time.sleep(1.5)
        blobs = {path.name for path in (here.folder / "hub/models--zhen--base/blobs").iterdir()}
        checks.check("danlu waits for Python's lock", process.poll() is None and digest not in blobs, blobs)
    checks.equal("and goes on when it is free", process.wait(timeout=30), 0)


def published(server, checks, home, scratch, base):
    """Checks that Python's libraries load what danlu pushed, by name."""
    here = home("push")
    here.danlu("login", stdin=TOKEN)
    data = Path(scratch, "data.json")
    data.write_text('[{"instruction": "你是谁？", "input": "", "output": "本宫住在长春宫。"}]')
    adapter, merged = Path(scratch, "adapter"), Path(scratch, "merged")
    here.danlu("train", "--base", "zhen/base", "--data", str(data), "--output", str(adapter), "--max-steps", "2")
    here.danlu("merge", str(adapter), "--output", str(merged))
    here.danlu("push", str(adapter), "zhen/adapter")
    here.danlu("push", str(merged), "zhen/merged")
    there = home("wake")
    ask = ("from transformers import AutoTokenizer as T, AutoModelForCausalLM as M; %s\nt = T.from_pretrained('%s'); "
           "x = t.apply_chat_template([dict(role='user', content='你好')], add_generation_prompt=True, return_dict=True, return_tensors='pt'); "
           "y = m.generate(**x, max_new_tokens=12, do_sample=False); print(t.decode(y[0, x['input_ids'].shape[1]:], skip_special_tokens=True))")
    words = ["--prompt", "你好", "--max-new-tokens", "12", "--temperature", "0", "--dtype", "f32"]
    whole = there.python(ask % ("m = M.from_pretrained('zhen/merged', dtype='float32')", "zhen/merged"))
    checks.equal("transformers and danlu answer alike from a pushed model", there.danlu("chat", "zhen/merged", *words), whole)
    peft = "from peft import PeftModel as P; m = P.from_pretrained(M.from_pretrained('zhen/base', dtype='float32'), 'zhen/adapter')"
    checks.equal("PEFT and danlu answer alike from a pushed adapter", there.danlu("chat", "zhen/adapter", *words), there.python(ask % (peft, "zhen/adapter")))
    late, parts = home("late"), ("adapter_config.json", "adapter_model.safetensors")
    late.python(f"from huggingface_hub import hf_hub_download as h; [h('zhen/adapter', file) for file in {parts}]")
    late.danlu("chat", "zhen/adapter", *words)
    folder = Path(late.danlu("pull", "zhen/adapter", HF_HUB_OFFLINE="1"))
    checks.check("danlu fetches what it needs of an adapter that Python fetched in part", (folder / "danlu.json").is_file())
    absent = ("from huggingface_hub.file_download import _CACHED_NO_EXIST as a, try_to_load_from_cache as t; "
              "print(t('zhen/adapter', 'vocab.json') is a, t('zhen/adapter', 'danlu.json') is a)")
    checks.equal("Python reads what danlu noted as absent", late.python(absent), "True False")
    full = home("full")
    full.python("from huggingface_hub import snapshot_download as s; s('zhen/base'); s('zhen/adapter'); s('zhen/merged')")
    server.requests()
    for name in ("zhen/adapter", "zhen/merged"):
        full.danlu("chat", name, *words)
    checks.equal("danlu asks nothing of what Python fetched whole", server.requests(), [])
    card = "from huggingface_hub import ModelCard; d = ModelCard.load('zhen/adapter').data; print(d.base_model, d.library_name, d.pipeline_tag)"
    checks.equal("the card's front matter is the Hub's", there.python(card), "zhen/base peft text-generation")


def speed(server, home, scratch, base, gigabytes):
    """Transfers a large file with each program in turn."""
    big = Path(scratch, "big.safetensors")
    with open(big, "wb") as file:
        for _ in range(int(gigabytes * 8)):
            file.write(os.urandom(1 << 27))
    size = big.stat().st_size
    server.ask("model", id="zhen/big", files={"config.json": "{}", "tokenizer.json": "{}"}, paths={"model.safetensors": str(big)})
    figures = {"danlu": [], "huggingface_hub": []}
    for round in range(3):
        for name in figures:
            here = home(f"big-{name}-{round}")
            code = "from huggingface_hub import snapshot_download; snapshot_download('zhen/big')"
            command = [here.danlu_binary, "pull", "zhen/big"] if name == "danlu" else [sys.executable, "-c", code]
            figures[name].append(here.measured(*command))
            subprocess.run(["rm", "-rf", here.folder / "hub"], check=True)
    tell("download", size, figures)
    folder, figures = Path(scratch, "folder"), {"danlu": [], "huggingface_hub": []}
    # A push refuses a folder that cannot be loaded, so the large file is in the folder of a complete model.
    shutil.copytree(base, folder)
    big.rename(folder / "model.gguf")
    for round in range(3):
        for name in figures:
            here, repository = home(f"up-{name}-{round}"), f"zhen/up-{name.replace('_', '-')}-{round}"
            # Each upload gets different content, because the server stores equal content only once.
            with open(folder / "model.gguf", "r+b") as file:
                file.write(os.urandom(64))
            here.variables["HF_TOKEN"] = TOKEN
            code = f"import huggingface_hub as h; h.create_repo('{repository}'); h.upload_folder(repo_id='{repository}', folder_path='{folder}')"
            command = [here.danlu_binary, "push", folder, repository] if name == "danlu" else [sys.executable, "-c", code]
            figures[name].append(here.measured(*command))
    tell("upload", size, figures)


def tell(work, size, figures):
    """Prints the speed of each round, and the ratio of the medians."""
    for name, rounds in figures.items():
        rates = ", ".join(f"{size / seconds / 1e9:.2f}" for seconds, _ in rounds)
        print(f"     {work}, {name}: {rates} GB/s, peak {max(peak for _, peak in rounds):.0f} MB")
    danlu, peer = (sorted(seconds for seconds, _ in rounds)[1] for rounds in figures.values())
    print(f"     {work}, danlu over huggingface_hub: {peer / danlu:.2f}")


def warm_start(server, checks, home, base):
    """Compares the time of `danlu chat` with a cached model by its Hub name and by its folder."""
    here = home("warm")
    here.danlu("pull", "zhen/base")
    words = ["--prompt", "你好", "--max-new-tokens", "1"]
    times = {"zhen/base": [], str(base): []}
    for _ in range(20):
        for model in times:
            times[model].append(here.measured(here.danlu_binary, "chat", model, *words)[0])
    name, folder = (sorted(seconds)[10] * 1e3 for seconds in times.values())
    print(f"     a warm start: {name:.1f} ms by name, {folder:.1f} ms by folder")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    for name in ("danlu", "server", "base"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--gigabytes", type=float, default=0, help="of a large file to be moved; 0 leaves it out")
    arguments = parser.parse_args()
    checks, danlu, base = Checks(), arguments.danlu.resolve(), arguments.base.resolve()
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["TMPDIR"] = scratch
        server = Server(arguments.server.resolve())
        home = lambda name: Home(scratch, name, server, danlu)
        try:
            # The Hub adds `.gitattributes` to every repository.
            server.ask("model", id="zhen/base", files={".gitattributes": ""}, paths={path.name: str(path) for path in base.iterdir()})
            shared_cache(server, checks, home)
            shared_token(server, checks, home)
            shared_lock(checks, home, base)
            published(server, checks, home, scratch, base)
            warm_start(server, checks, home, base)
            if arguments.gigabytes:
                speed(server, home, scratch, base, arguments.gigabytes)
        finally:
            server.stop()
    print(f"{checks.held} of {checks.held + checks.failed} checks hold")
    sys.exit(1 if checks.failed else 0)


if __name__ == "__main__":
    main()
