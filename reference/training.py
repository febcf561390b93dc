"""Writes crates/train/tests/expected: PyTorch's and PEFT's results on the embedded base and data.

    OMP_NUM_THREADS=1 python reference/training.py

README.md in this folder describes each output and the tolerances.
"""

import argparse
import copy
import hashlib
import json
import math
import platform
import tempfile
from pathlib import Path

import peft
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from examples import collate, encode, greedy, label_tokens, prompt_ids, read_alpaca, summed_loss, user_message

REPOSITORY = Path(__file__).resolve().parent.parent
ASSETS = REPOSITORY / "crates/cli/assets"
EXPECTED = REPOSITORY / "crates/train/tests/expected"

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# With rank 2, the adapter's file has only 300 KB. With ten times the tutorial's learning rate, ten steps change the
# losses visibly.
RANK, ALPHA, LEARNING_RATE, WEIGHT_DECAY, MAX_GRAD_NORM = 2, 8, 1e-3, 0.01, 1.0
STEPS, MICRO_BATCH, ACCUMULATION = 10, 2, 2
RECORDS = STEPS * MICRO_BATCH * ACCUMULATION
SEED = 20_240_607
# A prompt is skipped if the two largest logits of any token are closer than LEAST_GAP.
PROMPTS, NEW_TOKENS, LEAST_GAP = 2, 24, 5e-3


def load_base(dtype: torch.dtype):
    return AutoModelForCausalLM.from_pretrained(ASSETS / "base-8m", dtype=dtype, attn_implementation="sdpa")


def with_adapter(base):
    config = LoraConfig(
        r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=PROJECTIONS, bias="none", task_type="CAUSAL_LM"
    )
    torch.manual_seed(SEED)
    model = get_peft_model(base, config)
    model.peft_config["default"].base_model_name_or_path = "base-8m"
    return model


def save_adapter(model, folder: Path):
    """Writes PEFT's files without parts that differ between equal runs: no model card, and sets sorted."""
    with tempfile.TemporaryDirectory() as scratch:
        model.save_pretrained(scratch)
        config = json.loads((Path(scratch) / "adapter_config.json").read_text())
        config["target_modules"] = sorted(config["target_modules"])
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "adapter_config.json", config)
        tensors = load_file(Path(scratch) / "adapter_model.safetensors")
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values())
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def trainable(model) -> dict[str, torch.nn.Parameter]:
    """Returns the adapter's parameters under their names in adapter_model.safetensors."""
    return {name.replace(".default", ""): p for name, p in model.named_parameters() if p.requires_grad}


def gradients_of_one_batch(model, batch) -> dict:
    """Returns the gradients of one batch. B is first filled with noise, because a zero B gives A no gradient."""
    generator = torch.Generator().manual_seed(SEED + 1)
    with torch.no_grad():
        for name, parameter in trainable(model).items():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)
    save_adapter(model, EXPECTED / "adapter_for_gradients")

    loss = summed_loss(model, batch) / label_tokens(batch)
    loss.backward()
    gradients = {name: parameter.grad.contiguous() for name, parameter in trainable(model).items()}
    save_file(gradients, EXPECTED / "lora_gradients.safetensors", metadata={"format": "pt"})
    with model.disable_adapter(), torch.no_grad():
        loss_of_base = summed_loss(model, batch) / label_tokens(batch)
    return {
        "records": list(range(len(batch["input_ids"]))),
        "label_tokens": label_tokens(batch),
        "loss": loss.item(),
        "loss_of_base": loss_of_base.item(),
        "grad_norm": math.sqrt(sum(g.double().square().sum().item() for g in gradients.values())),
    }


def ten_steps(model, examples, pad_id: int) -> list[dict]:
    parameters = list(trainable(model).values())
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    steps = []
    for step in range(STEPS):
        first = step * MICRO_BATCH * ACCUMULATION
        micro_batches = [
            list(range(start, start + MICRO_BATCH)) for start in range(first, first + MICRO_BATCH * ACCUMULATION, MICRO_BATCH)
        ]
        batches = [collate([examples[i] for i in indices], pad_id) for indices in micro_batches]
        # The loss is the mean over all tokens of the step, not the mean of the micro-batches' means.
        tokens = sum(label_tokens(batch) for batch in batches)
        loss_sum = 0.0
        for batch in batches:
            loss = summed_loss(model, batch)
            (loss / tokens).backward()
            loss_sum += loss.item()
        norm = torch.nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()
        steps.append(
            {
                "step": step + 1,
                "micro_batches": micro_batches,
                "label_tokens": tokens,
                "loss": loss_sum / tokens,
                "grad_norm_before_clip": norm.item(),
            }
        )
        print(f"step {step + 1:2}  loss {loss_sum / tokens:.6f}  grad norm {norm.item():.6f}")
    return steps


