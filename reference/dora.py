"""Writes crates/train/tests/expected/dora.json: ten steps of PEFT with DoRA on the embedded base.

    OMP_NUM_THREADS=1 python reference/dora.py

The matrices A and B start with the values in `adapter_initial`. The magnitudes start with the norms of the base.
"""

import json

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

import training
from examples import collate, label_tokens, summed_loss
from four_bit_training import Example

EXPECTED = training.EXPECTED
PAD_ID = json.loads((training.ASSETS / "base-8m/generation_config.json").read_text())["pad_token_id"]


def main():
    torch.set_num_threads(1)
    config = LoraConfig(
        r=training.RANK,
        lora_alpha=training.ALPHA,
        lora_dropout=0.0,
        target_modules=training.PROJECTIONS,
        use_dora=True,
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(training.load_base(torch.bfloat16).float(), config)
    initial = load_file(EXPECTED / "adapter_initial/adapter_model.safetensors")
    parameters = training.trainable(model)
    with torch.no_grad():
        for name, values in initial.items():
            parameters[name].copy_(values)
    model.train()
    records = [Example(entry) for entry in json.loads((EXPECTED / "examples.json").read_text(encoding="utf-8"))]
    steps = training.ten_steps(model, records, PAD_ID)
    batch = collate(records[:4], PAD_ID)
    with torch.no_grad():
        loss_after = (summed_loss(model, batch) / label_tokens(batch)).item()
    # PEFT saves a magnitude under the parameter's name without the last part, `.weight`.
    norms = {
        name.removesuffix(".weight") if "magnitude" in name else name: parameter.double().norm().item()
        for name, parameter in parameters.items()
    }
    kept = ["loss", "grad_norm_before_clip"]
    value = {
        "steps": [{key: step[key] for key in kept} for step in steps],
        "batch_loss_after": loss_after,
        "l2": norms,
    }
    training.write_json(EXPECTED / "dora.json", value)


if __name__ == "__main__":
    main()
