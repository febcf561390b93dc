"""Writes crates/train/tests/expected/four_bit.json: ten steps of PEFT over bases that bitsandbytes quantized to NF4.

    OMP_NUM_THREADS=1 python reference/four_bit_training.py [--golden ../shared/golden]

Everything computes in f32. A projection's values are `table · scale`, not rounded.
README.md in this folder gives the tolerances.
"""

import argparse
import json
import tempfile
from pathlib import Path

import bitsandbytes
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import training
from examples import collate, label_tokens, summed_loss

EXPECTED = training.EXPECTED
GOLDEN = training.REPOSITORY.parent / "shared/golden"


def load_base(folder: Path):
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, quantization_config=quantization, attn_implementation="sdpa"
    )
    # transformers rejects `model.float()` for a quantized model. PyTorch's own method converts all float tensors; the
    # 4-bit values are integers and stay as they are.
    torch.nn.Module.float(model)
    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            assert module.weight.quant_state.dtype == torch.bfloat16
            module.compute_dtype = torch.float32
    return model


class Example:
    def __init__(self, entry: dict):
        self.ids, self.labels = entry["input_ids"], entry["labels"]


def run(base: Path, expected: Path, examples: Path, pad_id: int, recipe: dict) -> dict:
    """Runs ten steps from the adapter in `expected/adapter_initial`."""
    training.LEARNING_RATE = recipe["lr"]
    records = [Example(entry) for entry in json.loads(examples.read_text(encoding="utf-8"))]
    first_batch = collate(records[:4], pad_id)
    # PEFT reads only the adapter's folder, so the name of the base in it does not matter.
    with tempfile.TemporaryDirectory() as scratch:
        for name in ["adapter_config.json", "adapter_model.safetensors"]:
            (Path(scratch) / name).write_bytes((expected / "adapter_initial" / name).read_bytes())
        model = PeftModel.from_pretrained(load_base(base), scratch, is_trainable=True)
    model.train()
    for name, parameter in model.named_parameters():
        assert not parameter.requires_grad or parameter.dtype == torch.float32, name
    steps = training.ten_steps(model, records, pad_id)
    with torch.no_grad():
        loss_after = (summed_loss(model, first_batch) / label_tokens(first_batch)).item()
    adapter = {
        name: {"l2": p.double().norm().item(), "abs_max": p.abs().max().item()}
        for name, p in training.trainable(model).items()
    }
    kept = ["loss", "grad_norm_before_clip"]
    return {
        "steps": [{key: step[key] for key in kept} for step in steps],
        "batch_loss_after": loss_after,
        "adapter": adapter,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--golden", type=Path, default=GOLDEN, help="where the tiny model is")
    golden = parser.parse_args().golden
    torch.set_num_threads(1)
    own = json.loads((EXPECTED / "training.json").read_text(encoding="utf-8"))["hyper_parameters"]
    theirs = json.loads((golden / "training.json").read_text(encoding="utf-8"))["train"]["hyper_parameters"]
    pad = lambda folder: json.loads((folder / "generation_config.json").read_text())["pad_token_id"]
    base, tiny = training.ASSETS / "base-8m", golden / "tiny"
    value = {
        "bitsandbytes": bitsandbytes.__version__,
        "embedded": run(base, EXPECTED, EXPECTED / "examples.json", pad(base), own),
        "tiny": run(tiny, golden, golden / "chat_ids.json", pad(tiny), theirs),
    }
    training.write_json(EXPECTED / "four_bit.json", value)


if __name__ == "__main__":
    main()
