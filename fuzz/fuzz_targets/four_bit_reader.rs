//! `just fuzz four_bit_reader 180`, from the valid weights in `seeds`.
//!
//! Reads one 4-bit weight. The input has the lengths of the tensors, and then the JSON of the quantization
//! state. The file format itself is always valid, so that the fuzzer tests contradictions between the
//! tensors.

#![no_main]

use std::path::Path;

use danlu_model::Weights;
use libfuzzer_sys::fuzz_target;

const WEIGHT: &str = "model.layers.0.self_attn.q_proj.weight";
const PARTS: [(&str, bool); 6] = [
    ("", false),
    (".absmax", false),
    (".absmax", true),
    (".quant_map", true),
    (".nested_absmax", true),
    (".nested_quant_map", true),
];

fuzz_target!(|data: &[u8]| {
    let Some((head, state)) = data.split_first_chunk::<16>() else { return };
    let (mut header, mut bytes) = (Vec::new(), Vec::new());
    let mut add = |name: String, dtype: &str, size: usize, count: usize, fill: u8| {
        let start = bytes.len();
        bytes.resize(start + size * count, fill);
        let end = bytes.len();
        header.push(format!(
            r#""{name}":{{"dtype":"{dtype}","shape":[{count}],"data_offsets":[{start},{end}]}}"#
        ));
    };
    for (i, (part, is_float)) in PARTS.into_iter().enumerate() {
        // `PARTS` has two entries for `.absmax`, of which one is written.
        if part == ".absmax" && is_float != (head[15] % 2 == 1) {
            continue;
        }
        let count = usize::from(u16::from_le_bytes([head[2 * i], head[2 * i + 1]]));
        let (dtype, size) = if is_float { ("F32", 4) } else { ("U8", 1) };
        add(format!("{WEIGHT}{part}"), dtype, size, count, head[12 + i % 3]);
    }
    let code = if head[15] & 2 == 0 { "nf4" } else { "fp4" };
    add(format!("{WEIGHT}.quant_state.bitsandbytes__{code}"), "U8", 1, state.len(), 0);
    let place = bytes.len() - state.len();
    bytes[place..].copy_from_slice(state);
    let header = format!("{{{}}}", header.join(","));
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(&bytes);

    let weights = Weights::from_bytes(Path::new("model.safetensors"), file).expect("a valid container");
    let Ok(tensors) = weights.model_tensors() else { return };
    for info in tensors {
        if let Ok(weight) = weights.tensor(&info) {
            weight.to_vec();
        }
    }
});