def replies(base, adapter, merged, tokenizer, records) -> tuple[list[dict], dict[str, torch.Tensor]]:
    """Returns the first prompts with greedy replies that rounding cannot change, and the logits at the end of each."""
    models = {"base": base, "adapter": adapter, "merged": merged}
    chosen, logits = [], {}
    for record in records:
        ids = prompt_ids(tokenizer, user_message(record))
        outcome = {name: greedy(model, ids, NEW_TOKENS) for name, model in models.items()}
        if min(gap for _, gap in outcome.values()) < LEAST_GAP or outcome["base"][0] == outcome["adapter"][0]:
            continue
        entry = {"prompt": user_message(record)["content"], "prompt_ids": ids}
        for name, (new_ids, gap) in outcome.items():
            entry[name] = {"new_ids": new_ids, "text": tokenizer.decode(new_ids), "least_top2_gap": gap}
            with torch.no_grad():
                last = models[name](input_ids=torch.tensor([ids])).logits[0, -1]
            logits[f"prompt_{len(chosen)}.{name}"] = last.contiguous()
        chosen.append(entry)
        if len(chosen) == PROMPTS:
            return chosen, logits
    raise SystemExit(f"only {len(chosen)} of the prompts keep a gap of {LEAST_GAP} between the two best tokens")


def checksums(model) -> dict:
    """Returns checksums of the merged projections. A hash would depend on the order of summation."""
    result = {}
    for name, tensor in model.state_dict().items():
        if not any(projection in name for projection in PROJECTIONS):
            continue
        wide = tensor.double()
        result[name] = {
            "shape": list(tensor.shape),
            "sum": wide.sum().item(),
            "l2": wide.norm().item(),
            "abs_max": wide.abs().max().item(),
            "first4": [v.item() for v in wide.flatten()[:4]],
        }
    return result


def write_json(path: Path, value):
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def main():
    global EXPECTED
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=EXPECTED, help="another folder, to compare with what is committed")
    EXPECTED = parser.parse_args().output
    EXPECTED.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)

    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "base-8m")
    data = (ASSETS / "palace.json").read_bytes()
    records = read_alpaca(ASSETS / "palace.json")
    examples = [encode(tokenizer, record) for record in records[:RECORDS]]
    pad_id = tokenizer.pad_token_id
    first_batch = collate(examples[:4], pad_id)

    gradients = gradients_of_one_batch(with_adapter(load_base(torch.float32)), first_batch)

    model = with_adapter(load_base(torch.float32))
    save_adapter(model, EXPECTED / "adapter_initial")
    steps = ten_steps(model, examples, pad_id)
    save_adapter(model, EXPECTED / "adapter_after_10_steps")
    with torch.no_grad():
        loss_after = (summed_loss(model, first_batch) / label_tokens(first_batch)).item()

    model.eval()
    # The merge uses a copy, because merge_and_unload works in place and the unmerged adapter is still needed.
    merged = copy.deepcopy(model).merge_and_unload()
    prompts, logits = replies(load_base(torch.float32), model, merged, tokenizer, records[RECORDS:])
    save_file(logits, EXPECTED / "logits.safetensors", metadata={"format": "pt"})

    write_json(
        EXPECTED / "training.json",
        {
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "peft": peft.__version__,
            },
            "data_sha256": hashlib.sha256(data).hexdigest(),
            "hyper_parameters": {
                "r": RANK,
                "lora_alpha": ALPHA,
                "lr": LEARNING_RATE,
                "betas": [0.9, 0.999],
                "eps": 1e-8,
                "weight_decay": WEIGHT_DECAY,
                "max_grad_norm": MAX_GRAD_NORM,
                "steps": STEPS,
                "accum": ACCUMULATION,
                "micro_batch": MICRO_BATCH,
            },
            "batch": gradients,
            "steps": steps,
            "batch_loss_after": loss_after,
            "prompts": prompts,
        },
    )
    write_json(
        EXPECTED / "examples.json",
        [{"index": i, "input_ids": e.ids, "labels": e.labels} for i, e in enumerate(examples)],
    )
    write_json(EXPECTED / "merged_checksums.json", checksums(merged))


if __name__ == "__main__":
    main()
