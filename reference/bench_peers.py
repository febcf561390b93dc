"""Runs danlu and PyTorch with PEFT alternately on one CPU. Prints a Markdown table, and the rounds as JSON.

    python reference/bench_peers.py --danlu BINARY --base DIR --tokenizer DIR --data DATA.json --jobs tutorial packed prefill decode
    python reference/bench_peers.py --gemm BENCH_BINARY --jobs products low-rank

BASE is a model folder that both programs load, such as `danlu bench decode --shape llama-125m --keep BASE` writes.
`cargo bench -p danlu-kernels --bench gemm --no-run` prints the path of BENCH_BINARY.
Every round is a process of its own, so that its peak memory can be measured.
"""

import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

TRAINING = ("tutorial", "packed")
PACKED = (2, 512)
PROMPT, PREFILL, NEW_TOKENS = 16, 512, 64


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# The jobs of PyTorch and PEFT. Each job runs in a process of its own.


def peer_tutorial(arguments, dtype):
    from transformers import AutoTokenizer

    from bench_tutorial import measure
    from examples import encode, read_alpaca

    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer or arguments.base)
    examples = [encode(tokenizer, record, 384) for record in read_alpaca(arguments.data)]
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    result = measure(arguments.base, examples, pad_id, dtype, arguments.steps, arguments.warm_up)
    return result["useful_tokens_per_second"], result["peak_rss_mib"]


def peer_packed(arguments, dtype):
    import torch

    from bench_tutorial import build

    model = build(arguments.base, dtype)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    ids = torch.randint(0, model.config.vocab_size, PACKED)
    seconds = []
    for step in range(arguments.warm_up + arguments.steps):
        start = time.perf_counter()
        model(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step >= arguments.warm_up:
            seconds.append(time.perf_counter() - start)
    return ids.numel() * len(seconds) / sum(seconds), peak_mib()


def causal_model(arguments, dtype):
    from transformers import AutoModelForCausalLM

    from bench_tutorial import loading

    return AutoModelForCausalLM.from_pretrained(arguments.base, **loading(dtype), attn_implementation="sdpa").eval()


def peer_prefill(arguments, dtype):
    import torch

    model = causal_model(arguments, dtype)
    ids = torch.randint(0, model.config.vocab_size, (1, PREFILL))
    seconds = []
    with torch.no_grad():
        for _ in range(arguments.warm_up + arguments.steps):
            start = time.perf_counter()
            # As in generation, the keys and values are cached, and only the last row of logits is computed.
            model(input_ids=ids, use_cache=True, logits_to_keep=1)
            seconds.append(time.perf_counter() - start)
    return PREFILL / statistics.median(seconds[arguments.warm_up :]), peak_mib()


def peer_decode(arguments, dtype):
    import torch

    model = causal_model(arguments, dtype)
    ids = torch.randint(0, model.config.vocab_size, (1, PROMPT))
    seconds = []
    with torch.no_grad():
        out = model(input_ids=ids, use_cache=True, logits_to_keep=1)
        for _ in range(NEW_TOKENS):
            start = time.perf_counter()
            token = out.logits[:, -1:].argmax(-1)
            out = model(input_ids=token, past_key_values=out.past_key_values, use_cache=True)
            seconds.append(time.perf_counter() - start)
    return 1 / statistics.median(seconds), peak_mib()


PEERS = {"tutorial": peer_tutorial, "packed": peer_packed, "prefill": peer_prefill, "decode": peer_decode}


def run_peer(arguments, dtype_name: str):
    import torch

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16, "nf4": "nf4"}[dtype_name]
    rate, peak = PEERS[arguments.peer](arguments, dtype)
    print(json.dumps({"tokens_per_second": rate, "peak_mib": peak}))


# Alternating rounds of both programs.


def last_json(command, environment=None) -> dict:
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **(environment or {})})
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stderr}")
    return json.loads(done.stdout[done.stdout.index("{") :])


