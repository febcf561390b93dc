"""Runs random danlu commands with kills, full disks and a faulty Hub, and checks that every command can be repeated.

    python3 reference/soak.py --danlu target/debug/danlu --server target/debug/hub-test-server --seconds 3600 [--seed N]

Each round disturbs one command: train, merge, quantize, push, pull or chat. Then it repeats the command undisturbed.
The repetition must succeed, and its files or replies must equal those of a run without any disturbance.
A panic, an unknown exit code, a hang or a token in the output is a failure too.
Prints one line at the end. The exit status is 1 after a failure. Needs Linux and Python 3.9, nothing else.
"""

import argparse
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ASSETS = Path(__file__).resolve().parent.parent / "crates/cli/assets"
TOKEN = "hf_" + "soak" * 8
LONGEST = 600
# Exit codes of success, of a user error, of Ctrl-C, and of a signal of the script.
CODES = {0, 1, 130, 143, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT}
# Faults of the Hub. The command `{"do": "fault"}` makes the test server cause one of them.
FAULTS = [
    {"then": {"cut_before": True}},
    {"then": {"cut_after": 1000}},
    {"then": {"cut_answer": True}},
    {"then": {"corrupt": True}, "host": "storage", "method": "GET"},
    {"then": {"shorten": 500}, "host": "storage", "method": "GET"},
    {"then": {"status": 503}},
    {"then": {"status": 429, "headers": {"Retry-After": "1"}}},
    {"then": {"cut_upload": 2000}, "method": "PUT"},
    {"then": {"throttle": 200000}},
    {"then": {"delay": 0.5}},
]


