//! Computes, by formula, the FLOP and bytes that any implementation needs.
//!
//! Recomputation, packing and conversion do not count. A multiply-add counts as two FLOP.

use danlu_kernels::LoraRef;
use danlu_model::{LoraSource, ModelConfig, Projection};

/// Numbers of tokens of one sequence in a forward pass.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// Number of new tokens, which the pass computes.
    pub new: usize,
    /// Number of tokens that the last new token attends to: the earlier tokens, and all new tokens.
    pub all: usize,
}

impl Span {
    /// Returns the span of a whole sequence.
    pub fn whole(tokens: usize) -> Self {
        Self { new: tokens, all: tokens }
    }

    /// Returns the number of query-key pairs of causal attention.
    fn pairs(self) -> f64 {
        let (new, all) = (self.new as f64, self.all as f64);
        new * (all - new) + new * (new + 1.0) / 2.0
    }
}

/// Returns the FLOP of a forward pass without an adapter. The head computes `head_rows` rows.
///
/// The projections take `2 P` per token for `P` weights. Attention takes `4 NH HS` per query-key pair for
/// `NH` heads of size `HS`. The head takes `2 V C` per row for a vocabulary of `V` and a width of `C`. After
/// the attention of the last layer, only the rows for the head are computed.
pub fn forward(config: &ModelConfig, spans: &[Span], head_rows: usize) -> f64 {
    let tokens: usize = spans.iter().map(|span| span.new).sum();
    let products = |layer| {
        let product = |p| 2.0 * rows(config, layer, p, tokens, head_rows) * weight(config, p);
        config.projections().map(product).sum::<f64>()
    };
    let layers = config.num_hidden_layers;
    let layers = (0..layers).map(products).sum::<f64>() + layers as f64 * attention(config, spans);
    layers + head(config, head_rows)
}

/// Returns the FLOP of a forward and backward pass over sequences with `labels` trained tokens. A shared
/// prefix counts once.
///
/// The backward pass of a frozen weight is one more matrix multiplication, which computes `dinp`, the
/// gradient of its input. Layers below the lowest adapter have no backward pass. For attention and for the
/// pair `A`, `B` of an adapter, the backward pass costs twice the forward pass. If every projection has an
/// adapter, both passes together take about `4 P` per token for `P` weights.
pub fn training(config: &ModelConfig, lora: &dyn LoraSource, spans: &[Span], labels: usize) -> f64 {
    let tokens = spans.iter().map(|span| span.new).sum::<usize>();
    let has_pair = |layer| config.projections().any(|p| lora.pair(layer, p).is_some());
    let lowest = (0..config.num_hidden_layers).find(|&layer| has_pair(layer));

    let mut flops = forward(config, spans, labels) + head(config, labels);
    for layer in lowest.into_iter().flat_map(|lowest| lowest..config.num_hidden_layers) {
        flops += 2.0 * attention(config, spans);
        for p in config.projections() {
            let rows = rows(config, layer, p, tokens, labels);
            // The input of the lowest layer with an adapter needs no gradient, so q, k and v of this layer
            // compute no `dinp`, the gradient of their input.
            let wanted = Some(layer) != lowest || !reads_the_input(p);
            flops += if wanted { 2.0 * rows * weight(config, p) } else { 0.0 };
            let Some(LoraRef { rank, d_in, d_out, .. }) = lora.pair(layer, p) else { continue };
            let side = |d: usize| 2.0 * rows * (rank * d) as f64;
            let (mid, out) = (side(d_in), side(d_out));
            let dinp = if wanted { side(d_in) } else { 0.0 };
            // The forward pass costs `mid + out`. In the backward pass, `dmid` and `dB` cost `out` each, and
            // `dA` costs `mid`.
            flops += mid + out + 2.0 * out + mid + dinp;
        }
    }
    flops
}

/// Returns the bytes that are read to decode one token per span: the bytes of the `weights`, and the f32 keys
/// and values of all spans.
pub fn decode_bytes(config: &ModelConfig, weights: u64, spans: &[Span]) -> f64 {
    let width = config.num_key_value_heads * config.head_dim * size_of::<f32>();
    let rows: usize = spans.iter().map(|span| span.all).sum();
    weights as f64 + (2 * config.num_hidden_layers * rows * width) as f64
}

/// Returns the number of rows for which a projection is computed. In the last layer, the projections after
/// the attention are computed only for the rows of the head.
fn rows(config: &ModelConfig, layer: usize, p: Projection, tokens: usize, head_rows: usize) -> f64 {
    let all = layer + 1 < config.num_hidden_layers || reads_the_input(p);
    (if all { tokens } else { head_rows }) as f64
}

fn reads_the_input(p: Projection) -> bool {
    p.is_before_attention()
}

fn weight(config: &ModelConfig, p: Projection) -> f64 {
    let (d_out, d_in) = config.projection_shape(p);
    d_out as f64 * d_in as f64
}

/// Returns the FLOP of one layer's attention in a forward pass, for the scores and for the weighted sum of
/// the values.
fn attention(config: &ModelConfig, spans: &[Span]) -> f64 {
    let pairs: f64 = spans.iter().map(|span| span.pairs()).sum();
    4.0 * (config.num_attention_heads * config.head_dim) as f64 * pairs
}

