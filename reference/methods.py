"""Writes crates/train/tests/expected/methods.json: ten steps of PEFT with each way to start or change a run.

    OMP_NUM_THREADS=1 python reference/methods.py

| key | run |
|---|---|
| `loraplus` | LoRA+ with a ratio of 4 |
| `neftune` | NEFTune with alpha 5, one record per micro-batch; the noise comes from danlu's random numbers |
| `patterns` | ranks, alphas, layers and exclusions of single modules |
| `olora` | OLoRA, and the adapter that PEFT saves after its conversion to LoRA |
| `init_adapter` | ten steps that continue from `adapter_after_10_steps` |

The matrices A start with the values in `adapter_initial`, unless the method sets them.
"""

import argparse
import json
import platform
import tempfile
from pathlib import Path

import numpy
import peft
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from safetensors.torch import load_file
from transformers.integrations.neftune import neftune_post_forward_hook

import training
from examples import Example, collate, label_tokens, summed_loss

EXPECTED = training.EXPECTED
PAD_ID = json.loads((training.ASSETS / "base-8m/generation_config.json").read_text())["pad_token_id"]
RATIO = 4.0
NOISE_ALPHA = 5.0
SEED = 42
PATTERNS = {
    "target_modules": training.PROJECTIONS,
    "exclude_modules": ["k_proj", "layers.0.mlp.up_proj"],
    "layers_to_transform": [0, 2],
    "rank_pattern": {"v_proj": 1, "layers.2.mlp.down_proj": 1},
    "alpha_pattern": {"q_proj": 3, "o_proj": 12.5},
}


def config(**changes) -> LoraConfig:
    settings = {
        "r": training.RANK,
        "lora_alpha": training.ALPHA,
        "lora_dropout": 0.0,
        "target_modules": training.PROJECTIONS,
        "task_type": "CAUSAL_LM",
    }
    return LoraConfig(**(settings | changes))


def with_initial_a(model):
    """Copies the first rows of each A of `adapter_initial`. B stays zero."""
    initial = load_file(EXPECTED / "adapter_initial/adapter_model.safetensors")
    with torch.no_grad():
        for name, parameter in training.trainable(model).items():
            if "lora_A" in name:
                parameter.copy_(initial[name][: parameter.shape[0]])
    return model


def base():
    return training.load_base(torch.bfloat16).float()


def ten_steps(model, make_optimizer=None, micro_batch=2, weight_decay=training.WEIGHT_DECAY) -> dict:
    """Runs `training.ten_steps` with another optimizer or another micro-batch."""
    entries = json.loads((EXPECTED / "examples.json").read_text(encoding="utf-8"))
    records = [Example(entry["input_ids"], entry["labels"]) for entry in entries]
    saved = training.MICRO_BATCH, training.ACCUMULATION, training.WEIGHT_DECAY, torch.optim.AdamW
    training.MICRO_BATCH, training.ACCUMULATION = micro_batch, 4 // micro_batch
    training.WEIGHT_DECAY = weight_decay
    if make_optimizer:
        torch.optim.AdamW = lambda parameters, **settings: make_optimizer(saved[3], model, settings)
    model.train()
    try:
        steps = training.ten_steps(model, records, PAD_ID)
    finally:
        training.MICRO_BATCH, training.ACCUMULATION, training.WEIGHT_DECAY, torch.optim.AdamW = saved
    model.eval()
    batch = collate(records[:4], PAD_ID)
    with torch.no_grad():
        loss_after = (summed_loss(model, batch) / label_tokens(batch)).item()
    kept = ["loss", "grad_norm_before_clip"]
    return {
        "steps": [{key: step[key] for key in kept} for step in steps],
        "batch_loss_after": loss_after,
        "l2": {name: p.double().norm().item() for name, p in training.trainable(model).items()},
    }


def loraplus() -> dict:
    def optimizer(adamw, model, settings):
        decay = settings["weight_decay"]
        return create_loraplus_optimizer(
            model, adamw, lr=settings["lr"], loraplus_lr_ratio=RATIO, loraplus_weight_decay=decay
        )

    run = ten_steps(with_initial_a(get_peft_model(base(), config())), optimizer)
    return {"ratio": RATIO} | run


U64 = numpy.uint64
GOLDEN = U64(0x9E3779B97F4A7C15)


