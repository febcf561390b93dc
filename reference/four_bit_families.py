"""Compares NF4 logits of the family goldens with bitsandbytes on this machine. Writes nothing.

    OMP_NUM_THREADS=1 python reference/four_bit_families.py ../shared/golden/families qwen3 llama

For each family, the script quantizes the model twice: through transformers, and by the definition of the format, in
which blocks run over the flattened weight. The script prints the largest difference between the logits of both
models, and between each of them and the golden.
"""

import argparse
from pathlib import Path

import bitsandbytes as bnb
import bitsandbytes.functional as F
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig


def dequantized(weight: torch.Tensor, state) -> torch.Tensor:
    """Returns the values of a 4-bit weight. Block `i` covers the elements `64 i` to `64 i + 63` of the flat weight."""
    packed, count = weight.flatten(), state.shape.numel()
    codes = torch.stack([packed >> 4, packed & 15], 1).flatten()[:count].long()
    scales = state.absmax
    if state.nested:
        scales = F.dequantize_blockwise(state.absmax, state.state2) + state.offset
    scales = scales.float().repeat_interleave(state.blocksize)[:count]
    return (state.code.float()[codes] * scales).reshape(state.shape)


def logits(model, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(ids).logits[0].float()


def compare(folder: Path) -> None:
    golden = load_file(folder / "logits.safetensors")
    ids, expected = golden["prompt_0.ids"][None], golden["prompt_0.logits_nf4"]
    load = lambda **options: AutoModelForCausalLM.from_pretrained(
        folder / "model", dtype=torch.float32, attn_implementation="eager", **options
    ).eval()
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    quantized = load(quantization_config=settings, device_map="cpu")
    defined = load()
    modules = dict(defined.named_modules())
    for name, module in quantized.named_modules():
        if isinstance(module, bnb.nn.Linear4bit):
            modules[name].weight.data = dequantized(module.weight.data, module.weight.quant_state)
    through, by_definition = logits(quantized, ids), logits(defined, ids)
    largest = lambda a, b: float((a - b).abs().max())
    print(
        f"{folder.name}: bitsandbytes and definition {largest(through, by_definition):.1e}, "
        f"bitsandbytes and golden {largest(through, expected):.2f}, "
        f"definition and golden {largest(by_definition, expected):.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("goldens", type=Path)
    parser.add_argument("families", nargs="+")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for family in options.families:
        compare(options.goldens / family)


if __name__ == "__main__":
    main()
