"""Measures `danlu serve` with clients of its own, and prints one JSON object per result.

    danlu bench decode --shape llama-125m --keep BASE      # then copy a tokenizer of 128,256 tokens into BASE
    python reference/serve_bench.py --danlu target/release/danlu --base BASE --jobs adapters overhead registered

| job | result |
|---|---|
| `adapters` | rate of 8 clients on 8 adapters, divided by the rate on the base alone, for each rank |
| `overhead` | rate of 8 clients on the base, divided by the rate of `danlu bench decode` without a server |
| `registered` | rate on the base of a server with 1,000 adapters, divided by the rate of a server without adapters |
| `cold` | time to the first token of a new, an evicted and a resident adapter |
| `budget` | random traffic over 1,000 adapters in 64 MB: errors, wrong replies, memory |
| `fair` | time to the first token of one client, alone and beside 50 clients of another adapter |
| `full` | time to status 429 if the queue is full |
| `structured` | rate of replies with a JSON schema, divided by the rate of free text |

Both sides of a ratio alternate, and the ratio is the median over the rounds. Adapters have random weights.
Nothing leaves this machine, and all files are temporary. The exit status is 1 if a reply is wrong.
"""

import argparse
import asyncio
import json
import random
import re
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from serve_soak import Client

# Number of random values that fill an adapter, again and again.
BLOCK = 4096

SCHEMA = {
    "type": "object",
    "properties": {"title": {"type": "string"}, "tags": {"type": "array", "items": {"type": "string"}}},
    "required": ["title", "tags"],
    "additionalProperties": False,
}


def bf16(values):
    """Returns the bytes of `values` in bf16, rounded towards zero."""
    return b"".join(struct.pack("<f", value)[2:] for value in values)


