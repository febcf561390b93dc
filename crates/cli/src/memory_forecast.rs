//! Predicts the memory of commands that run or convert a model without training it.

use std::path::Path;

use danlu_adapter::fidelity;
use danlu_kernels::BackendOptions;
use danlu_loader::{AdapterFiles, BaseFiles};
use danlu_model::{ModelConfig, Quantization};
use danlu_train::memory::{self, display};
use danlu_train::{InferenceMemory, InferencePass, weight_bytes_of};

use crate::allocator;
use crate::diagnostic::{Diagnostic, Result};
use crate::printer::Printer;

/// Bytes of a tokenizer that do not depend on its vocabulary.
const TOKENIZER_BASE: u64 = 4 << 20;

/// Bytes of a tokenizer per token. Llama 3's 128,256 tokens take 51 MiB in total, and 8,192 tokens 6.6 MiB.
const TOKENIZER_BYTES_PER_TOKEN: u64 = 390;

/// Memory for each byte of `tokenizer.json` while the file is read: 267 MB for the 17 MB of Llama 3.
const TOKENIZER_BYTES_PER_FILE_BYTE: u64 = 15;

/// Stack of the thread that reads tokenizers and renders templates. The system commits only the pages in use.
const GUARDED_STACK: u64 = 32 << 20;

/// Returns the approximate memory of a tokenizer with `vocab_size` tokens, in bytes.
pub fn tokenizer_bytes(vocab_size: usize) -> u64 {
    TOKENIZER_BASE + TOKENIZER_BYTES_PER_TOKEN * vocab_size as u64
}

/// Memory that a command adds to the process, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct MemoryForecast {
    /// Memory of the process before the command loads a model.
    present: u64,
    /// Pages of weight files, which the system can evict and read again.
    mapped: u64,
    /// Quantized weights, and adapters.
    resident: u64,
    /// Temporary memory of the quantization.
    loading: u64,
    /// Working memory for the shortest and for a typical input, such as a prompt of 1 and of 64 tokens.
    working: [u64; 2],
    /// Keys and values of a full conversation. Most conversations use only a part of them.
    cache: u64,
    /// Tokenizers that are not loaded yet.
    tokenizers: u64,
    /// Address space of files that are not mapped yet, and of stacks.
    addresses: u64,
}

impl MemoryForecast {
    /// Measures the memory in use.
    pub fn new() -> Self {
        allocator::trim();
        let present = memory::resident().unwrap_or(0);
        let (mapped, resident, loading, cache, tokenizers, addresses) = Default::default();
        Self { present, mapped, resident, loading, working: [0; 2], cache, tokenizers, addresses }
    }

    /// Adds the weights of an open base. If `quantization` is given, the base is quantized with the given
    /// number of threads.
    pub fn add_base(&mut self, base: &BaseFiles, quantization: Option<(Quantization, usize)>) {
        let bytes = weight_bytes_of(Some(base.weights()), base.config(), quantization, None);
        self.mapped += bytes.mapped;
        self.resident += bytes.resident;
        self.loading = self.loading.max(bytes.loading);
    }

    /// Adds the tensors of an adapter that is not loaded yet.
    pub fn add_adapter(&mut self, adapter: &AdapterFiles) {
        let file = adapter.folder().join(danlu_adapter::WEIGHTS_FILE);
        self.resident += file.metadata().map_or(0, |file| file.len());
    }

    /// Adds a tokenizer that is not loaded yet.
    pub fn add_tokenizer(&mut self, vocab_size: usize) {
        self.tokenizers += tokenizer_bytes(vocab_size);
        self.addresses = self.addresses.max(GUARDED_STACK);
    }

    /// Adds the reading of a `tokenizer.json`, which needs more memory than the tokenizer itself.
    pub fn add_tokenizer_file(&mut self, bytes: u64) {
        self.add_working(TOKENIZER_BYTES_PER_FILE_BYTE * bytes);
        self.addresses += GUARDED_STACK;
    }

    /// Adds a file of weights that is not mapped yet.
    pub fn add_file(&mut self, bytes: u64) {
        self.addresses += bytes;
    }

    /// Adds pages of a mapped file that the command reads.
    pub fn add_pages(&mut self, bytes: u64) {
        self.mapped += bytes;
    }

