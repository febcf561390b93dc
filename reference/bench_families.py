"""Runs `danlu bench` on shapes of several families in turns, and compares their speed per parameter with Llama's.

    python reference/bench_families.py --danlu BINARY [--rounds 5] [--device cpu]

The speed per parameter is tokens/s times the number of parameters. All shapes tie their tables, so each parameter
takes part in one product. Every run is a process of its own. The machine must be idle.

The script also compares a step with DoRA to a step without it, on Llama's shape. It exits with 1 if a family is slower than
Llama by more than 3%, or if a step with DoRA takes more than 1.25 times as long.
"""

import argparse
import json
import statistics
import subprocess
import sys

LLAMA = "llama-3.2-1b"
SHAPES = [LLAMA, "qwen3-0.6b", "gemma-3-1b", "phi-4-mini"]
LEAST_SHARE, MOST_DORA = 0.97, 1.25


def bench(arguments: argparse.Namespace, *job: str) -> dict:
    command = [arguments.danlu, "bench", *job, "--device", arguments.device, "--json", "--quiet"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(output.strip().splitlines()[-1])


def speeds(arguments: argparse.Namespace, shapes: list[str]) -> dict:
    """Returns tokens/s times parameters for each shape and job, one number for each round."""
    train = ["--batch", arguments.batch, "--lora-dropout", "0", "--steps", str(arguments.steps)]
    jobs = {"train": (train, "useful_tokens_per_second"), "decode": ([], "tokens_per_second")}
    found = {(job, shape): [] for job in jobs for shape in shapes}
    for round_ in range(arguments.rounds):
        for shape in shapes if round_ % 2 == 0 else reversed(shapes):
            for job, (flags, key) in jobs.items():
                result = bench(arguments, job, "--shape", shape, *flags)
                found[job, shape].append(result[key] * result["parameters"])
    return found


def dora_ratio(arguments: argparse.Namespace) -> list[float]:
    """Returns the time of a step with DoRA over that of a step with LoRA, one number for each round."""
    flags = ["--shape", LLAMA, "--batch", arguments.batch, "--lora-dropout", "0", "--steps", str(arguments.steps)]
    ratios = []
    for _ in range(arguments.rounds):
        lora, dora = (bench(arguments, "train", *flags, *more)["median_step_seconds"] for more in ([], ["--use-dora"]))
        ratios.append(dora / lora)
    return ratios


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--danlu", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--batch", default="1x256")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--without", nargs="*", default=[], help="shapes to leave out, such as phi-4-mini, which needs 8 GB")
    arguments = parser.parse_args()
    shapes = [shape for shape in SHAPES if shape not in arguments.without]
    found, is_fast = speeds(arguments, shapes), True
    print("| job | shape | tokens/s times parameters, in 10^9 | share of Llama, median | lowest to highest |")
    print("|---|---|---|---|---|")
    for (job, shape), values in found.items():
        shares = [value / llama for value, llama in zip(values, found[job, LLAMA])]
        share = statistics.median(shares)
        is_fast &= share >= LEAST_SHARE
        speed = statistics.median(values) / 1e9
        print(f"| {job} | {shape} | {speed:.1f} | {share:.3f} | {min(shares):.3f} to {max(shares):.3f} |")
    ratios = dora_ratio(arguments)
    is_fast &= statistics.median(ratios) <= MOST_DORA
    print(f"\nDoRA over LoRA: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
    sys.exit(0 if is_fast else 1)


if __name__ == "__main__":
    main()
