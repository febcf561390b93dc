"""Sends random traffic to `danlu serve`, and compares each reply with the known greedy reply of its adapter.

    python reference/serve_soak.py --danlu target/release/danlu --requests 100000

Starts the server on the embedded base. Each adapter has two versions with known replies. Clients chat, stream and
disconnect at random, while adapters are loaded, unloaded and replaced, and while the memory for adapters is too small.
A reply is wrong if it is not the reply of the version that it states, or if that version was not loaded meanwhile.
Nothing leaves this machine. The exit status is 1 if a reply is wrong, an adapter stays in use, or the memory grows.
"""

import argparse
import asyncio
import json
import random
import re
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from serve_clients import BASE, write_adapter

QUESTIONS = ["你是谁？", "今晚月色真美。", "讲个故事。"]
TOKENS = 6
ABSENT = "absent"

# Longest time for one request, in seconds.
MAX_SECONDS = 120

# Largest growth of the resident memory after the first tenth of the requests, in MB.
MAX_GROWTH_MB = 30


class Client:
    """One connection that stays open."""

    def __init__(self, port):
        self.port = port
        self.writer = None

    async def send(self, method, path, body=None):
        if self.writer is None:
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        data = b"" if body is None else json.dumps(body).encode()
        head = (f"{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer admin\r\n"
                f"content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n")
        self.writer.write(head.encode() + data)
        await self.writer.drain()
        status = int((await self.reader.readline()).split()[1])
        headers = {}
        while (line := await self.reader.readline()) not in (b"\r\n", b""):
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        return status, headers

    async def request(self, method, path, body=None):
        """Returns status and text of a whole answer."""
        status, headers = await self.send(method, path, body)
        if "content-length" in headers:
            return status, (await self.reader.readexactly(int(headers["content-length"]))).decode()
        text = b""
        while size := int(await self.reader.readline(), 16):
            text += (await self.reader.readexactly(size + 2))[:-2]
        await self.reader.readline()
        return status, text.decode()

    def close(self):
        if self.writer is not None:
            self.writer.close()
            self.writer = None


class Name:
    """The name of an adapter, the versions that may be loaded under it now, and the requests in flight."""

    def __init__(self, state):
        self.possible = {state}
        self.requests = []
        self.lock = asyncio.Lock()

    def begin(self):
        allowed = set(self.possible)
        self.requests.append(allowed)
        return allowed

    def end(self, allowed):
        # Two requests may have equal sets, so the set is removed by identity and not by value.
        self.requests = [other for other in self.requests if other is not allowed]

    def may_become(self, state):
        self.possible.add(state)
        for allowed in self.requests:
            allowed.add(state)