def mix(z):
    with numpy.errstate(over="ignore"):
        z = (z ^ (z >> U64(30))) * U64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> U64(27))) * U64(0x94D049BB133111EB)
    return z ^ (z >> U64(31))


def random_key(parts) -> numpy.uint64:
    """Returns the key of a random stream, as `rng::key` does."""
    key = GOLDEN
    with numpy.errstate(over="ignore"):
        for part in parts:
            key = mix((key + GOLDEN) ^ mix(U64(part) + GOLDEN))
    return key


def uniform_numbers(key, count: int) -> numpy.ndarray:
    """Returns the first numbers of a stream, uniform in [0, 1) with 24 bits, as `rng::uniform` does."""
    with numpy.errstate(over="ignore"):
        bits = mix(key + numpy.arange(count, dtype=U64) * GOLDEN)
    return (bits >> U64(40)).astype(numpy.float32) / numpy.float32(1 << 24)


def neftune() -> dict:
    model = with_initial_a(get_peft_model(base(), config()))
    passes = [0]

    def uniform_(self, low, high):
        step, micro_batch = passes[0] // 4 + 1, passes[0] % 4
        passes[0] += 1
        numbers = uniform_numbers(random_key([SEED, 0x6E6F697365, step, micro_batch]), self.numel())
        return self.copy_(low + (high - low) * torch.from_numpy(numbers).reshape(self.shape))

    embedding = model.base_model.model.get_input_embeddings()
    embedding.neftune_noise_alpha = NOISE_ALPHA
    hook = embedding.register_forward_hook(neftune_post_forward_hook)
    original, torch.Tensor.uniform_ = torch.Tensor.uniform_, uniform_
    try:
        run = ten_steps(model, micro_batch=1)
    finally:
        torch.Tensor.uniform_ = original
        hook.remove()
    assert passes[0] == 40, passes
    return {"alpha": NOISE_ALPHA, "seed": SEED} | run


def patterns() -> dict:
    run = ten_steps(with_initial_a(get_peft_model(base(), config(**PATTERNS))))
    return {"config": PATTERNS} | run


def olora() -> dict:
    with tempfile.TemporaryDirectory() as scratch:
        start, end = Path(scratch) / "start", Path(scratch) / "end"
        model = get_peft_model(base(), config(init_lora_weights="olora"))
        # PEFT's conversion subtracts this initial adapter. The saved configuration must be that of a plain adapter, so that
        # PEFT loads the file instead of computing OLoRA again.
        model.peft_config["default"].init_lora_weights = True
        model.save_pretrained(start)
        model.peft_config["default"].init_lora_weights = "olora"
        run = ten_steps(model, weight_decay=0.0)
        model.save_pretrained(end, path_initial_model_for_weight_conversion=str(start))
        saved = json.loads((end / "adapter_config.json").read_text())
        tensors = load_file(end / "adapter_model.safetensors")
    scaling = saved["lora_alpha"] / saved["r"]
    deltas = {}
    for name, a in tensors.items():
        if "lora_A" in name:
            b = tensors[name.replace("lora_A", "lora_B")]
            deltas[name.removesuffix(".lora_A.weight")] = (scaling * b.double() @ a.double()).norm().item()
    keys = ["r", "lora_alpha", "init_lora_weights"]
    return run | {"saved_config": {key: saved[key] for key in keys}, "delta_l2": deltas}


def init_adapter() -> dict:
    with tempfile.TemporaryDirectory() as scratch:
        for name in ["adapter_config.json", "adapter_model.safetensors"]:
            (Path(scratch) / name).write_bytes((EXPECTED / "adapter_after_10_steps" / name).read_bytes())
        return ten_steps(PeftModel.from_pretrained(base(), scratch, is_trainable=True))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=EXPECTED / "methods.json")
    output = parser.parse_args().output
    torch.set_num_threads(1)
    plain = ten_steps(with_initial_a(get_peft_model(base(), config())))
    committed = json.loads((EXPECTED / "training.json").read_text(encoding="utf-8"))["steps"]
    for ours, theirs in zip(plain["steps"], committed):
        assert abs(ours["loss"] / theirs["loss"] - 1) < 1e-5, (ours, theirs)
    value = {
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "peft": peft.__version__,
        },
        "loraplus": loraplus(),
        "neftune": neftune(),
        "patterns": patterns(),
        "olora": olora(),
        "init_adapter": init_adapter(),
    }
    training.write_json(output, value)


if __name__ == "__main__":
    main()