    /// Adds working memory. If several amounts are added, only the largest counts, because they are not in
    /// use at the same time.
    pub fn add_working(&mut self, bytes: u64) {
        self.working = self.working.map(|before| before.max(bytes));
    }

    /// Adds the working memory of a forward pass over the shortest and over a typical input.
    ///
    /// # Errors
    /// If the back end lacks an operation of the model.
    pub fn add_pass(
        &mut self,
        config: &ModelConfig,
        backend: BackendOptions,
        [least, usual]: [InferencePass; 2],
    ) -> Result<()> {
        let [least, usual] =
            [InferenceMemory::of(config, backend, least)?, InferenceMemory::of(config, backend, usual)?];
        let [before_least, before_usual] = self.working;
        self.working = [before_least.max(least.working), before_usual.max(usual.working)];
        self.cache = self.cache.max(least.cache);
        Ok(())
    }

    /// Adds the passes in which `merge` compares the merged model with base and adapter. Their sequences have
    /// up to `tokens` tokens.
    ///
    /// # Errors
    /// The errors of [`MemoryForecast::add_pass`].
    pub fn add_comparison(
        &mut self,
        config: &ModelConfig,
        backend: BackendOptions,
        tokens: usize,
    ) -> Result<()> {
        let logit_rows = fidelity::logit_rows(config.vocab_size);
        self.add_pass(config, backend, [InferencePass::Comparison { tokens, logit_rows }; 2])
    }

    /// Returns the predicted peak of the process.
    pub fn peak(&self) -> u64 {
        let working = self.working[1].max(self.loading);
        self.present + self.mapped + self.resident + self.tokenizers + working
    }

    /// Returns the memory that the command needs for the shortest input, without pages that the system can
    /// evict.
    fn least(&self) -> u64 {
        self.resident + self.loading.max(self.working[0] + self.cache)
    }

    /// Rejects a command that needs more memory or address space than is free. The error contains `verb` and
    /// `path`.
    ///
    /// # Errors
    /// If the command needs more than is free.
    pub fn check(&self, verb: &str, path: &Path, printer: &Printer) -> Result<()> {
        if printer.verbose {
            let peak = display(self.peak());
            printer.status_bilingual(&format!("预计内存峰值 {peak}"), &format!("predicted peak {peak}"));
        }
        self.check_room(verb, path, memory::free(), memory::address_space())
    }

    fn check_room(&self, verb: &str, path: &Path, free: Option<u64>, space: Option<u64>) -> Result<()> {
        let (path, least) = (path.display(), self.least());
        if let Some(free) = free.filter(|&free| free < least) {
            let (least, free) = (display(least), display(free));
            let text = format!(
                "cannot {verb} `{path}`: it needs at least {least} of memory, and {free} is available"
            );
            let hint = match verb {
                "push" => "use a machine with more memory",
                _ => "use a smaller model, or quantize a 16-bit base with `--quant nf4`",
            };
            return Err(Diagnostic::input(text).with_hint(hint));
        }
        let addresses = least + self.addresses;
        if let Some(space) = space.filter(|&space| space < addresses) {
            let (addresses, space) = (display(addresses), display(space));
            let text = format!(
                "cannot {verb} `{path}`: it needs at least {addresses} of memory, and the limit of the address space leaves {space}"
            );
            return Err(Diagnostic::input(text).with_hint("raise the limit with `ulimit -v`"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_cannot_be_evicted_counts_against_the_free_memory() {
        let mut forecast = MemoryForecast::new();
        forecast.add_pages(1 << 40);
        forecast.add_working(10 << 20);
        forecast.add_file(50 << 20);
        let check = |free: u64, space: Option<u64>| {
            let checked = forecast.check_room("merge", Path::new("out"), Some(free), space);
            checked.map_err(|error| error.render(false))
        };
        assert_eq!(check(10 << 20, None), Ok(()));
        assert_eq!(check(10 << 20, Some(60 << 20)), Ok(()));
        let error = check((10 << 20) - 1, None).unwrap_err();
        assert!(
            error.starts_with("error: cannot merge `out`: it needs at least 10 MiB of memory, and "),
            "{error}"
        );
        let error = check(1 << 40, Some((60 << 20) - 1)).unwrap_err();
        assert!(
            error.contains("at least 60 MiB of memory, and the limit of the address space leaves "),
            "{error}"
        );
        assert!(error.contains("hint: raise the limit with `ulimit -v`"), "{error}");
    }
}
