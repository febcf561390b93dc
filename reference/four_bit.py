"""Writes crates/kernels/tests/expected/four_bit.safetensors: matrices that bitsandbytes quantized to 4 bits on the CPU.

    OMP_NUM_THREADS=1 python reference/four_bit.py

README.md in this folder describes each tensor.
"""

from pathlib import Path

import bitsandbytes.functional as F
import torch
from safetensors.torch import save_file

EXPECTED = Path(__file__).resolve().parent.parent / "crates/kernels/tests/expected"
SEED = 20_240_608


def midpoints(code: torch.Tensor) -> torch.Tensor:
    """Returns values at, just above and just below the bounds between neighbouring table values. The largest is 1."""
    ordered = code.sort().values
    bounds = (ordered[:-1] + ordered[1:]) / 2
    up, down = torch.tensor(2.0), torch.tensor(-2.0)
    values = torch.cat([bounds, torch.nextafter(bounds, up), torch.nextafter(bounds, down), ordered])
    return torch.cat([values, torch.zeros(-len(values) % 64), torch.ones(1)])


def matrices(generator: torch.Generator):
    """Yields name, values and block size of each case."""
    normal = lambda *shape: torch.randn(*shape, generator=generator) * 0.02
    extreme = normal(8, 64)
    extreme[0, 0], extreme[1, 1], extreme[2] = 1e30, -1e-40, extreme[2] * 1e-38
    zeros = normal(6, 64)
    zeros[1], zeros[3, 1:] = 0.0, -0.0
    yield "normal_f32", normal(40, 128), 64
    yield "normal_bf16", normal(66, 256).bfloat16(), 64
    yield "normal_f16", normal(20, 128).half(), 64
    yield "odd", normal(7, 37), 64
    yield "ragged_bf16", normal(13, 70).bfloat16(), 128
    yield "long_blocks", normal(17, 300), 4096
    yield "extreme", extreme, 64
    yield "zeros", zeros, 64
    for quant_type in ["nf4", "fp4"]:
        yield f"midpoints_{quant_type}", midpoints(F.get_4bit_type(quant_type, device="cpu")), 64


def main():
    tensors = {f"code_{q}": F.get_4bit_type(q, device="cpu") for q in ["nf4", "fp4"]}
    tensors["code_dynamic_u8"] = F.create_dynamic_map()
    for name, values, block_size in matrices(torch.Generator().manual_seed(SEED)):
        tensors[f"{name}.{block_size}.input"] = values
        for quant_type in ["nf4", "fp4"]:
            prefix = f"{name}.{block_size}.{quant_type}"
            packed, state = F.quantize_4bit(values, blocksize=block_size, quant_type=quant_type)
            tensors[f"{prefix}.packed"] = packed.flatten()
            tensors[f"{prefix}.absmax"] = state.absmax.clone()
            tensors[f"{prefix}.values"] = F.dequantize_4bit(packed, state)
            packed, state = F.quantize_4bit(
                values, blocksize=block_size, quant_type=quant_type, compress_statistics=True
            )
            assert torch.equal(packed.flatten(), tensors[f"{prefix}.packed"])
            tensors[f"{prefix}.nested.codes"] = state.absmax
            tensors[f"{prefix}.nested.absmax"] = state.state2.absmax.clone()
            tensors[f"{prefix}.nested.offset"] = state.offset.reshape(1).clone()
            tensors[f"{prefix}.nested.values"] = F.dequantize_4bit(packed, state)
    EXPECTED.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, EXPECTED / "four_bit.safetensors")


if __name__ == "__main__":
    main()
