"""Runs the tutorial's job in PyTorch and PEFT on a CPU. Prints useful tokens per second, as JSON.

    python reference/bench_tutorial.py BASE DATA.json [--steps 40] [--warm-up 5] [--threads 2] [--dtype f32 bf16]

The loop runs over encoded data without Trainer, logging, evaluation or checkpoints, so only the arithmetic is timed.
Useful tokens exclude padding. With bf16 the base is bf16 and the adapter f32, as in PEFT.
"""

import argparse
import json
import resource
import statistics
import time
from pathlib import Path

import peft
import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from examples import collate, encode, label_tokens, read_alpaca, summed_loss

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
MICRO_BATCH, ACCUMULATION = 2, 2


def loading(dtype) -> dict:
    """Returns the loading options for a type. `nf4` is bitsandbytes' 4-bit type, with matrix products in bf16."""
    if dtype != "nf4":
        return {"dtype": dtype}
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return {"dtype": torch.bfloat16, "quantization_config": quantization}


def build(base: Path, dtype):
    model = AutoModelForCausalLM.from_pretrained(base, **loading(dtype), attn_implementation="sdpa")
    model.config.use_cache = False
    config = LoraConfig(
        r=8,
        lora_alpha=32,
        lora_dropout=0.1,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(model, config)
    assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
    return model.train()


def measure(base: Path, examples, pad_id: int, dtype, steps: int, warm_up: int) -> dict:
    torch.manual_seed(0)
    model = build(base, dtype)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.01)
    # The shuffle is the same for every `--dtype`, so that all types train on the same records.
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(1)).tolist()

    per_step = MICRO_BATCH * ACCUMULATION
    seconds, useful, padded, losses = [], 0, 0, []
    for step in range(warm_up + steps):
        chosen = [examples[order[(step * per_step + i) % len(order)]] for i in range(per_step)]
        start = time.perf_counter()
        batches = [collate(chosen[i : i + MICRO_BATCH], pad_id) for i in range(0, per_step, MICRO_BATCH)]
        tokens = sum(label_tokens(batch) for batch in batches)
        loss_sum = 0.0
        for batch in batches:
            loss = summed_loss(model, batch)
            (loss / tokens).backward()
            loss_sum += loss.item()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        elapsed = time.perf_counter() - start
        if step >= warm_up:
            seconds.append(elapsed)
            losses.append(loss_sum / tokens)
            useful += sum(int(batch["attention_mask"].sum()) for batch in batches)
            padded += sum(batch["input_ids"].numel() for batch in batches)
    return {
        "useful_tokens_per_second": useful / sum(seconds),
        "padded_tokens_per_second": padded / sum(seconds),
        "steps": steps,
        "seconds": sum(seconds),
        "median_step_seconds": statistics.median(seconds),
        "slowest_step_seconds": max(seconds),
        "useful_tokens": useful,
        "mean_loss": statistics.mean(losses),
        "trainable_parameters": sum(p.numel() for p in parameters),
        # The peak of the whole process so far. With several types in `--dtype`, only the peak of the first is its own.
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--warm-up", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--max-length", type=int, default=384)
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES))
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    tokenizer = AutoTokenizer.from_pretrained(arguments.base)
    records = read_alpaca(arguments.data)
    examples = [encode(tokenizer, record, arguments.max_length) for record in records]
    result = {
        "base": arguments.base.name,
        "data": arguments.data.name,
        "records": len(examples),
        "tokens": sum(len(example.ids) for example in examples),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
    }
    for name in arguments.dtype:
        result[name] = measure(
            arguments.base, examples, tokenizer.pad_token_id, DTYPES[name], arguments.steps, arguments.warm_up
        )
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
