//! `danlu serve`: serves a base and its adapters over HTTP.

mod args;
mod load_test;
mod memory;

use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use danlu_kernels::Backend;
use danlu_loader::{LoadedBase, ModelFiles, ModelTokens, choose_quantization, folder_name};
use danlu_serve::{AdapterSource, ServeOptions, ServedAdapter, Server};
use danlu_train::memory::{available, display};

pub use args::ServeArgs;
use memory::ServeLimits;

use crate::args::chat_template::with_chat_template;
use crate::diagnostic::{Diagnostic, Result};
use crate::interrupt;
use crate::model_loader::{ModelLoader, hub_name, token_check};
use crate::printer::Printer;
use crate::style::Style;

pub const EXAMPLES: &str = "\
Examples:
  danlu serve danlu-demo/adapter
  danlu serve danlu-demo/base-8m --adapter palace=danlu-demo/adapter
  danlu serve danlu-demo/base-8m --watch palace=danlu-demo/adapter --port 8001
  danlu serve danlu-demo/base-8m --bench 8x8
  DANLU_API_KEY=secret danlu serve danlu-demo/base-8m --host 0.0.0.0

Clients of OpenAI, vLLM and Ollama work with it: their `model` is the name of the base or of an adapter. \
Ctrl-C finishes the running replies, a second Ctrl-C ends at once.";

/// Interval between two checks for a signal.
const INTERVAL: Duration = Duration::from_millis(50);

/// Serves until a signal arrives.
///
/// # Errors
/// If the model or an adapter cannot be loaded, or the address cannot be bound.
pub fn run(args: &ServeArgs, printer: &Printer) -> Result<()> {
    let dtype = args.compute.dtype(args.dtype)?;
    let backend = args.compute.backend(dtype.dtype())?;
    dtype.announce(&*backend, printer);
    let loader = ModelLoader::new(printer);
    let files = loader.open(&args.path, args.base.as_deref())?;
    let limits = ServeLimits::choose(args, files.base().config(), free_memory(&*backend))?;
    let mut options = serve_options(args, &files, &limits);
    let (base, tokens) = load(args, &loader, &files, backend, printer)?;
    forecast(&limits, &base, printer);
    if let Some(size) = args.bench {
        let _folder = load_test::add_adapters(&mut options, size, &base)?;
        let server = Server::start(base, tokens, options.clone())?;
        let _graceful = interrupt::graceful_stop(None)?;
        return load_test::measure(&server, &options, size, printer);
    }
    let server = Server::start(base, tokens, options.clone())?;
    announce(&server, &options, printer);
    let _graceful = interrupt::graceful_stop(Some(printer.pick(
        "正在收尾：不再接受新请求，等待进行中的回复（再按一次 Ctrl-C 立即结束）".to_owned(),
        "finishing: no new requests, running replies go on (a second Ctrl-C ends at once)".to_owned(),
    )))?;
    while !interrupt::requested() {
        if !server.is_alive() {
            return Err(Diagnostic::bug("cannot go on serving: the engine or the HTTP thread has ended"));
        }
        thread::sleep(INTERVAL);
    }
    let cut_off = server.drain(Duration::from_secs(args.shutdown_timeout));
    if cut_off > 0 {
        printer.warn(&printer.pick(
            format!("{cut_off} 个请求未能在 --shutdown-timeout 内完成，已中断"),
            format!("{cut_off} requests did not finish within --shutdown-timeout, and were cut off"),
        ));
    }
    Ok(())
}

/// Returns the free memory of the device that holds keys, values and adapters.
fn free_memory(backend: &dyn Backend) -> Option<u64> {
    match backend.device_memory() {
        Some(memory) => Some(memory.free),
        None => available(),
    }
}