fn head(config: &ModelConfig, rows: usize) -> f64 {
    2.0 * rows as f64 * config.vocab_size as f64 * config.hidden_size as f64
}

#[cfg(test)]
mod tests {
    use danlu_adapter::{Adapter, LoraConfig, TargetModules};
    use danlu_kernels::Reference;
    use danlu_model::Preset;

    use super::*;

    fn adapter(config: &ModelConfig, targets: TargetModules) -> Adapter {
        let lora = LoraConfig { target_modules: targets, ..LoraConfig::new(8, 32.0) };
        Adapter::init(lora, config, 1, &Reference::new()).unwrap()
    }

    /// Returns the number of weight elements in one layer, over the projections for which `counts` is true.
    fn elements(config: &ModelConfig, counts: impl Fn(Projection) -> bool) -> f64 {
        config.projections().filter(|&p| counts(p)).map(|p| weight(config, p)).sum()
    }

    /// Returns the number of parameters in `A` and `B` of a projection.
    fn pair_size(adapter: &Adapter, p: Projection) -> usize {
        adapter.pair(0, p).map_or(0, |pair| pair.rank * (pair.d_in + pair.d_out))
    }

    #[test]
    fn training_costs_four_flop_a_weight_and_token_with_everything_adapted() {
        let config = Preset::Llama125m.config();
        let adapter = adapter(&config, TargetModules::AllLinear);
        let layers = elements(&config, |_| true) * config.num_hidden_layers as f64;
        let (spans, labels) = ([Span::whole(512); 2], 1024);
        let total = training(&config, &adapter, &spans, labels);
        // All projections have adapters of rank 8. The forward and the backward pass of an adapter together
        // cost `6 R (IN + OUT)` per token.
        let expected = 4.0 * layers * 1024.0
            + 3.0 * attention(&config, &spans) * config.num_hidden_layers as f64
            + 2.0 * head(&config, labels)
            + 6.0 * adapter.num_parameters() as f64 * 1024.0;
        // In the lowest layer, q, k and v and their adapters compute no gradient of their input.
        let (c, q, kv) = (768.0, 768.0, 256.0);
        let spared = 2.0 * 1024.0 * (c * (q + 2.0 * kv) + 3.0 * 8.0 * c);
        assert!((total - (expected - spared)).abs() < 1e-9 * expected, "{total} {expected}");
    }

    #[test]
    fn rows_that_do_not_reach_the_head_end_at_the_last_attention() {
        let config = Preset::Base8m.config();
        let adapter = adapter(&config, TargetModules::AllLinear);
        let behind = elements(&config, |p| !reads_the_input(p));
        let spared = |all: f64, one: f64| (all - one - 99.0 * head(&config, 1)) / (99.0 * behind);
        let prompt = [Span::whole(100)];
        assert_eq!(spared(forward(&config, &prompt, 100), forward(&config, &prompt, 1)), 2.0);
        // A training step costs 4 FLOP per element of a weight, and 6 FLOP per element of `A` and `B`. The
        // head has a forward and a backward pass, and `spared` subtracts only one of them.
        let pairs: usize =
            config.projections().filter(|&p| !reads_the_input(p)).map(|p| pair_size(&adapter, p)).sum();
        let (all, one) = (training(&config, &adapter, &prompt, 100), training(&config, &adapter, &prompt, 1));
        let expected = 4.0 + 6.0 * pairs as f64 / behind;
        let found = spared(all - 99.0 * head(&config, 1), one);
        assert!((found - expected).abs() < 1e-9 * expected, "{found} {expected}");
    }

    #[test]
    fn nothing_is_counted_below_the_lowest_pair() {
        let config = Preset::Base8m.config();
        let top = adapter(&config, TargetModules::Regex(r".*layers\.7\..*_proj".to_owned()));
        let all = adapter(&config, TargetModules::AllLinear);
        let whole = [Span::whole(64)];
        let backward = |lora: &Adapter| {
            training(&config, lora, &whole, 64) - forward(&config, &whole, 64) - head(&config, 64)
        };
        assert!(backward(&top) < backward(&all) / 8.0);
    }

    #[test]
    fn a_prompt_in_pieces_costs_the_same_as_whole() {
        let config = Preset::Base8m.config();
        let pieces = [Span { new: 100, all: 100 }, Span { new: 50, all: 150 }];
        let (whole, parts) = (forward(&config, &[Span::whole(150)], 1), forward(&config, &pieces, 1));
        assert!((whole - parts).abs() < 1e-6 * whole, "{whole} {parts}");
    }

    #[test]
    fn decoding_reads_the_weights_once_and_the_cache_of_every_sequence() {
        let config = Preset::Base8m.config();
        let bytes = decode_bytes(&config, 1000, &[Span { new: 1, all: 10 }, Span { new: 1, all: 30 }]);
        assert_eq!(bytes, 1000.0 + (2 * 8 * 40 * 2 * 64 * 4) as f64);
    }
}