class Soak:
    def __init__(self, arguments, folder, process, port):
        self.arguments, self.folder, self.process, self.port = arguments, folder, process, port
        self.random = random.Random(arguments.seed)
        self.names = {}
        self.replies = {}
        self.counts = dict.fromkeys(("chats", "cancels", "replacements", "unloads", "not found", "queue full", "no room", "wrong"), 0)
        self.sent = 0
        self.memory = []

    def resident_mb(self):
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", text)[1]) / 1024

    def chat(self, name, question, streams):
        return {"model": name, "messages": [{"role": "user", "content": question}], "temperature": 0,
                "max_tokens": TOKENS, "stream": streams}

    async def load(self, client, name, version, replaces):
        body = {"lora_name": name, "lora_path": f"{name}.{version}", "load_inplace": replaces}
        return await client.request("POST", "/v1/load_lora_adapter", body)

    async def learn(self, client):
        """Records the replies of every version while no other request runs."""
        for i in range(self.arguments.adapters):
            name = f"a{i}"
            for version in (1, 0):
                status, text = await self.load(client, name, version, True)
                assert status == 200, text
                for question in QUESTIONS:
                    status, text = await client.request("POST", "/v1/chat/completions", self.chat(name, question, False))
                    assert status == 200, text
                    answer = json.loads(text)
                    generation = answer["adapter_generation"]
                    self.replies[generation, question] = answer["choices"][0]["message"]["content"]
                self.replies[name, version] = generation
            self.names[name] = Name(generation)
        distinct = len({reply for key, reply in self.replies.items() if key[1] in QUESTIONS})
        print(f"{len(self.names)} adapters of 2 versions, {distinct} distinct replies", flush=True)

    def wrong(self, text):
        self.counts["wrong"] += 1
        print("WRONG:", text, flush=True)

    async def ask(self, client, name):
        question, streams = self.random.choice(QUESTIONS), self.random.random() < 0.5
        allowed = self.names[name].begin()
        try:
            status, text = await client.request("POST", "/v1/chat/completions", self.chat(name, question, streams))
        finally:
            self.names[name].end(allowed)
        if status == 429:
            self.counts["queue full"] += 1
            await asyncio.sleep(0.01)
        elif status == 404:
            self.counts["not found"] += 1
            if ABSENT not in allowed:
                self.wrong(f"{name} is not found, but was loaded: {text}")
        elif status != 200:
            self.wrong(f"{name}: status {status}: {text}")
        else:
            self.check(name, question, text, streams, allowed)

    def check(self, name, question, text, streams, allowed):
        self.counts["chats"] += 1
        if streams:
            events = [json.loads(event[6:]) for event in text.split("\n\n") if event.startswith("data: {")]
            reply = "".join(event["choices"][0]["delta"].get("content", "") for event in events)
            generations = {event["adapter_generation"] for event in events}
        else:
            answer = json.loads(text)
            reply, generations = answer["choices"][0]["message"]["content"], {answer["adapter_generation"]}
        [generation] = generations
        if generation not in allowed:
            self.wrong(f"{name} answered with {generation}, allowed: {allowed}")
        elif reply != self.replies[generation, question]:
            self.wrong(f"{name}: {reply!r}, expected {self.replies[generation, question]!r}")

    async def cancel(self, name):
        """Disconnects during a stream."""
        self.counts["cancels"] += 1
        client = Client(self.port)
        body = {**self.chat(name, "讲个故事。", True), "max_tokens": 200}
        status, _ = await client.send("POST", "/v1/chat/completions", body)
        if status == 200 and self.random.random() < 0.5:
            await client.reader.readline()
        client.close()

    async def change(self, client, name):
        """Replaces, unloads or loads an adapter."""
        state = self.names[name]
        if state.lock.locked():
            return
        async with state.lock:
            [before] = state.possible
            if before != ABSENT and self.random.random() < 0.3:
                state.may_become(ABSENT)
                status, text = await client.request("POST", "/v1/unload_lora_adapter", {"lora_name": name})
                after = ABSENT
                self.counts["unloads"] += 1
            else:
                version = self.random.randrange(2)
                after = self.replies[name, version]
                state.may_become(after)
                status, text = await self.load(client, name, version, True)
                self.counts["replacements"] += 1
            if status == 429:
                # The memory is full of adapters in use, so the server changed nothing, and the name keeps its adapter.
                self.counts["no room"] += 1
                after = before
            elif status != 200:
                self.wrong(f"change of {name}: status {status}: {text}")
                after = before
            state.possible = {after}

    async def worker(self):
        client = Client(self.port)
        while self.sent < self.arguments.requests:
            self.sent += 1
            if self.sent % (self.arguments.requests // 20) == 0:
                self.memory.append(self.resident_mb())
                print(f"{self.sent} requests, {self.memory[-1]:.0f} MB, {self.counts}", flush=True)
            # A few adapters get most of the requests, so that the server can reuse the keys and values of earlier prompts.
            index = min(int(self.random.paretovariate(0.4)) - 1, self.arguments.adapters - 1)
            name, draw = f"a{index}", self.random.random()
            action = self.ask(client, name) if draw < 0.9 else self.cancel(name) if draw < 0.95 else self.change(client, name)
            try:
                await asyncio.wait_for(action, MAX_SECONDS)
            except TimeoutError:
                self.wrong(f"no answer in {MAX_SECONDS} seconds: {action.__name__} of {name}")
                client.close()
        client.close()

    async def run(self):
        await self.learn(Client(self.port))
        started = time.monotonic()
        await asyncio.gather(*(self.worker() for _ in range(self.arguments.clients)))
        seconds = time.monotonic() - started
        await asyncio.sleep(2)
        adapters = json.loads((await Client(self.port).request("GET", "/v1/lora_adapters"))[1])
        leases = sum(generation["active_leases"] for generation in adapters["generations"])
        retired = sum(generation["retired"] for generation in adapters["generations"])
        growth = max(self.memory[2:]) - self.memory[1]
        print(f"{self.sent} requests in {seconds:.0f} s: {self.counts}")
        print(f"leases left: {leases}, retired generations left: {retired}")
        print(f"resident memory in MB: {[round(mb) for mb in self.memory]}, growth {growth:.0f}")
        return self.counts["wrong"] or leases or retired or growth > MAX_GROWTH_MB


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--danlu", required=True, type=Path)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--adapters", type=int, default=50)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--dtype", default="f32")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for i in range(arguments.adapters):
            for version in range(2):
                write_adapter(Path(folder) / f"a{i}.{version}", 2 * i + version, rank=2)
        command = [arguments.danlu, "serve", BASE, "--port", "0", "--adapter-root", folder, "--admin-key", "admin",
                   "--device", "cpu", "--adapter-memory", "16MB", "--max-num-seqs", "8", "--max-num-queued-reqs", "16",
                   "--dtype", arguments.dtype]
        process = subprocess.Popen([str(part) for part in command], stderr=subprocess.PIPE, text=True)
        for line in process.stderr:
            if found := re.search(r"curl http://\S+?:(\d+)/v1", line):
                break
        else:
            raise SystemExit("the server did not start")
        try:
            failed = asyncio.run(Soak(arguments, folder, process, int(found[1])).run())
        finally:
            process.send_signal(signal.SIGTERM)
            print("exit status of the server:", process.wait(60))
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