fn load(
    args: &ServeArgs,
    loader: &ModelLoader<'_>,
    files: &ModelFiles,
    backend: Arc<dyn Backend>,
    printer: &Printer,
) -> Result<(Arc<LoadedBase>, ModelTokens)> {
    let choice = args.quant.choice()?;
    let quantization = loader.run(|_, notices| choose_quantization(files, choice, notices))?;
    let threads = args.compute.threads();
    let base_files = Arc::clone(files.base());
    let base = loader.run(|loader, _| loader.load_base(base_files, quantization, threads, backend))?;
    let check = token_check(args.allow_template_mismatch);
    let tokens = loader.run(|_, notices| {
        let base = ModelFiles::open_on(Arc::clone(files.base()), None)?;
        ModelTokens::read(&base, check, notices)
    })?;
    tokens.tokenizer.limit_ids(base.decoder().config());
    let ModelTokens { tokenizer, default_system } = tokens;
    let tokenizer = with_chat_template(tokenizer, args.chat_template.as_deref(), printer)?;
    Ok((Arc::new(base), ModelTokens { tokenizer, default_system }))
}

fn serve_options(args: &ServeArgs, files: &ModelFiles, limits: &ServeLimits) -> ServeOptions {
    let mut adapters = args.adapter.clone();
    if let Some(folder) = files.adapter_folder() {
        let own = ServedAdapter { name: files.name(), source: AdapterSource::Folder(folder.to_owned()) };
        adapters.insert(0, own);
    }
    let base_names = match &args.served_model_name[..] {
        [] => vec![base_name(args, files)],
        names => names.to_vec(),
    };
    ServeOptions {
        host: args.host.clone(),
        port: args.port,
        base_names,
        api_key: args.api_key(),
        admin_key: args.admin_key(),
        is_insecure: args.insecure,
        allows_updates: args.allow_adapter_updates,
        adapter_root: args.adapter_root.clone(),
        allow_hub: args.allow_hub.clone(),
        adapters,
        watches: args.watch.clone(),
        max_adapter_bytes: limits.adapter_bytes,
        context: limits.context,
        max_running: usize::from(args.max_num_seqs),
        max_queued: args.max_num_queued_reqs.unwrap_or(8 * u32::from(args.max_num_seqs)) as usize,
        max_kv_tokens: limits.kv_tokens,
        prefill_tokens: args.max_num_batched_tokens,
        prefix_cache: !args.no_enable_prefix_caching,
        ..ServeOptions::default()
    }
}

/// Returns the base's name on the Hub, or the name of its folder.
fn base_name(args: &ServeArgs, files: &ModelFiles) -> String {
    let typed: &Path = match (&args.base, files.adapter()) {
        (Some(base), _) => base,
        (None, None) => &args.path,
        (None, Some(_)) => files.base().folder(),
    };
    hub_name(typed).map_or_else(|| folder_name(files.base().folder()), |name| name.id().to_owned())
}

/// Prints how much memory the server may use.
fn forecast(limits: &ServeLimits, base: &LoadedBase, printer: &Printer) {
    let weights = display(base.files().weights().total_bytes());
    let (kv, adapters) = (display(limits.kv_bytes), display(limits.adapter_bytes));
    let (tokens, context) = (limits.kv_tokens, limits.context);
    printer.status_bilingual(
        &format!("内存：基座文件 {weights}，键和值至多 {kv}（{tokens} 词元，每个对话 {context}），适配器至多 {adapters}"),
        &format!(
            "Memory: base files {weights}, keys and values up to {kv} ({tokens} tokens, {context} a conversation), \
             adapters up to {adapters}"
        ),
    );
}

/// Prints the address of the server, the models that it serves, and a request to paste.
fn announce(server: &Server, options: &ServeOptions, printer: &Printer) {
    let url = format!("http://{}", server.address());
    let names: Vec<String> = options.base_names.iter().cloned().chain(server.adapters()).collect();
    let model = server.adapters().into_iter().next().unwrap_or_else(|| options.base_names[0].clone());
    let key = if options.api_key.is_some() { " -H \"Authorization: Bearer $DANLU_API_KEY\"" } else { "" };
    let question = printer.pick("你是谁？", "Who are you?");
    let body = serde_json::json!({"model": model, "messages": [{"role": "user", "content": question}]});
    let url_shown = printer.paint_status(Style::Bold, &url);
    printer.status_bilingual(
        &format!("正在提供服务：{url_shown}，模型 {}", names.join("、")),
        &format!("Serving at {url_shown}: {}", names.join(", ")),
    );
    let body = danlu_model::shell_word(&body.to_string());
    printer.status(&format!("  curl {url}/v1/chat/completions{key} -d {body}"));
}
