//! Tests contexts and conversations on the embedded base model.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use danlu_generate::{ChatSession, GenerateError, GenerateOptions, SamplingOptions, StopReason, generate};
use danlu_kernels::{Cpu, CpuOptions, DType};
use danlu_model::{Decoder, Tokenizer, Workspace};

static BASE: LazyLock<(Decoder, Tokenizer)> = LazyLock::new(|| {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../cli/assets/base-8m"));
    let backend = Arc::new(Cpu::new(CpuOptions { threads: Some(1), isa: None, dtype: DType::F32 }));
    (Decoder::load(folder, backend).unwrap(), Tokenizer::read(folder).unwrap())
});

fn options(max_new_tokens: usize) -> GenerateOptions {
    GenerateOptions {
        max_new_tokens,
        stop_ids: BASE.1.stop_ids().clone(),
        sampling: SamplingOptions::greedy(),
    }
}

fn session(context: usize, options: GenerateOptions) -> ChatSession<'static> {
    ChatSession::new(&BASE.0, &BASE.1, None, context, options).unwrap()
}

fn quiet(_: &str) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

#[test]
fn the_second_turn_reads_only_what_is_new() {
    let mut session = session(1024, options(24));
    let first = session.reply("帮我推荐一家餐馆。", &mut quiet).unwrap();
    let second = session.reply("远吗？", &mut quiet).unwrap();
    assert_eq!(first.generated.reused_tokens, 0);
    assert!(second.generated.reused_tokens >= first.generated.prompt_tokens, "{second:?}");
    assert_eq!(session.history().len(), 4);
    session.reset();
    let again = session.reply("帮我推荐一家餐馆。", &mut quiet).unwrap();
    assert_eq!(again.text, first.text);
}

#[test]
fn streamed_pieces_join_to_the_reply() {
    let mut pieces = String::new();
    let reply = session(256, options(40)).reply("你好，世界！", &mut |piece| {
        assert!(!piece.is_empty());
        pieces.push_str(piece);
        ControlFlow::Continue(())
    });
    let reply = reply.unwrap();
    assert_eq!(pieces, reply.text);
    assert!(!reply.text.contains('\u{fffd}') && !reply.text.contains("<|"), "{}", reply.text);
    assert!(matches!(reply.generated.stop, StopReason::EndToken(_)), "{reply:?}");
}

#[test]
fn a_stopped_reply_stays_in_the_history() {
    let mut session = session(256, options(40));
    let reply = session.reply("帮我推荐一家餐馆。", &mut |_| ControlFlow::Break(())).unwrap();
    assert_eq!(reply.generated.stop, StopReason::Caller);
    assert_eq!(session.history()[1].content, reply.text);
}

#[test]
fn a_full_context_forgets_the_oldest_turns_and_says_how_many() {
    let mut session = session(64, options(16));
    let mut forgotten = 0;
    for turn in 0..6 {
        forgotten =
            session.reply(&format!("第{turn}个问题：附近有什么好吃的？"), &mut quiet).unwrap().forgotten;
    }
    assert!(forgotten >= 2 && forgotten % 2 == 0, "{forgotten}");
    assert_eq!(session.history().len(), 12);
}

#[test]
fn a_message_longer_than_the_context_is_rejected_without_effect() {
    let mut session = session(32, options(8));
    let error = session.reply(&"很长的一句话。".repeat(20), &mut quiet).unwrap_err();
    assert!(matches!(error, GenerateError::PromptTooLong { context: 32, .. }), "{error}");
    assert!(error.hint().is_some());
    assert!(session.history().is_empty());
}

#[test]
fn sampling_with_one_seed_repeats_itself() {
    let (decoder, tokenizer) = &*BASE;
    let prompt = tokenizer.encode("话说天下大势，").unwrap();
    let run = |seed| {
        let sampling = SamplingOptions { temperature: 1.2, top_p: 0.95, seed, ..SamplingOptions::default() };
        let options = GenerateOptions { sampling, ..options(12) };
        generate(decoder, &mut Workspace::new(), None, &prompt, &options, &mut |_| ControlFlow::Continue(()))
            .unwrap()
            .ids
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}