def write_adapter(folder, base, seed, rank, scale=0.01):
    """Writes an adapter in PEFT's format for all seven projections of `base`, with random weights in bf16."""
    config = json.loads((base / "config.json").read_text())
    hidden, inner, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    query, key = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    shapes = {
        "self_attn.q_proj": (query, hidden), "self_attn.k_proj": (key, hidden), "self_attn.v_proj": (key, hidden),
        "self_attn.o_proj": (hidden, query), "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    draw = random.Random(seed)
    block = bf16(draw.uniform(-scale, scale) for _ in range(BLOCK))
    header, end = {}, 0
    for layer in range(config["num_hidden_layers"]):
        for name, (rows, columns) in shapes.items():
            for part, shape in (("lora_A", [rank, columns]), ("lora_B", [rows, rank])):
                start, end = end, end + 2 * shape[0] * shape[1]
                tensor = f"base_model.model.model.layers.{layer}.{name}.{part}.weight"
                header[tensor] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    folder.mkdir(parents=True)
    data = (block * (end // len(block) + 1))[:end]
    (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    (folder / "adapter_config.json").write_text(json.dumps({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 4 * rank,
        "target_modules": sorted(name.split(".")[-1] for name in shapes), "base_model_name_or_path": base.name,
    }))


class Server:
    """A running `danlu serve`."""

    def __init__(self, arguments, *flags):
        self.base = arguments.base.name
        command = [arguments.danlu, "serve", arguments.base, "--port", "0", "--device", "cpu", "--lang", "en",
                   "--allow-adapter-updates", "--threads", arguments.threads, "--dtype", arguments.dtype, *flags]
        command += ["--quant", arguments.quant] if arguments.quant else []
        command = [str(part) for part in command]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        lines = []
        for line in self.process.stderr:
            lines.append(line)
            if found := re.search(r"curl http://\S+?:(\d+)/v1", line):
                self.port = int(found[1])
                return
        raise SystemExit("".join(lines))

    def client(self):
        return Client(self.port)

    def resident_mb(self):
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return sum(int(re.search(rf"{name}:\s+(\d+)", text)[1]) for name in ("RssAnon", "RssShmem")) / 1024

    async def load(self, name, folder):
        body = {"lora_name": name, "lora_path": str(folder)}
        status, text = await self.client().request("POST", "/v1/load_lora_adapter", body)
        assert status == 200, text

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        self.process.stderr.close()
        self.process.wait(60)


class Reply:
    """The times of one streamed reply, in seconds."""

    def __init__(self, text, first, seconds, tokens):
        self.text, self.first, self.seconds, self.tokens = text, first, seconds, tokens


async def stream(server, model, prompt, tokens, **fields):
    """Sends one request and reads its stream. With `messages` in `fields`, the request is a chat."""
    client, started = server.client(), time.perf_counter()
    path = "/v1/chat/completions" if "messages" in fields else "/v1/completions"
    body = {"model": model, "max_tokens": tokens, "stream": True, "stream_options": {"include_usage": True},
            "temperature": 0.7, "top_p": 0.9, "seed": 1, "ignore_eos": True}
    body |= {} if "messages" in fields else {"prompt": prompt}
    status, headers = await client.send("POST", path, body | fields)
    first, text, used = None, "", 0
    while size := int(await client.reader.readline(), 16):
        data = (await client.reader.readexactly(size + 2)).decode()
        assert status == 200, (status, data)
        for event in data.split("\n\n"):
            if not event.startswith("data: {"):
                continue
            event = json.loads(event[6:])
            for choice in event["choices"]:
                piece = choice.get("text") or choice.get("delta", {}).get("content") or ""
                first = first or (time.perf_counter() - started if piece else None)
                text += piece
            used = (event.get("usage") or {}).get("completion_tokens", used)
    client.close()
    seconds = time.perf_counter() - started
    return Reply(text, first or seconds, seconds, used)


async def round_of(server, models, number, tokens, **fields):
    """One request per model at the same time. Returns tokens per second of the whole round, and the replies."""
    started = time.perf_counter()
    requests = (stream(server, model, f"{number}.{i} 今晚月色真美", tokens, **fields) for i, model in enumerate(models))
    replies = await asyncio.gather(*requests)
    return sum(reply.tokens for reply in replies) / (time.perf_counter() - started), replies


def milliseconds(values):
    ordered = sorted(value * 1000 for value in values)
    return {"p50": round(statistics.median(ordered), 1), "p99": round(ordered[int(0.99 * (len(ordered) - 1) + 0.5)], 1)}


def spread(values):
    return {"median": round(statistics.median(values), 4), "least": round(min(values), 4), "most": round(max(values), 4)}


def report(job, **values):
    print(json.dumps({"job": job, **values}, ensure_ascii=False), flush=True)


async def alternate(sides, arguments):
    """Runs rounds of both sides in turns, each after one unmeasured round. Returns the rates of each side."""
    rates = ([], [])
    for number in range(arguments.rounds + 1):
        order = (0, 1) if number % 2 else (1, 0)
        for side in order:
            rate, _ = await sides[side](number)
            if number:
                rates[side].append(rate)
    return rates


def report_ratio(job, rates, **values):
    base, other = rates
    ratio = spread([b / a for a, b in zip(base, other)])
    report(job, ratio=ratio, base_rate=spread(base), rate=spread(other), **values)


async def measure_adapters(arguments, folder):
    """8 clients on 8 adapters against the base alone, for each list of ranks."""
    for ranks in arguments.ranks:
        names = []
        with Server(arguments, "--max-num-seqs", arguments.clients, "--adapter-root", folder) as server:
            for i in range(arguments.clients):
                rank = ranks[i % len(ranks)]
                path = folder / f"adapters.{'-'.join(map(str, ranks))}.{i}"
                write_adapter(path, arguments.base, i, rank)
                names.append(f"a{i}")
                await server.load(names[-1], path)

            def side(models):
                return lambda number: round_of(server, models, number, arguments.tokens)

            rates = await alternate((side([server.base] * arguments.clients), side(names)), arguments)
            report_ratio("adapters", rates, ranks=ranks, clients=arguments.clients)


async def measure_overhead(arguments, _):
    """The server's rate against the engine's own, which `bench decode` measures in turns with it."""
    command = [arguments.danlu, "bench", "decode", "--base", arguments.base, "--device", "cpu", "--json",
               "--threads", arguments.threads, "--dtype", arguments.dtype, "--sequences", arguments.clients,
               "--new-tokens", arguments.tokens, "--prompt-tokens", 16, "--steps", 3]
    command += ["--quant", arguments.quant] if arguments.quant else []

    def engine():
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True)
        return json.loads(done.stdout[done.stdout.index("{"):])["tokens_per_second"]

    engine_rates, found = [], {"greedy": [], "sampled": []}
    settings = {"greedy": {"temperature": 0, "top_p": 1}, "sampled": {}}
    for number in range(3):
        engine_rates.append(engine())
        with Server(arguments, "--max-num-seqs", arguments.clients) as server:
            for i in range(-1, max(1, arguments.rounds // 3)):
                for name, fields in settings.items():
                    models = [server.base] * arguments.clients
                    _, replies = await round_of(server, models, 10 * number + i, arguments.tokens, **fields)
                    # Without the prompt: all sequences decode between the last first token and the first end.
                    rate = sum((r.tokens - 1) / (r.seconds - r.first) for r in replies)
                    if i >= 0:
                        found[name].append(rate)
    engine_rate = statistics.median(engine_rates)
    for name, rates in found.items():
        report("overhead", sampling=name, engine=spread(engine_rates), rate=spread(rates),
               share=round(statistics.median(rates) / engine_rate, 3))


async def measure_registered(arguments, folder):
    """The base alone, on a server without adapters and on a server with many."""
    (folder / "registered").mkdir()
    for i in range(arguments.adapters):
        write_adapter(folder / "registered" / f"a{i}", arguments.base, i, 1)
    flags = ("--max-num-seqs", arguments.clients, "--adapter-root", folder, "--adapter-memory", "2GB")
    with Server(arguments, *flags) as plain, Server(arguments, *flags) as full:
        for i in range(arguments.adapters):
            await full.load(f"a{i}", folder / "registered" / f"a{i}")

        def side(server):
            return lambda number: round_of(server, [server.base] * arguments.clients, number, arguments.tokens)

        rates = await alternate((side(plain), side(full)), arguments)
        report_ratio("registered", rates, adapters=arguments.adapters)


async def measure_cold(arguments, folder):
    """First tokens of adapters that are new, evicted, and resident. The base's first token is beside them."""
    rank, count = 8, 4
    for i in range(count):
        write_adapter(folder / f"cold.{i}", arguments.base, i, rank)
    size = (folder / "cold.0" / "adapter_model.safetensors").stat().st_size
    with Server(arguments, "--adapter-root", folder, "--adapter-memory", str(5 * size)) as server:
        await stream(server, server.base, "今", 2)
        times = {name: [] for name in ("base", "load call", "new: load call and first token", "resident", "evicted")}
        for i in range(count):
            started = time.perf_counter()
            await server.load(f"c{i}", folder / f"cold.{i}")
            times["load call"].append(time.perf_counter() - started)
            await stream(server, f"c{i}", "今", 1)
            times["new: load call and first token"].append(time.perf_counter() - started)
        for number in range(arguments.rounds):
            for name in ("base", "evicted", "resident"):
                # In the order of the circle, the least recently used adapter is the next one.
                model = server.base if name == "base" else f"c{number % count}"
                before = await evictions(server)
                times[name].append((await stream(server, model, "今", 1)).seconds)
                if name == "evicted":
                    assert await evictions(server) > before, "the adapter was in memory"
        report("cold", rank=rank, adapter_mb=round(size / 1e6, 1),
               milliseconds={name: milliseconds(values) for name, values in times.items()})


async def evictions(server):
    _, text = await server.client().request("GET", "/metrics")
    return int(re.search(r"danlu_adapter_evictions_total (\d+)", text)[1])


async def measure_budget(arguments, folder):
    """Random traffic over many adapters in a small budget. Each adapter's greedy reply is known."""
    budget, rank = 64_000_000, arguments.ranks[0][0]
    for i in range(arguments.adapters):
        write_adapter(folder / f"budget.{i}", arguments.base, i, rank, scale=0.1)
    greedy = {"temperature": 0, "top_p": 1}
    with Server(arguments, "--adapter-root", folder, "--adapter-memory", str(budget), "--max-num-seqs", "8") as server:
        await stream(server, server.base, "今", 8, **greedy)
        before, replies = server.resident_mb(), {}
        for i in range(arguments.adapters):
            await server.load(f"b{i}", folder / f"budget.{i}")
            replies[i] = (await stream(server, f"b{i}", "今晚", 8, **greedy)).text
        peak, wrong, sent, draw = server.resident_mb(), 0, 0, random.Random(1)

        async def worker():
            nonlocal peak, wrong, sent
            while sent < arguments.requests:
                sent += 1
                i = draw.randrange(arguments.adapters)
                wrong += (await stream(server, f"b{i}", "今晚", 8, **greedy)).text != replies[i]
                peak = max(peak, server.resident_mb())

        await asyncio.gather(*(worker() for _ in range(arguments.clients)))
        _, text = await server.client().request("GET", "/v1/lora_adapters")
        listed = json.loads(text)
        report("budget", adapters=arguments.adapters, distinct_replies=len(set(replies.values())), requests=sent,
               wrong=wrong, evictions=await evictions(server), registered_bytes=listed["resident_bytes"],
               budget=budget, resident_mb={"before": round(before, 1), "most": round(peak, 1)},
               growth_over_budget=round((peak - before) * 2**20 / budget, 3),
               leases=sum(generation["active_leases"] for generation in listed["generations"]))
    return wrong


async def measure_fair(arguments, folder):
    """First tokens of one client of A, alone and beside 50 clients of B."""
    for seed, name in enumerate(("fair.a", "fair.b")):
        write_adapter(folder / name, arguments.base, seed, 8)
    flags = ("--max-num-seqs", arguments.clients, "--max-num-queued-reqs", "200", "--adapter-root", folder)
    with Server(arguments, *flags) as server:
        await server.load("a", folder / "fair.a")
        await server.load("b", folder / "fair.b")
        await stream(server, "a", "今", 2)
        alone = [(await stream(server, "a", f"{i} 今晚", 8)).first for i in range(arguments.rounds)]
        of_b, stop = [], False

        async def client(number):
            count = 0
            while not stop:
                count += 1
                of_b.append(await stream(server, "b", f"{number}.{count} 今晚", arguments.tokens))

        clients = [asyncio.create_task(client(i)) for i in range(50)]
        await asyncio.sleep(2)
        beside = [(await stream(server, "a", f"{i} 月色", 8)).first for i in range(arguments.rounds)]
        stop = True
        await asyncio.gather(*clients)
        steps = [(reply.seconds - reply.first) / (reply.tokens - 1) for reply in of_b]
        report("fair", alone=milliseconds(alone), beside_50=milliseconds(beside),
               step_of_b=milliseconds(steps), first_of_b=milliseconds([reply.first for reply in of_b]))


async def measure_full(arguments, _):
    """The time to status 429, and its header."""
    with Server(arguments, "--max-num-seqs", "1", "--max-num-queued-reqs", "1") as server:
        running = [asyncio.create_task(stream(server, server.base, f"{i}", 200)) for i in range(2)]
        await asyncio.sleep(0.3)
        times, client = [], server.client()
        for _ in range(20):
            started = time.perf_counter()
            status, headers = await client.send("POST", "/v1/completions", {"model": server.base, "prompt": "今"})
            times.append(time.perf_counter() - started)
            assert status == 429 and int(headers["retry-after"]) > 0, (status, headers)
            await client.reader.readexactly(int(headers["content-length"]))
        report("full", milliseconds=milliseconds(times), requests=len(times))
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def measure_structured(arguments, _):
    """Replies that follow a JSON schema against free text, both in chats."""
    schema = {"type": "json_schema", "json_schema": {"name": "note", "schema": SCHEMA, "strict": True}}
    messages = [{"role": "user", "content": "今晚月色真美"}]
    with Server(arguments, "--max-num-seqs", arguments.clients) as server:
        models = [server.base] * arguments.clients
        ended = []

        def rate_of(replies):
            return sum((reply.tokens - 1) / (reply.seconds - reply.first) for reply in replies if reply.tokens > 4)

        async def free(number):
            _, replies = await round_of(server, models, number, arguments.tokens, messages=messages, seed=number)
            return rate_of(replies), replies

        async def structured(number):
            fields = {"messages": messages, "response_format": schema, "seed": number, "ignore_eos": False}
            _, replies = await round_of(server, models, number, arguments.tokens, **fields)
            ended.extend(reply.text for reply in replies if reply.tokens < arguments.tokens)
            return rate_of(replies), replies

        rates = await alternate((free, structured), arguments)
        for text in ended:
            json.loads(text)
        report_ratio("structured", rates, complete_replies=len(ended))


JOBS = {
    "adapters": measure_adapters, "overhead": measure_overhead, "registered": measure_registered, "cold": measure_cold,
    "budget": measure_budget, "fair": measure_fair, "full": measure_full, "structured": measure_structured,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--danlu", required=True, type=Path)
    parser.add_argument("--base", required=True, type=Path)
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--quant")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64, help="new tokens of a reply")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--adapters", type=int, default=1000, help="adapters of the jobs `registered` and `budget`")
    parser.add_argument("--requests", type=int, default=5000, help="requests of the job `budget`")
    parser.add_argument("--ranks", nargs="+", default=[[8], [16], [32], [8, 16, 64]],
                        type=lambda text: [int(rank) for rank in text.split(",")], help="such as 8 16 8,16,64")
    arguments = parser.parse_args()
    failed = 0
    for job in arguments.jobs:
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            failed += asyncio.run(JOBS[job](arguments, Path(folder).resolve())) or 0
            print(f"{job}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
