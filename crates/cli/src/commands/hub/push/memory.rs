//! Predicts the memory of a push.

use std::fs;
use std::path::Path;

use danlu_adapter::{MLX_WEIGHTS_FILE, PICKLE_FILE};
use danlu_hub::MAX_COMMIT_BYTES;

use crate::memory_forecast::MemoryForecast;

/// Predicts the memory of a push of `folder`, from the sizes of its files.
pub fn forecast(folder: &Path) -> MemoryForecast {
    let mut forecast = MemoryForecast::new();
    let mut small = 0;
    // If the folder cannot be read, a later step reports the error.
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let (name, bytes) = (entry.file_name(), fs::metadata(entry.path()).map_or(0, |file| file.len()));
        match name.to_string_lossy() {
            name if name == "tokenizer.json" => forecast.add_tokenizer_file(bytes),
            // An adapter in pickle or MLX format is read whole, and written in PEFT's format.
            name if name == PICKLE_FILE || name == MLX_WEIGHTS_FILE => forecast.add_working(2 * bytes),
            name if name.ends_with(".safetensors") => forecast.add_file(bytes),
            _ => small += bytes,
        }
    }
    // The body of the commit contains the small files in base64.
    let small = small.min(MAX_COMMIT_BYTES);
    forecast.add_working(small + small.div_ceil(3) * 4);
    forecast
}