def danlu_round(arguments, job: str, dtype: str) -> dict:
    bench = "train" if job in TRAINING else job
    command = [arguments.danlu, "bench", bench, "--base", arguments.base, "--json"]
    command += ["--dtype", "bf16", "--quant", "nf4"] if dtype == "nf4" else ["--dtype", dtype]
    command += ["--threads", str(arguments.threads)]
    if job in TRAINING:
        command += ["--steps", str(arguments.steps), "--warm-up", str(arguments.warm_up)]
    if job == "tutorial":
        command += ["--data", arguments.data, "--tokenizer", arguments.tokenizer or arguments.base]
    elif job == "packed":
        command += ["--batch", "{}x{}".format(*PACKED)]
    found = last_json(command, {"DANLU_ISA": arguments.isa} if arguments.isa else None)
    rate = found["useful_tokens_per_second"] if job in TRAINING else found["tokens_per_second"]
    result = {"tokens_per_second": rate, "peak_mib": found["peak_memory_bytes"] / 2**20}
    result |= {key: value for key, value in found.items() if "share" in key or key.startswith("peak_read")}
    return result


def peer_round(arguments, job: str, dtype: str) -> dict:
    command = [sys.executable, __file__, "--peer", job, "--dtypes", dtype, "--base", arguments.base]
    for name in ("tokenizer", "data"):
        if getattr(arguments, name):
            command += [f"--{name}", getattr(arguments, name)]
    for name in ("threads", "steps", "warm_up"):
        command += [f"--{name.replace('_', '-')}", str(getattr(arguments, name))]
    capability = {"avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}}
    return last_json(command, capability.get(arguments.isa))


def compare_jobs(arguments):
    rounds = []
    for job in arguments.jobs:
        for number in range(arguments.rounds):
            for dtype in arguments.dtypes:
                for name, run in (("danlu", danlu_round), ("PyTorch", peer_round)):
                    rounds.append({"job": job, "dtype": dtype, "who": name, **run(arguments, job, dtype)})
                    print(json.dumps({"round": number, **rounds[-1]}), file=sys.stderr, flush=True)

    def median(job, dtype, who, key):
        return statistics.median(r[key] for r in rounds if (r["job"], r["dtype"], r["who"]) == (job, dtype, who))

    print("| job | type | danlu tok/s | PyTorch tok/s | ratio | danlu MiB | PyTorch MiB |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for job in arguments.jobs:
        for dtype in arguments.dtypes:
            ours, theirs = (median(job, dtype, who, "tokens_per_second") for who in ("danlu", "PyTorch"))
            memory = [median(job, dtype, who, "peak_mib") for who in ("danlu", "PyTorch")]
            print(f"| {job} | {dtype} | {ours:.1f} | {theirs:.1f} | {ours / theirs:.2f} | {memory[0]:.0f} | {memory[1]:.0f} |")


# Single matrix products.


def best(run) -> float:
    """Returns the seconds of the fastest run, measured as in the Rust benchmark."""
    run()
    start, fastest, runs = time.perf_counter(), float("inf"), 0
    while runs < 5 or time.perf_counter() - start < 0.15:
        begin = time.perf_counter()
        run()
        fastest = min(fastest, time.perf_counter() - begin)
        runs += 1
    return fastest


def torch_product(operation: str, n: int, d_in: int, d_out: int, dtype) -> float:
    """Returns the GFLOP/s of one product of the Rust benchmark, with operands and results in `dtype`."""
    import torch

    inp, dout = torch.randn(n, d_in, dtype=dtype), torch.randn(n, d_out, dtype=dtype)
    w = torch.randn(d_out, d_in, dtype=dtype)
    forward = operation.startswith("out")
    seconds = best((lambda: inp @ w.T) if forward else (lambda: dout @ w))
    return 2 * n * d_in * d_out / seconds / 1e9


def torch_pair(operation: str, n: int, d_in: int, d_out: int, rank: int, whole: bool) -> float:
    """Returns the GFLOP/s of the products with `A` and `B` of an adapter in f32, PEFT's type for adapters.

    With `whole`, the time includes scaling the update and adding it to the base's output, as danlu and PEFT do."""
    import torch

    inp, dout, out, dinp = (torch.randn(n, d) for d in (d_in, d_out, d_out, d_in))
    a, b, scaling = torch.randn(rank, d_in), torch.randn(d_out, rank), 2.0
    mid = inp @ a.T
    flops = 2 * n * rank * (d_in + d_out)

    def forward():
        update = (inp @ a.T) @ b.T
        return out + update * scaling if whole else update

    def backward():
        scaled = dout * scaling if whole else dout
        dmid = scaled @ b
        below = dmid @ a
        return scaled.T @ mid, dmid.T @ inp, dinp + below if whole else below

    return flops / best(forward) / 1e9 if operation == "lora_forward" else 2 * flops / best(backward) / 1e9


LINE = re.compile(r"^  (out = inp W\^T|dinp \+= dout W|lora_forward|lora_backward)\s+(\d+) x (\d+) x (\d+)(?: r (\d+))?( drop)?\s.*?([\d.]+) GFLOP/s")


def compare_products(arguments):
    import torch

    torch.set_num_threads(arguments.threads)
    sections = [job for job in arguments.jobs if job in ("products", "low-rank")]
    text = subprocess.run([arguments.gemm, "--bench", str(arguments.threads), *sections], capture_output=True, text=True).stdout
    lines = list(read_lines(text))
    print("| kernel | operation | n x in x out | danlu GFLOP/s | PyTorch bf16 | PyTorch f32 | ratio to its own type |")
    print("|---|---|---|---:|---:|---:|---:|")
    seen = {}
    for kernel, operation, sizes, rank, ours in lines:
        if rank:
            continue
        key = (operation, *sizes)
        if key not in seen:
            seen[key] = [torch_product(*key, dtype) for dtype in (torch.bfloat16, torch.float32)]
        bf16, f32 = seen[key]
        theirs = bf16 if "bf16," in kernel or kernel.endswith("bf16") else f32
        shape = " x ".join(map(str, sizes))
        print(f"| {kernel} | {operation} | {shape} | {ours:.0f} | {bf16:.0f} | {f32:.0f} | {ours / theirs:.2f} |")
    print("\n| kernel | operation | n x in x out, rank | danlu GFLOP/s | PyTorch, its products | the whole operation | ratios |")
    print("|---|---|---|---:|---:|---:|---:|")
    for kernel, operation, sizes, rank, ours in lines:
        if not rank:
            continue
        products, whole = (torch_pair(operation, *sizes, rank, whole) for whole in (False, True))
        shape = " x ".join(map(str, sizes))
        ratios = f"{ours / products:.2f}, {ours / whole:.2f}"
        print(f"| {kernel} | {operation} | {shape}, {rank} | {ours:.0f} | {products:.0f} | {whole:.0f} | {ratios} |")


def read_lines(text: str):
    """Parses the Rust benchmark's lines without dropout: kernel, operation, sizes, rank (0 without an adapter) and GFLOP/s."""
    kernel = ""
    for line in text.splitlines():
        if line.startswith("cpu "):
            kernel = line.split(":")[0]
        found = LINE.match(line)
        if found and not found.group(6) and "avx512" in kernel:
            sizes = tuple(map(int, found.group(2, 3, 4)))
            yield kernel, found.group(1), sizes, int(found.group(5) or 0), float(found.group(7))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--danlu")
    parser.add_argument("--gemm")
    parser.add_argument("--base", type=Path)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--jobs", nargs="+", choices=[*PEERS, "products", "low-rank"], default=list(PEERS))
    parser.add_argument("--dtypes", nargs="+", choices=["bf16", "f32", "nf4"], default=["bf16", "f32"])
    parser.add_argument("--isa", help="hold both to an instruction set: avx2")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--warm-up", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peer", choices=PEERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer:
        run_peer(arguments, arguments.dtypes[0])
    elif arguments.gemm:
        compare_products(arguments)
    else:
        compare_jobs(arguments)


if __name__ == "__main__":
    main()
