"""Prints predicted and measured peak memory of real runs, as the table of docs/reference/memory.md.

    python3 reference/memory.py target/release/danlu MODELS TOKENIZER DATA [WORK]

MODELS holds base-8m and base-28m; TOKENIZER is a folder with Llama 3's tokenizer; DATA an alpaca file. A base of
random weights (hidden 512, 8 layers, vocabulary 128,256) is written to WORK. Needs Python 3.9, nothing else.
"""

import json
import os
import pathlib
import random
import re
import shutil
import struct
import subprocess
import sys

RANDOM = dict(hidden_size=512, intermediate_size=1536, num_hidden_layers=8, num_attention_heads=8,
              num_key_value_heads=4, head_dim=64, vocab_size=128256)

SETTINGS = [
    ("base-8m", "--max-steps 12"),
    ("base-8m", "--max-steps 8 --packing --max-length 512 --per-device-train-batch-size 8"),
    ("base-8m", "--max-steps 4 --packing --max-length 512 --per-device-train-batch-size 16 --dtype bf16"),
    ("base-8m", "--max-steps 4 --per-device-train-batch-size 32 --memory-limit 170MiB"),
    ("base-28m", "--max-steps 12 --val-size 20"),
    ("base-28m", "--max-steps 8 --dtype bf16 --lora-r 64"),
    ("base-28m", "--max-steps 3 --packing --max-length 512 --per-device-train-batch-size 4 --val-size 8"),
    ("base-28m", "--max-steps 3 --packing --max-length 512 --per-device-train-batch-size 4 --memory-limit 500MiB"),
    ("base-28m", "--max-steps 3 --packing --max-length 512 --per-device-train-batch-size 4 --memory-limit 350MiB --dtype bf16"),
    ("random", "--max-steps 6"),
    ("random", "--max-steps 2 --packing --max-length 1024 --per-device-train-batch-size 2 --dtype bf16"),
    ("random", "--max-steps 2 --packing --max-length 1024 --per-device-train-batch-size 2 --memory-limit 690MiB --dtype bf16"),
    ("random", "--max-steps 2 --packing --max-length 1024 --per-device-train-batch-size 2 --memory-limit 600MiB --dtype bf16"),
    ("random", "--max-steps 1 --packing --max-length 2048 --per-device-train-batch-size 2 --gradient-accumulation-steps 1 --threads 1 --dtype bf16"),
    ("random", "--max-steps 4 --per-device-train-batch-size 8 --lora-r 32 --lora-dropout 0 --target-modules q_proj,v_proj --dtype bf16"),
]


def write_random(folder, tokenizer):
    """Writes a Llama of random bf16 weights between -0.03 and 0.03, with norms of one."""
    folder.mkdir(parents=True)
    for file in pathlib.Path(tokenizer).iterdir():
        shutil.copyfile(file, folder / file.name)
    c, ff, v = RANDOM["hidden_size"], RANDOM["intermediate_size"], RANDOM["vocab_size"]
    q, kv = RANDOM["num_attention_heads"] * 64, RANDOM["num_key_value_heads"] * 64
    config = dict(RANDOM, model_type="llama", architectures=["LlamaForCausalLM"], hidden_act="silu",
                  rms_norm_eps=1e-5, rope_theta=500000.0, max_position_embeddings=8192,
                  tie_word_embeddings=True, torch_dtype="bfloat16", bos_token_id=128000, eos_token_id=128009)
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {"model.embed_tokens.weight": [v, c], "model.norm.weight": [c]}
    for layer in range(RANDOM["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        shapes |= {at + "input_layernorm.weight": [c], at + "post_attention_layernorm.weight": [c],
                   at + "self_attn.q_proj.weight": [q, c], at + "self_attn.k_proj.weight": [kv, c],
                   at + "self_attn.v_proj.weight": [kv, c], at + "self_attn.o_proj.weight": [c, q],
                   at + "mlp.gate_proj.weight": [ff, c], at + "mlp.up_proj.weight": [ff, c],
                   at + "mlp.down_proj.weight": [c, ff]}
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = dict(dtype="BF16", shape=shape, data_offsets=[end, end + size])
        end += size
    text = json.dumps(header).encode()
    signs = bytes([0x3c, 0xbc] * 128)
    random.seed(1)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for shape in shapes.values():
            n = shape[0] * (shape[1] if len(shape) > 1 else 1)
            values = bytearray(2 * n)
            values[0::2] = bytes(n) if len(shape) == 1 else random.randbytes(n)
            values[1::2] = random.randbytes(n).translate(signs)
            file.write(b"\x80\x3f" * n if len(shape) == 1 else values)


def main(binary, models, tokenizer, data, work="/tmp/danlu-memory"):
    work = pathlib.Path(work)
    base = {name: pathlib.Path(models) / name for name in ("base-8m", "base-28m")}
    base["random"] = work / "random"
    if not base["random"].exists():
        write_random(base["random"], tokenizer)
    print("| base | settings | forecast | measured | difference | layers |\n|---|---|---:|---:|---:|---|", flush=True)
    worst = 0.0
    for name, flags in SETTINGS:
        out = work / "out"
        shutil.rmtree(out, ignore_errors=True)
        line = [binary, "train", "--lang", "en", "--base", base[name], "--data", data, "--output", out, *flags.split()]
        run = subprocess.run(line, capture_output=True, text=True)
        if run.returncode:
            print(f"| {name} | `{flags}` | failed: {run.stderr.strip().splitlines()[-1]} |", flush=True)
            continue
        size = r"([\d.]+ [MG]iB)"
        peak, plan = re.search(rf"^peak memory +{size}, {size} foreseen", run.stdout + run.stderr, re.M).groups()
        number = lambda text: float(text.split()[0]) * (1024 if "GiB" in text else 1)
        difference = number(peak) - number(plan)
        allowed = max(0.03 * number(plan), 50e6 / 2**20)
        worst = max(worst, abs(difference) / allowed)
        layers = re.search(r"^layers +(.*)$", run.stderr, re.M).group(1)
        print(f"| {name} | `{flags}` | {plan} | {peak} | {difference:+.0f} MiB | {layers} |", flush=True)
    print(f"\nThe largest difference is {100 * worst:.0f}% of what is allowed (3% or 50 MB).")


if __name__ == "__main__":
    main(*sys.argv[1:])
