//! `danlu serve --bench 8x8`: measures the server with clients of its own.

use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use danlu_adapter::{Adapter, LoraConfig};
use danlu_kernels::rng::{self, Stream};
use danlu_loader::LoadedBase;
use danlu_serve::{AdapterSource, LoadRound, LoadTest, ServeOptions, ServedAdapter, Server};

use crate::commands::bench::{median, stopped};
use crate::diagnostic::{Diagnostic, Result};
use crate::interrupt;
use crate::printer::Printer;
use crate::temp_dirs::TrackedTempDir;

/// Number of measured rounds with the base. As many are measured with adapters.
const ROUNDS: usize = 9;

/// Number of new tokens of each reply.
const TOKENS: usize = 64;

/// Rank of the random adapters.
const RANK: u32 = 8;

/// Maximum number of clients or adapters.
const MAX_COUNT: usize = 1024;

/// Numbers of clients and adapters, such as `8x8`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadSize {
    pub clients: usize,
    pub adapters: usize,
}

impl FromStr for LoadSize {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let count = |text: &str| text.parse().ok().filter(|n| (1..=MAX_COUNT).contains(n));
        let pair =
            text.split_once('x').and_then(|(clients, adapters)| Some((count(clients)?, count(adapters)?)));
        let (clients, adapters) =
            pair.ok_or_else(|| format!("expected CLIENTSxADAPTERS, such as 8x8, each at most {MAX_COUNT}"))?;
        Ok(Self { clients, adapters })
    }
}

/// Adds adapters with random weights until there are as many as `size` requires. Returns their folder.
///
/// # Errors
/// If a file cannot be written.
pub fn add_adapters(options: &mut ServeOptions, size: LoadSize, base: &LoadedBase) -> Result<TrackedTempDir> {
    let folder = TrackedTempDir::new_in(&std::env::temp_dir())?;
    for i in options.adapters.len()..size.adapters {
        let name = format!("random-{i}");
        let path = folder.path().join(&name);
        write_adapter(&path, base, i as u64)?;
        options.adapters.push(ServedAdapter { name, source: AdapterSource::Folder(path) });
    }
    options.max_running = options.max_running.max(size.clients);
    options.port = 0;
    Ok(folder)
}

fn write_adapter(folder: &Path, base: &LoadedBase, seed: u64) -> Result<()> {
    let (config, backend) = (base.decoder().config(), &**base.decoder().backend());
    let mut adapter = Adapter::init(LoraConfig::new(RANK, f64::from(RANK)), config, seed, backend)?;
    let mut stream = Stream::new(rng::key(&[seed]));
    let values: Vec<f32> =
        (0..adapter.num_parameters()).map(|_| (stream.next_uniform() - 0.5) * 0.01).collect();
    backend.write(&mut adapter.params, 0, &values);
    Ok(adapter.save(folder, backend)?)
}

/// Runs rounds alternately with the base and with the adapters, and prints both rates.
///
/// # Errors
/// If a request fails.
pub fn measure(server: &Server, options: &ServeOptions, size: LoadSize, printer: &Printer) -> Result<()> {
    let test = LoadTest { address: server.address(), api_key: options.api_key.clone(), tokens: TOKENS };
    let base = vec![options.base_names[0].clone(); size.clients];
    let adapters: Vec<String> =
        server.adapters().into_iter().cycle().take(size.adapters).cycle().take(size.clients).collect();
    let LoadSize { clients, adapters: distinct } = size;
    printer.status_bilingual(
        &format!("{clients} 个客户端，{distinct} 个适配器，各 {ROUNDS} 轮，每条回复 {TOKENS} 词元"),
        &format!("{clients} clients, {distinct} adapters, {ROUNDS} rounds each, {TOKENS} tokens a reply"),
    );
    let run = |models: &[String], round: usize| {
        test.run(models, round)
            .map_err(|error| Diagnostic::input(format!("cannot measure the server: {error}")))
    };
    // The first round reads the weights into memory.
    run(&base, 0)?;
    run(&adapters, 0)?;
    let (mut of_base, mut of_adapters) = (Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        if interrupt::requested() {
            return Err(stopped());
        }
        of_base.push(run(&base, round)?);
        of_adapters.push(run(&adapters, round)?);
    }
    print_rounds(("基座", "base"), &of_base, printer);
    print_rounds(("适配器", "adapters"), &of_adapters, printer);
    let rate = |round: &LoadRound| round.tokens_per_second;
    let shares: Vec<f64> = of_base.iter().zip(&of_adapters).map(|(b, a)| rate(a) / rate(b)).collect();
    let (least, most) = range(&shares);
    let share = median(shares);
    printer.data(&printer.pick(
        format!("适配器速度为基座的 {share:.2} 倍（{least:.2} 至 {most:.2}）"),
        format!("adapters keep {share:.2} of the base's rate ({least:.2} to {most:.2})"),
    ));
    Ok(())
}

fn range(values: &[f64]) -> (f64, f64) {
    values.iter().fold((f64::INFINITY, 0.0), |(least, most), &x| (x.min(least), x.max(most)))
}

fn print_rounds(name: (&str, &str), rounds: &[LoadRound], printer: &Printer) {
    let rates: Vec<f64> = rounds.iter().map(|round| round.tokens_per_second).collect();
    let (least, most) = range(&rates);
    let rate = median(rates);
    let mut times: Vec<Duration> = rounds.iter().flat_map(|round| round.first_tokens.clone()).collect();
    times.sort();
    let at = |share: f64| times[((times.len() - 1) as f64 * share).round() as usize].as_secs_f64() * 1e3;
    let (p50, p99) = (at(0.5), at(0.99));
    printer.data(&printer.pick(
        format!(
            "{}：{rate:.1} 词元/秒（{least:.1} 至 {most:.1}），首个词元 p50 {p50:.0} 毫秒，p99 {p99:.0} 毫秒",
            name.0
        ),
        format!(
            "{}: {rate:.1} tokens/s ({least:.1} to {most:.1}), first token p50 {p50:.0} ms, p99 {p99:.0} ms",
            name.1
        ),
    ));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_parsed() {
        assert_eq!("8x4".parse(), Ok(LoadSize { clients: 8, adapters: 4 }));
        for wrong in ["8", "x", "0x1", "1x2000", "8X8", "-1x1"] {
            assert!(wrong.parse::<LoadSize>().is_err(), "{wrong}");
        }
    }
}
