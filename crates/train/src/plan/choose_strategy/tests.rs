use std::path::Path;

use danlu_kernels::{CpuOptions, DType, cuda::CudaOptions};

use super::*;
use crate::plan::device_weight_bytes_of;

fn input(batch: usize) -> PlanInput<'static> {
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cli/assets/base-8m");
    PlanInput {
        config: ModelConfig::read(&base).unwrap(),
        settings: TrainSettings { per_device_train_batch_size: batch, ..TrainSettings::default() },
        backend: CpuOptions { threads: Some(2), ..CpuOptions::default() }.into(),
        records: Vec::new(),
        held_out: Vec::new(),
        reply: ReplySize::default(),
        checkpoints: true,
        weights: WeightBytes { mapped: 16_000_000, ..WeightBytes::default() },
        baseline: BaselineMemory {
            program: 5_000_000,
            tokenizer: 7_000_000,
            data: 1_000_000,
            ..BaselineMemory::default()
        },
    }
}

fn sum(plan: &MemoryPlan) -> u64 {
    let state = plan.weights + plan.adapter + plan.optimizer + plan.gradients;
    state
        + plan.activations
        + plan.scratch.total()
        + plan.transient
        + plan.tokenizer
        + plan.data
        + plan.program
}

#[test]
fn the_parts_add_up_and_the_adapters_state_is_known_in_advance() {
    let plan = MemoryPlan::new(&input(2), None).unwrap();
    assert_eq!(sum(&plan), plan.total);
    // With rank 8 on all projections, PEFT counts 299,008 parameters.
    assert_eq!((plan.adapter, plan.gradients, plan.optimizer), (1_196_032, 1_196_032, 2_392_064));
    assert_eq!((plan.tokens, plan.trained_tokens), (768, 766));
    assert_eq!(plan.layers, LayerPolicies { recompute: 0, keep_some: 8 });
}

#[test]
fn a_tighter_limit_keeps_less_and_what_fits_keeps_as_much_as_it_can() {
    let mut input = input(8);
    // At this length, micro-batches are small enough to be fused.
    input.settings.max_length = 30;
    let everything = MemoryPlan::new(&input, None).unwrap();
    assert!(everything.fuse_micro_batches);
    let strategies = MemoryStrategy::fastest_first(8, false);
    let mut planner = Planner::new(&input, &input.settings).unwrap();
    let totals: Vec<u64> = strategies.iter().map(|&strategy| planner.plan(strategy).unwrap().total).collect();
    assert_eq!(totals[0], everything.total);
    assert!(totals.windows(2).all(|w| w[1] < w[0]), "{totals:?}");
    for (strategy, &total) in totals.iter().enumerate() {
        let plan = MemoryPlan::new(&input, Some(total)).unwrap();
        let MemoryStrategy { layers, grouping: PassGrouping { fuse: fuse_micro_batches, .. } } =
            strategies[strategy];
        assert_eq!((plan.layers, plan.fuse_micro_batches, plan.total), (layers, fuse_micro_batches, total));
        let plan = MemoryPlan::new(&input, Some(total + 1)).unwrap();
        assert_eq!((plan.layers, plan.fuse_micro_batches), (layers, fuse_micro_batches));
    }
}

#[test]
fn what_cannot_fit_is_refused_with_the_largest_setting_that_would() {
    let input = input(8);
    let strategies = MemoryStrategy::fastest_first(8, false);
    let least = |settings: &TrainSettings| {
        Planner::new(&input, settings).unwrap().plan(*strategies.last().unwrap()).unwrap().total
    };
    let batch = |size| TrainSettings { per_device_train_batch_size: size, ..input.settings.clone() };
    let refused = |limit| match MemoryPlan::new(&input, Some(limit)).unwrap_err() {
        TrainError::Memory { needed, limit: found, fits } => {
            assert_eq!((needed, found), (least(&input.settings), limit));
            fits.map(|smaller| smaller.to_string())
        }
        other => panic!("{other}"),
    };
    assert_eq!(refused(least(&batch(5))).as_deref(), Some("--per-device-train-batch-size 5"));
    assert_eq!(refused(least(&batch(6)) - 1).as_deref(), Some("--per-device-train-batch-size 5"));
    let shorter = TrainSettings { max_length: 200, ..batch(1) };
    let hint = refused(least(&shorter)).unwrap();
    let length = hint.strip_prefix("--per-device-train-batch-size 1 --max-length ").expect("both are named");
    // Rows are processed in blocks of a fixed size, so some lengths above 200 need the same memory as 200.
    assert!((200..260).contains(&length.parse::<usize>().unwrap()), "{hint}");
    assert_eq!(refused(1_000_000), None);
}

#[test]
fn reading_a_tokenizer_may_be_the_peak() {
    let mut input = input(1);
    input.baseline.peak = 10_000_000_000;
    let plan = MemoryPlan::new(&input, None).unwrap();
    assert_eq!((plan.total, sum(&plan)), (10_000_000_000, 10_000_000_000));
}

#[test]
fn a_huge_batch_is_a_multiple_of_a_dry_run() {
    let of = |batch| MemoryPlan::new(&input(batch), None).unwrap();
    let dry = MAX_DRY_RUN_TOKENS / TrainSettings::default().max_length;
    let (single, huge) = (of(dry), of(dry * 100));
    assert_eq!(huge.activations, single.activations * 100);
    assert_eq!((huge.tokens, huge.adapter), (single.tokens * 100, single.adapter));
    assert_eq!(sum(&huge), huge.total);
    let mut many = input(1);
    many.settings.gradient_accumulation_steps = 1 << 24;
    assert!(MemoryPlan::new(&many, None).unwrap().step_flops > of(1).step_flops << 22);
    let error = MemoryPlan::new(&input(usize::MAX), None).unwrap_err().to_string();
    assert!(error.contains("per_device_train_batch_size") && error.contains("at most 16777216"), "{error}");
}

#[test]
fn a_devices_plan_leaves_the_host_out_and_splits_large_micro_batches() {
    let mut input = input(8);
    input.backend = BackendOptions::Cuda(CudaOptions { device: 0, dtype: DType::Bf16 });
    let config = &input.config;
    input.weights = device_weight_bytes_of(None, config, None, DType::Bf16, None);
    let everything = MemoryPlan::new(&input, None).unwrap();
    assert_eq!((everything.tokenizer, everything.data, everything.max_pass_rows), (0, 0, None));
    assert_eq!(sum(&everything), everything.total);
    let head = (2 * input.config.vocab_size * input.config.hidden_size) as u64;
    // The run reads the whole embedding table, which is as large as the head, and copies a checkpoint:
    // parameters and moments, each as values and as bytes of the file.
    let saving = 4 * everything.adapter;
    assert_eq!(everything.host, 13_000_000 + cuda::HOST_BYTES + head + saving);
    assert!(everything.weights > head && everything.weights < 2 * input.config.num_parameters() + (1 << 20));
    // Activations need half as many bytes on the device as on the host.
    let host = MemoryPlan::new(&self::input(8), None).unwrap();
    let share = everything.activations as f64 / host.activations as f64;
    assert!((0.45..0.55).contains(&share), "{share}");
    let split = MemoryPlan::new(&input, Some(everything.total - everything.activations / 4)).unwrap();
    assert_eq!((split.max_pass_rows, split.tokens), (Some(2048), 1920));
    assert_eq!(split.layers, everything.layers);
}
