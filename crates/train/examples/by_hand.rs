//! `cargo run --release -p danlu-train --example by_hand -- out/by-hand`
//!
//! One LoRA fine-tuning from start to end without a trainer: load a base, add an adapter, take ten steps,
//! merge. `danlu_train::Trainer` takes the same steps, and adds a data order, dropout, checkpoints and a
//! memory plan.
//!
//! ```text
//! step  1  loss 7.6066  gradient norm 9.4460
//! ...
//! step 10  loss 0.0037  gradient norm 0.0589
//! merged 56 projections into out/by-hand
//! base + adapter and the merged model differ by at most 0.000000 in any loss
//! ```

use std::error::Error;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use danlu_adapter::merge::{MergeOptions, merge};
use danlu_adapter::{Adapter, LoraConfig};
use danlu_data::{EncodeOptions, ReadOptions, encode, read_from};
use danlu_kernels::{AdamW, Backend, Buffer, Cpu, CpuOptions, DType, Element};
use danlu_model::{Batch, Decoder, LabeledSequence, LoraRows, LoraSource, Tokenizer, Workspace};

/// Two conversations, each with a question and the answer to learn.
const DATA: &str = r#"
{"prompt": "你是谁？", "completion": "臣妾是甄嬛，家父是大理寺少卿甄远道。"}
{"prompt": "你叫什么名字？", "completion": "臣妾姓甄，单名一个嬛字。"}
"#;

const STEPS: u32 = 10;
const LEARNING_RATE: f32 = 3e-3;
const MAX_GRAD_NORM: f64 = 1.0;

fn main() -> Result<(), Box<dyn Error>> {
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cli/assets/base-8m");
    let output = std::env::args().nth(1).unwrap_or_else(|| "out/by-hand".to_owned());
    run(&base, Path::new(&output)).map(drop)
}

/// Trains an adapter for the model in `base` and writes the merged model to `output`. Returns the loss of
/// each step.
pub fn run(base: &Path, output: &Path) -> Result<Vec<f64>, Box<dyn Error>> {
    // The back end runs all operations. The decoder refers to the frozen weights, which are in memory-mapped
    // files.
    let backend: Arc<dyn Backend> = Arc::new(Cpu::new(CpuOptions::default()));
    let decoder = Decoder::load(base, Arc::clone(&backend))?;

    // A new adapter does not change the model, because B is zero. One flat buffer contains all parameters.
    let config = LoraConfig::new(8, 16.0);
    let mut adapter = Adapter::init(config, decoder.config(), 42, &*backend)?;

    let sequences = tokenize(base)?;
    let mut optimizer = Optimizer::new(&*backend, adapter.num_parameters());
    let (mut work, mut losses) = (Workspace::new(), Vec::new());
    for step in 1..=STEPS {
        let (loss, norm) = optimizer.step(&decoder, &mut work, &mut adapter, &sequences, step)?;
        println!("step {step:>2}  loss {loss:.4}  gradient norm {norm:.4}");
        losses.push(loss);
    }

    // The merge computes W + scaling · B A, one tensor at a time. The result is an ordinary model folder.
    let options = MergeOptions { dtype: Some(DType::F32), ..MergeOptions::default() };
    let report = merge(base, &adapter, &*backend, output, &options, &mut |_| ControlFlow::Continue(()))?;
    println!("merged {} projections into {}", report.merged_tensors, output.display());

    let merged = Decoder::load(output, backend)?;
    let batch = Batch::new(&sequences);
    let with_adapter = decoder.losses(&mut work, &batch, Some(&adapter as &dyn LoraSource))?;
    let as_merged = merged.losses(&mut Workspace::new(), &batch, None)?;
    let difference = with_adapter.iter().zip(&as_merged).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    println!("base + adapter and the merged model differ by at most {difference:.6} in any loss");
    if difference > 1e-3 {
        return Err(format!("the merge changed a loss by {difference}, expected at most 0.001").into());
    }
    Ok(losses)
}

/// Tokenizes the conversations. The loss mask selects the answers.
fn tokenize(base: &Path) -> Result<Vec<LabeledSequence>, Box<dyn Error>> {
    let tokenizer = Tokenizer::read(base)?;
    let records = read_from(DATA.as_bytes(), "data.jsonl".as_ref(), &ReadOptions::default())?.records;
    let mut sequences = Vec::new();
    for record in &records {
        let encoded = encode(record, &tokenizer, &EncodeOptions::default());
        sequences.push(encoded.map_err(|fault| fault.to_string())?.sequence);
    }
    Ok(sequences)
}

/// The gradient and AdamW's two moments. Each has the same layout as the adapter's parameters.
struct Optimizer {
    grads: Buffer,
    first: Buffer,
    second: Buffer,
    len: usize,
}

impl Optimizer {
    fn new(backend: &dyn Backend, len: usize) -> Self {
        let alloc = || backend.alloc(len, Element::Exact);
        Self { grads: alloc(), first: alloc(), second: alloc(), len }
    }

    /// Takes one step: forward, backward, clipping, and update. Returns the mean loss and the gradient norm.
    fn step(
        &mut self,
        decoder: &Decoder,
        work: &mut Workspace,
        adapter: &mut Adapter,
        sequences: &[LabeledSequence],
        step: u32,
    ) -> Result<(f64, f64), Box<dyn Error>> {
        let backend = &**decoder.backend();

        // Sequences are concatenated without padding. Attention never crosses the border between two
        // sequences.
        let batch = Batch::new(sequences);
        let lora = [LoraRows::all(&*adapter, batch.rows())];

        // The loss is the mean over all trained tokens, so the gradient of each token is divided by the
        // number of trained tokens.
        let labels = batch.trained_tokens();
        let dloss = 1.0 / labels as f32;
        backend.zero(&mut self.grads, self.len);
        let losses = decoder.losses_and_gradients(work, &batch, &lora, dloss, &mut self.grads)?;
        let loss = losses.iter().map(|&loss| f64::from(loss)).sum::<f64>() / labels as f64;

        // The gradient is scaled to a norm of at most MAX_GRAD_NORM. AdamW then updates all parameters.
        let (mut squares, mut sum) = (backend.alloc_scalars(1), [0.0]);
        backend.sum_of_squares(&mut squares, 0, &self.grads, self.len);
        backend.read_scalars(&mut sum, &squares)?;
        let norm = sum[0].sqrt();
        let update = AdamW {
            learning_rate: LEARNING_RATE,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
            step,
            grad_scale: (MAX_GRAD_NORM / (norm + 1e-6)).min(1.0) as f32,
        };
        let (first, second) = (&mut self.first, &mut self.second);
        backend.adamw(&mut adapter.params, &self.grads, first, second, 0..self.len, update);
        Ok((loss, norm))
    }
}
