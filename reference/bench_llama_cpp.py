"""Runs danlu and llama.cpp alternately on one CPU, and prints the tokens per second of decoding and of prefill.

    CMAKE_ARGS="-DGGML_NATIVE=ON" pip install llama-cpp-python gguf
    python reference/bench_llama_cpp.py --danlu BINARY --base DIR --work DIR

BASE is the folder of a Llama, such as `danlu bench decode --shape llama-3.2-1b --keep BASE` writes.
The script converts its weights to GGUF files in WORK, unless WORK has them. Only the speed is measured, so the rows
of q and k keep their order (llama.cpp would expect another), and there is no tokenizer.
Every round runs in a process of its own.
"""

import argparse
import ctypes
import json
import os
import statistics
import sys
import time
from pathlib import Path

from bench_peers import last_json

PROMPT, PREFILL, NEW_TOKENS = 16, 512, 64
FILE_TYPES = {"bf16": "LLAMA_FTYPE_MOSTLY_BF16", "q4_0": "LLAMA_FTYPE_MOSTLY_Q4_0", "q4_k_m": "LLAMA_FTYPE_MOSTLY_Q4_K_M"}

TENSORS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def gguf_name(name: str) -> str:
    outer = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight"}
    if name in outer:
        return outer[name]
    layer, rest = name.removeprefix("model.layers.").split(".", 1)
    return f"blk.{layer}.{TENSORS[rest.removesuffix('.weight')]}.weight"


def write_gguf(base: Path, path: Path):
    """Writes a folder's weights as one GGUF file: norms in f32, the rest in bf16."""
    import gguf
    import torch
    from safetensors import safe_open

    config = json.loads((base / "config.json").read_text())
    out = gguf.GGUFWriter(path, "llama")
    out.add_context_length(config["max_position_embeddings"])
    out.add_embedding_length(config["hidden_size"])
    out.add_block_count(config["num_hidden_layers"])
    out.add_feed_forward_length(config["intermediate_size"])
    out.add_head_count(config["num_attention_heads"])
    out.add_head_count_kv(config["num_key_value_heads"])
    out.add_layer_norm_rms_eps(config["rms_norm_eps"])
    out.add_rope_freq_base(config.get("rope_theta") or config["rope_parameters"]["rope_theta"])
    out.add_vocab_size(config["vocab_size"])
    out.add_tokenizer_model("none")
    out.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    for file in sorted(base.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():
                tensor = tensors.get_tensor(name)
                if tensor.dim() == 1:
                    out.add_tensor(gguf_name(name), tensor.float().numpy())
                else:
                    data = tensor.to(torch.bfloat16).view(torch.uint8).numpy()
                    out.add_tensor(gguf_name(name), data, raw_dtype=gguf.GGMLQuantizationType.BF16)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def make(arguments):
    """Writes the missing GGUF files."""
    import llama_cpp

    files = {name: arguments.work / f"{arguments.base.name}-{name}.gguf" for name in FILE_TYPES}
    arguments.work.mkdir(parents=True, exist_ok=True)
    for name, path in files.items():
        part = path.with_suffix(".part")
        if path.exists():
            continue
        if name == "bf16":
            write_gguf(arguments.base, part)
        else:
            parameters = llama_cpp.llama_model_quantize_default_params()
            parameters.nthread, parameters.ftype = arguments.threads, getattr(llama_cpp, FILE_TYPES[name])
            paths = [os.fsencode(p) for p in (files["bf16"], part)]
            if llama_cpp.llama_model_quantize(*paths, ctypes.byref(parameters)) != 0:
                sys.exit(f"{path}: llama.cpp did not write it")
        part.rename(path)
    return files


def peer(arguments):
    """Runs one round of llama.cpp in this process."""
    import llama_cpp

    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(os.fsencode(arguments.gguf), llama_cpp.llama_model_default_params())
    vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    parameters = llama_cpp.llama_context_default_params()
    parameters.n_ctx, parameters.n_batch, parameters.n_ubatch = 1024, PREFILL, PREFILL
    parameters.n_threads = parameters.n_threads_batch = arguments.threads
    context = llama_cpp.llama_init_from_model(model, parameters)

    def run(tokens):
        ids = (llama_cpp.llama_token * len(tokens))(*tokens)
        start = time.perf_counter()
        if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(ids, len(tokens))) != 0:
            sys.exit("llama_decode failed")
        # Returns only after the logits of the last token are computed.
        logits = llama_cpp.llama_get_logits_ith(context, -1)
        return time.perf_counter() - start, max(range(16), key=lambda i: logits[i])

    memory = llama_cpp.llama_get_memory(context)

    def some(n):
        return [(7919 * i + 1) % vocabulary for i in range(n)]

    rates = {"prefill": [], "decode": []}
    for number in range(3):
        llama_cpp.llama_memory_clear(memory, True)
        seconds, _ = run(some(PREFILL))
        llama_cpp.llama_memory_clear(memory, True)
        _, token = run(some(PROMPT))
        times = []
        for _ in range(NEW_TOKENS):
            taken, token = run([token])
            times.append(taken)
        # The first run is a warm-up and does not count.
        if number > 0:
            rates["prefill"].append(PREFILL / seconds)
            rates["decode"].append(NEW_TOKENS / sum(times))
    print(json.dumps({job: statistics.median(values) for job, values in rates.items()}))


def danlu(arguments, job: str, quant: str) -> dict:
    command = [arguments.danlu, "bench", job, "--base", arguments.base, "--json", "--dtype", "bf16", "--threads", arguments.threads]
    command += ["--quant", quant] + (["--new-tokens", NEW_TOKENS] if job == "decode" else ["--prompt-tokens", PREFILL])
    found = last_json(list(map(str, command)))
    return {"rate": found["tokens_per_second"]} | {key: value for key, value in found.items() if "share" in key or key.startswith("peak_read")}


def compare(arguments):
    files = make(arguments)
    rounds = []
    for number in range(arguments.rounds):
        for quant in ("none", "nf4"):
            for job in ("prefill", "decode"):
                rounds.append({"who": f"danlu {quant}", "job": job, **danlu(arguments, job, quant)})
                print(json.dumps({"round": number, **rounds[-1]}), file=sys.stderr, flush=True)
        for name, path in files.items():
            command = [sys.executable, __file__, "--gguf", str(path), "--threads", str(arguments.threads)]
            for job, rate in last_json(command).items():
                rounds.append({"who": f"llama.cpp {name}", "job": job, "rate": rate})
                print(json.dumps({"round": number, **rounds[-1]}), file=sys.stderr, flush=True)
    print("| who | prefill tok/s | decode tok/s |")
    print("|---|---:|---:|")
    for who in dict.fromkeys(r["who"] for r in rounds):
        middle = [statistics.median(r["rate"] for r in rounds if (r["who"], r["job"]) == (who, job)) for job in ("prefill", "decode")]
        print(f"| {who} | {middle[0]:.1f} | {middle[1]:.1f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--danlu")
    parser.add_argument("--base", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--gguf", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.gguf:
        return peer(arguments)
    if not (arguments.danlu and arguments.base and arguments.work):
        parser.error("--danlu, --base and --work are needed")
    compare(arguments)


if __name__ == "__main__":
    main()