class Server:
    """The test server, with its URL. Commands to the server are lines of JSON."""

    def __init__(self, binary):
        command = [binary, "--token", f"{TOKEN}=me", "--large-over", "100000", "--multipart", "200000,50000"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.endpoint = json.loads(self.process.stdout.readline())["endpoint"]

    def do(self, what, **fields):
        self.process.stdin.write(json.dumps({"do": what, **fields}) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        if "error" in answer:
            raise RuntimeError(f"{what}: {answer['error']}")
        return answer


class Failure(Exception):
    pass


class Soak:
    def __init__(self, args, folder):
        self.danlu, self.server, self.random, self.folder = args.danlu, Server(args.server), random.Random(args.seed), folder
        self.commands = self.kills = self.faults = self.full_disks = 0
        self.expected = {}
        records = json.loads((ASSETS / "palace.json").read_text())[:24]
        (folder / "data.json").write_text(json.dumps(records, ensure_ascii=False))
        shutil.copytree(ASSETS / "base-8m", folder / "base")
        self.variables = {
            "PATH": os.environ["PATH"], "HOME": str(folder), "LANG": "C.UTF-8",
            "HF_ENDPOINT": self.server.endpoint, "HF_TOKEN": TOKEN, "HF_HOME": str(folder / "hf"),
        }

    def run(self, words, kill_after=None, with_signal=signal.SIGKILL, most_bytes=None):
        """Runs a command. Returns its exit code and its output."""

        def limit():
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            if most_bytes is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))

        self.commands += 1
        process = subprocess.Popen(
            [self.danlu, *words], cwd=self.folder, env=self.variables, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=limit, text=True, errors="replace",
        )
        try:
            out, err = process.communicate(timeout=kill_after or LONGEST)
        except subprocess.TimeoutExpired:
            if kill_after is None:
                process.kill()
                process.communicate()
                raise Failure(f"{' '.join(words)}: no end after {LONGEST} s")
            self.kills += 1
            process.send_signal(with_signal)
            try:
                out, err = process.communicate(timeout=LONGEST)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                raise Failure(f"{' '.join(words)}: signal {with_signal} did not end it")
        code = process.returncode
        if code not in CODES or "panicked" in err or TOKEN in out + err:
            raise Failure(f"{' '.join(words)}: exit code {code}\n{err[-2000:]}")
        if code == 1 and "error:" not in err:
            raise Failure(f"{' '.join(words)}: exit code 1 without an error\n{err[-2000:]}")
        return code, out, err

    def succeed(self, words):
        code, out, err = self.run(words)
        if code:
            raise Failure(f"{' '.join(words)}: exit code {code}, expected 0\n{err[-2000:]}")
        return out

    def digest(self, *names):
        """Returns the SHA-256 of files."""
        return [hashlib.sha256((self.folder / name).read_bytes()).hexdigest() for name in names]

    def remove(self, name):
        shutil.rmtree(self.folder / name, ignore_errors=True)

    def disturb(self, words, uses_hub):
        """Runs a command with a kill, a full disk or faults of the Hub."""
        choices = ["kill", "kill", "disk"] + ["hub", "hub"] * uses_hub
        choice = self.random.choice(choices)
        if choice == "disk":
            self.full_disks += 1
            self.run(words, most_bytes=self.random.choice([0, 1000, 100_000, 1_000_000]))
            return
        if choice == "hub":
            self.faults += 1
            for _ in range(self.random.randint(1, 3)):
                fault = self.random.choice(FAULTS)
                self.server.do("fault", times=self.random.randint(1, 3), after=self.random.randint(0, 8), **fault)
        is_killed = choice == "kill" or self.random.random() < 0.3
        after = self.random.uniform(0.02, self.expected.get("time " + words[0], 5.0)) if is_killed else None
        signals = [signal.SIGKILL, signal.SIGKILL, signal.SIGINT, signal.SIGTERM]
        self.run(words, kill_after=after, with_signal=self.random.choice(signals))
        self.server.do("clear_faults")

    def round(self, name, words, result, uses_hub=False, clean=()):
        """Disturbs a command up to three times, repeats it undisturbed, and compares the result."""
        if name not in self.expected:
            for path in clean:
                self.remove(path)
            start = time.monotonic()
            self.succeed(words)
            self.expected["time " + words[0]] = max(time.monotonic() - start, 0.1)
            self.expected[name] = result()
        for path in clean:
            self.remove(path)
        for _ in range(self.random.randint(1, 3)):
            self.disturb(words, uses_hub)
        # If the disturbed command completed its result, it is not run again, because merge and quantize reject that folder.
        is_there = name in ("merge", "quantize") and (self.folder / name / "config.json").exists()
        if not is_there:
            self.succeed(words)
        found = result()
        if found != self.expected[name]:
            raise Failure(f"{' '.join(words)}: the result is {found}, expected {self.expected[name]}")
        left = [path for path in clean for path in (self.folder / path).glob(".danlu-tmp-*")]
        if left and not is_there:
            raise Failure(f"{' '.join(words)}: left {left}")

    def train(self):
        words = ["train", "--base", "base", "--data", "data.json", "--output", "adapter", "--resume-or-start", "--lora-r", "2",
                 "--max-steps", "4", "--save-steps", "1", "--max-length", "128"]
        self.round("train", words, lambda: self.digest("adapter/adapter_model.safetensors"), clean=["adapter"])

    def merge(self):
        self.round("merge", ["merge", "adapter", "--output", "merge"], lambda: self.digest("merge/model.safetensors"), clean=["merge"])

    def quantize(self):
        words = ["quantize", "base", "--output", "quantize"]
        self.round("quantize", words, lambda: self.digest("quantize/model.safetensors"), clean=["quantize"])

    def chat(self):
        words = ["chat", "adapter", "-p", "你是谁？", "--temperature", "0", "--max-new-tokens", "8"]
        replies = []

        def reply():
            replies.append(self.succeed(words))
            return replies[-1]

        self.round("chat", words, reply)

    def push(self):
        words = ["push", "adapter", "me/adapter", "--base-id", "lab/base", "--message", f"Round {self.commands}"]
        names = lambda: sorted(self.server.do("commits", id="me/adapter")["commits"][-1]["files"])
        # A file changes, so that the push has something to commit.
        (self.folder / "adapter/NOTES.md").write_text(f"{self.commands}\n")
        self.round("push", words, names, uses_hub=True)

    def pull(self):
        def files():
            folder = next((self.folder / "hf/hub/models--me--adapter/snapshots").iterdir())
            return hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()

        self.round("pull", ["pull", "me/adapter"], files, uses_hub=True, clean=["hf"])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--danlu", required=True, type=lambda path: str(Path(path).resolve()))
    parser.add_argument("--server", required=True, type=lambda path: str(Path(path).resolve()))
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    args = parser.parse_args()
    start, rounds, failure = time.monotonic(), {}, None
    with tempfile.TemporaryDirectory(prefix="danlu-soak-") as folder:
        soak = Soak(args, Path(folder))
        # These two rounds come first, because the other rounds need the adapter and its repository.
        todo = [soak.train, soak.push]
        try:
            while time.monotonic() - start < args.seconds:
                step = todo.pop(0) if todo else soak.random.choice(
                    [soak.train, soak.merge, soak.quantize, soak.chat, soak.push, soak.pull, soak.pull]
                )
                step()
                rounds[step.__name__] = rounds.get(step.__name__, 0) + 1
        except Failure as error:
            failure = error
        soak.server.process.stdin.close()
        soak.server.process.wait(10)
    if failure:
        print(f"FAIL {failure}", file=sys.stderr)
    counts = ", ".join(f"{name} {count}" for name, count in sorted(rounds.items()))
    print(
        f"{'FAILED' if failure else 'passed'} after {time.monotonic() - start:.0f} s, seed {args.seed}: {soak.commands} commands, "
        f"{soak.kills} kills, {soak.full_disks} full disks, {soak.faults} faults of the Hub; rounds: {counts}"
    )
    return 1 if failure else 0


if __name__ == "__main__":
    sys.exit(main())
