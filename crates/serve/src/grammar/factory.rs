//! Compiles grammars for one tokenizer.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use danlu_model::{Tokenizer, WorkLimits, run_guarded};
use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie, TokenId};
use llguidance::{Matcher, ParserFactory};

use crate::token_bytes::TokenSpelling;

/// Limits for compiling one grammar.
const COMPILE_LIMITS: WorkLimits = WorkLimits { time: Duration::from_secs(3), bytes: 256 << 20 };

/// Compiles grammars for one tokenizer. Adapters with the same tokenizer share this value, because it
/// contains a trie of the whole vocabulary.
pub(crate) struct GrammarFactory {
    parsers: ParserFactory,
    tokens: TokEnv,
}

impl GrammarFactory {
    /// Returns a factory for the vocabulary of `tokenizer`. A mask has `vocab_size` bits.
    ///
    /// # Errors
    /// If no token ends a reply.
    pub fn new(tokenizer: &Tokenizer, vocab_size: usize) -> Result<Self, String> {
        let ends: Vec<TokenId> =
            tokenizer.stop_ids().iter().copied().filter(|&id| (id as usize) < vocab_size).collect();
        let Some(&end) = ends.first() else {
            return Err("the model has no token that ends a reply".to_owned());
        };
        let info = TokRxInfo {
            vocab_size: vocab_size as u32,
            tok_eos: end,
            tok_bos: None,
            tok_pad: None,
            tok_unk: None,
            tok_end_of_turn: None,
        };
        let trie = TokTrie::from(&info, &words(tokenizer, vocab_size)).with_eos_tokens(&ends);
        let tokens: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut parsers = ParserFactory::new_simple(&tokens).map_err(|error| error.to_string())?;
        parsers.quiet();
        parsers.limits_mut().verbose_errors = false;
        Ok(Self { parsers, tokens })
    }

    /// Returns the vocabulary.
    pub fn tokens(&self) -> &TokEnv {
        &self.tokens
    }

    /// Compiles a grammar.
    ///
    /// # Errors
    /// If the grammar is invalid, or exceeds a limit.
    pub fn compile(self: &Arc<Self>, grammar: TopLevelGrammar) -> Result<Matcher, String> {
        let factory = Arc::clone(self);
        let matcher = run_guarded(COMPILE_LIMITS, move || {
            let mut matcher = Matcher::new(factory.parsers.create_parser(grammar));
            // The first mask is computed here, because this computation builds most of the lexer and must
            // stay within the limits.
            let first = matcher.compute_mask();
            first.map(|_| matcher).map_err(|error| error.to_string())
        });
        let compiled = matcher.map_err(|reason| reason.to_string())?;
        compiled.map_err(|error| error.lines().next().unwrap_or_default().to_owned())
    }
}

/// Returns the bytes of each token. A special token starts with a byte that occurs in no text, so a grammar
/// cannot produce it as text.
fn words(tokenizer: &Tokenizer, vocab_size: usize) -> Vec<Vec<u8>> {
    let specials: HashSet<&String> = tokenizer.specials().iter().collect();
    let spelling = TokenSpelling::of(tokenizer);
    let word = |id: u32| {
        let Some(token) = tokenizer.token_str(id) else { return Vec::new() };
        if !specials.contains(&token) {
            return spelling.bytes(&token);
        }
        [&[TokTrie::SPECIAL_TOKEN_MARKER], token.as_bytes()].concat()
    };
    (0..vocab_size as u32).map(word).collect()
}
