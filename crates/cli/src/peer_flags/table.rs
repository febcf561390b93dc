//! The table of flags, values and commands of other tools.

use super::PeerFlag::{self, Advice, Same, Switch};

const CHAT_FLAG: PeerFlag = Advice("use it with `danlu chat`", "请在 `danlu chat` 中使用");
const HELD_OUT: PeerFlag = Advice(
    "danlu has no flag for held-out files: use `--val-size 0.02`, or `danlu compare DIR --data FILE` afterwards",
    "danlu 没有指定留出文件的参数：用 `--val-size 0.02`，或事后用 `danlu compare DIR --data FILE`",
);
const SUBSET: PeerFlag = Advice(
    "name it in the data set: `--data hf:org/name:split`, or `hf:org/name:subset/split`",
    "写在数据集的名字里：`--data hf:org/name:split`，或 `hf:org/name:subset/split`",
);
const KERNELS: PeerFlag = Advice(
    "danlu has no choice of kernels: omit it, attention never stores its scores",
    "danlu 没有算子可选：不用写，注意力从不存储分数",
);
const FUSED: PeerFlag = Advice(
    "danlu has no compile step: omit it, kernels are fused already",
    "danlu 没有编译步骤：不用写，算子已经融合",
);
const ONE_DEVICE: PeerFlag = Advice(
    "danlu has no distributed training: one process trains on one device; omit it",
    "danlu 没有分布式训练：一个进程用一个设备；不用写",
);
const NO_PADDING: PeerFlag =
    Advice("danlu has no padding, records are concatenated: omit it", "danlu 没有填充，记录首尾相接：不用写");
const LORA_ONLY: PeerFlag =
    Advice("danlu has no other method than LoRA: omit it", "danlu 只有 LoRA 一种方法：不用写");
const NO_UPLOADS: PeerFlag = Advice(
    "danlu has no uploads of logs: use `--report-to tensorboard`, or read history.jsonl",
    "danlu 不上传日志：用 `--report-to tensorboard`，或读 history.jsonl",
);
const PREFERENCES: PeerFlag = Advice(
    "danlu has no preference training (DPO, ORPO, KTO), only supervised fine-tuning",
    "danlu 没有偏好训练（DPO、ORPO、KTO），只有监督微调",
);
const PUSH_LATER: PeerFlag =
    Advice("publish afterwards: `danlu push DIR org/name`", "训练后发布：`danlu push DIR org/name`");
const ADAPTER_FOLDER: PeerFlag = Advice(
    "name the adapter's folder without a flag, such as `danlu chat DIR`",
    "适配器的文件夹前不写参数，如 `danlu chat DIR`",
);
const BEST_CHECKPOINT: PeerFlag = Advice(
    "danlu has no early stopping: use `--eval-steps` and choose a checkpoint by its held-out loss",
    "danlu 没有早停：用 `--eval-steps`，再按留出损失选检查点",
);
const MERGE_LATER: PeerFlag = Advice(
    "merge afterwards: `danlu merge DIR --output DIR-merged`",
    "训练后合并：`danlu merge DIR --output DIR-merged`",
);
const LAYERS: PeerFlag = Advice(
    "choose layers by number: use `--layers-to-transform 24-31`",
    "按编号选层：用 `--layers-to-transform 24-31`",
);
const READ_FROM_CONFIG: PeerFlag =
    Advice("omit it: danlu reads it from config.json of the base", "不用写：danlu 从基座的 config.json 读取");
const FIXED_TOKENS: PeerFlag = Advice(
    "danlu has no flag for special tokens: the tokenizer's files define them; omit it",
    "danlu 没有设置特殊词元的参数：由分词器的文件定义；不用写",
);
const ANSWERS_ONLY: PeerFlag = Advice(
    "omit it: only answers are trained by default; `--train-on-prompt` trains questions too",
    "不用写：默认只训练答案；`--train-on-prompt` 连问题一起训练",
);
const NO_CACHE: PeerFlag = Advice(
    "danlu has no data cache: records are encoded in memory; omit it",
    "danlu 没有数据缓存：记录在内存中编码；不用写",
);
const LOGIN: PeerFlag =
    Advice("use `danlu login` once, or set HF_TOKEN", "先运行一次 `danlu login`，或设置环境变量 HF_TOKEN");
const LOW_RATE: PeerFlag = Advice(
    "danlu has no lower limit of the learning rate: use `--lr-scheduler-type cosine`, which ends at 0",
    "danlu 的学习率没有下限：用 `--lr-scheduler-type cosine`，降到 0 为止",
);
const FULL_LOSS: PeerFlag = Advice(
    "danlu has no choice of losses: use the key `weight` or `train` of a message in the data",
    "danlu 没有损失可选：请在数据里给消息写 `weight` 或 `train`",
);
const UNTRAINED: PeerFlag = Advice(
    "danlu has no training of base weights: omit it, they stay frozen",
    "danlu 不训练基座权重：不用写，它们保持冻结",
);

pub(super) const TABLE: &[(&[&str], PeerFlag)] = &[
    (&["lr"], Same(&["learning-rate"])),
    (&["epochs", "num-epochs", "n-epochs", "train-epochs"], Same(&["num-train-epochs"])),
    (&["iters", "steps", "max-train-steps", "num-steps"], Same(&["max-steps", "steps"])),
    (
        &["batch-size", "batch", "micro-batch-size", "per-gpu-train-batch-size", "train-batch-size"],
        Same(&["per-device-train-batch-size"]),
    ),
    (
        &["grad-accum", "grad-accumulation-steps", "gradient-accumulation", "accumulation-steps"],
        Same(&["gradient-accumulation-steps"]),
    ),
    (
        &[
            "max-seq-length",
            "max-seq-len",
            "seq-length",
            "seq-len",
            "sequence-len",
            "cutoff-len",
            "block-size",
            "model-max-length",
        ],
        Same(&["max-length", "context"]),
    ),
    (&["output-dir", "out-dir", "save-path", "save-dir", "export-dir"], Same(&["output"])),
    (
        &["base-model", "model-name-or-path", "model-name", "model-path", "pretrained-model", "hf-path"],
        Same(&["base"]),
    ),
    (&["model"], Same(&["base"])),
    (
        &[
            "train-file",
            "data-path",
            "dataset-path",
            "dataset-name",
            "train-data",
            "datasets",
            "custom-dataset-path",
            "data-files",
        ],
        Same(&["data"]),
    ),
    (&["rank", "r", "lora-rank", "lora-dim"], Same(&["lora-r"])),
    (&["alpha"], Same(&["lora-alpha"])),
    (
        &["lora-scale", "scale"],
        Advice(
            "use `--lora-alpha`: the scale is alpha divided by the rank",
            "用 `--lora-alpha`：缩放是 alpha 除以秩",
        ),
    ),
    (&["dropout"], Same(&["lora-dropout"])),
    (&["lora-target", "lora-target-modules", "target", "target-regex"], Same(&["target-modules"])),
    (&["lora-target-linear"], Switch("--target-modules=all-linear")),
    (&["rslora", "use-lora-rs"], Same(&["use-rslora"])),
    (&["lr-scheduler", "scheduler", "lr-schedule"], Same(&["lr-scheduler-type"])),
    (&["wd"], Same(&["weight-decay"])),
    (&["max-norm", "clip-grad", "gradient-clipping", "grad-clip"], Same(&["max-grad-norm"])),
    (&["random-state"], Same(&["seed"])),
    (&["test-size", "val-set-size", "eval-ratio", "validation-split", "val-split"], Same(&["val-size"])),
    (&["sample-packing", "pack", "neat-packing"], Same(&["packing"])),
    (&["train-on-inputs", "train-on-input"], Same(&["train-on-prompt"])),
    (&["save-every"], Same(&["save-steps"])),
    (&["steps-per-eval", "eval-every"], Same(&["eval-steps"])),
    (&["steps-per-report", "log-every"], Same(&["logging-steps"])),
    (&["resume-from-checkpoint"], Same(&["resume"])),
    (&["template", "prompt-template", "prompt-template-name"], Same(&["chat-template"])),
    (&["temp"], Same(&["temperature"])),
    (&["max-tokens", "max-gen-toks", "num-predict", "n-predict"], Same(&["max-new-tokens"])),
    (&["repeat-penalty"], Same(&["repetition-penalty"])),
    (&["system-prompt", "default-system-prompt", "system"], Same(&["system", "default-system"])),
    (&["bnb-4bit-quant-type", "quantize", "quantization"], Same(&["quant", "to"])),
    (&["export-size", "shard-size"], Same(&["max-shard-size"])),
    (&["torch-dtype", "out-dtype", "outtype", "precision", "mixed-precision"], Same(&["dtype"])),
    (&["token-limit", "ctx-size", "num-ctx"], Same(&["context"])),
    (&["lora-modules"], Same(&["target-modules", "adapter"])),
    (&["commit-message"], Same(&["message"])),
    (&["export-device", "device-map"], Same(&["device"])),
    (&["load-in-4bit", "use-4bit", "qlora", "load-4bit"], Switch("--quant=nf4")),
    (&["bf16"], Switch("--dtype=bf16")),
    (&["fp32", "no-half", "float32"], Switch("--dtype=f32")),
    (&["cpu", "no-cuda", "use-cpu"], Switch("--device=cpu")),
    (&["gpu", "cuda"], Switch("--device=cuda")),
    (&["no-shuffle", "disable-shuffling"], Switch("--shuffle-dataset=false")),
    (&["disable-tqdm"], Switch("--quiet")),
    (
        &["fp16"],
        Advice(
            "use `--dtype f16`, which needs a GPU, or `--dtype bf16`",
            "用 `--dtype f16`（需要 GPU），或 `--dtype bf16`",
        ),
    ),
    (
        &["tf32"],
        Advice(
            "danlu has no tf32: use `--dtype bf16` or `--dtype f32`",
            "danlu 没有 tf32：用 `--dtype bf16` 或 `--dtype f32`",
        ),
    ),
    (
        &["load-in-8bit", "use-8bit"],
        Advice(
            "danlu has no 8-bit weights: use `--quant nf4`, or omit it for 16 bits",
            "danlu 没有 8 位权重：用 `--quant nf4`，16 位则不用写",
        ),
    ),
    (
        &["quantization-bit", "bits"],
        Advice(
            "use `--quant nf4` for 4 bits; danlu has no other width",
            "4 位用 `--quant nf4`；danlu 没有别的位数",
        ),
    ),
    (
        &["quantization-method", "quant-method"],
        Advice(
            "omit it: 4-bit weights have the format of bitsandbytes; `--quant nf4` quantizes the base",
            "不用写：4 位权重是 bitsandbytes 的格式；`--quant nf4` 量化基座",
        ),
    ),
    (
        &["bnb-4bit-use-double-quant", "use-nested-quant", "double-quantization", "use-bnb-nested-quant"],
        Advice(
            "omit it: double quantization is the default, and `--no-double-quant` switches it off",
            "不用写：默认就是双重量化，`--no-double-quant` 关闭它",
        ),
    ),
    (
        &["bnb-4bit-compute-dtype", "bnb-4bit-quant-storage", "compute-dtype"],
        Advice("use `--dtype bf16` or `--dtype f32`", "用 `--dtype bf16` 或 `--dtype f32`"),
    ),
    (
        &[
            "gradient-checkpointing",
            "use-gradient-checkpointing",
            "grad-checkpoint",
            "activation-checkpointing",
            "auto-find-batch-size",
            "gpu-memory-utilization",
        ],
        Advice(
            "danlu has no switch for it: layers recompute as much as the memory needs; set `--memory-limit 8GiB`",
            "danlu 没有这个开关：各层按内存需要重算；可设 `--memory-limit 8GiB`",
        ),
    ),
    (
        &["optim", "optimizer"],
        Advice(
            "danlu has no choice of optimizers: omit it, training uses AdamW in f32",
            "danlu 没有优化器可选：不用写，训练用 f32 的 AdamW",
        ),
    ),
    (&["dora"], Same(&["use-dora"])),
    (
        &["modules-to-save", "additional-target", "lora-modules-to-save"],
        Advice(
            "danlu has no fully trained modules, only LoRA matrices: omit it",
            "danlu 不整块训练模块，只训练 LoRA 矩阵：不用写",
        ),
    ),
    (
        &["bias", "lora-bias"],
        Advice(
            "danlu has no bias training: omit it, biases stay frozen",
            "danlu 不训练偏置：不用写，偏置保持冻结",
        ),
    ),
    (&["peft-init-lora-weights"], Same(&["init-lora-weights"])),
    (
        &["pissa-init", "pissa-convert", "pissa-iter"],
        Advice(
            "danlu has no PiSSA: use `--init-lora-weights olora`, which starts from the weights too",
            "danlu 没有 PiSSA：用 `--init-lora-weights olora`，它也从权重出发",
        ),
    ),
    (
        &["loraplus-lr-embedding"],
        Advice(
            "danlu has no LoRA on embeddings in training, so it needs no learning rate: omit it",
            "danlu 训练时不给词嵌入加 LoRA，不需要它的学习率：不用写",
        ),
    ),
    (&["neftune-alpha", "noisy-embedding-alpha"], Same(&["neftune-noise-alpha"])),
    (&["lora-layers-to-transform", "peft-layers-to-transform"], Same(&["layers-to-transform"])),
    (
        &["trainable-token-indices"],
        Advice(
            "danlu has no training of single tokens, only LoRA matrices: omit it",
            "danlu 不单独训练词元，只训练 LoRA 矩阵：不用写",
        ),
    ),
    (&["num-layers", "lora-layers"], LAYERS),
    (
        &["warmup-steps", "num-warmup-steps", "warmup"],
        Advice("use `--warmup-ratio`, a fraction of the steps", "用 `--warmup-ratio`，即步数的比例"),
    ),
    (
        &["cosine-min-lr-ratio", "min-lr", "min-lr-rate", "lr-decay", "lr-scheduler-kwargs", "lr-end"],
        LOW_RATE,
    ),
    (
        &[
            "flash-attention",
            "flash-attn",
            "flash-attn-2",
            "attn-implementation",
            "use-flash-attn",
            "use-flash-attention",
            "use-flash-attention-2",
            "sdp-attention",
            "xformers-attention",
            "shift-attn",
        ],
        KERNELS,
    ),
    (
        &[
            "torch-compile",
            "use-liger-kernel",
            "liger-kernel",
            "enable-liger-kernel",
            "use-liger",
            "use-unsloth",
            "unsloth",
            "upcast-layernorm",
            "padding-free",
            "use-cache",
        ],
        FUSED,
    ),
    (
        &[
            "deepspeed",
            "fsdp",
            "num-processes",
            "nproc-per-node",
            "local-rank",
            "num-gpus",
            "n-gpus",
            "gpus",
            "multi-gpu",
            "world-size",
            "sequence-parallel-size",
            "tensor-parallel-size",
        ],
        ONE_DEVICE,
    ),
    (
        &["use-mps-device", "mps"],
        Advice(
            "danlu has no training on Apple GPUs: omit it, or use `--device cpu`",
            "danlu 不支持苹果 GPU：不用写，或用 `--device cpu`",
        ),
    ),
    (
        &[
            "num-proc",
            "dataset-num-proc",
            "num-workers",
            "dataloader-num-workers",
            "preprocessing-num-workers",
            "dataset-processes",
        ],
        Advice(
            "danlu has no workers: records are encoded once; `--threads` sets the threads of training",
            "danlu 没有数据进程：记录只编码一次；`--threads` 设置训练线程数",
        ),
    ),
    (
        &["per-device-eval-batch-size", "eval-batch-size", "eval-accumulation-steps", "eval-packing"],
        Advice(
            "danlu has no batch size for evaluation, which needs less memory than a step: omit it",
            "danlu 的评估没有批大小，内存比一步训练少：不用写",
        ),
    ),
    (
        &["eval-strategy", "evaluation-strategy", "do-eval"],
        Advice("use `--eval-steps 50` and `--val-size 0.02`", "用 `--eval-steps 50` 和 `--val-size 0.02`"),
    ),
    (
        &[
            "eval-dataset",
            "eval-file",
            "validation-file",
            "val-file",
            "test-file",
            "test-datasets",
            "dataset-test-split",
            "test",
            "test-batches",
            "val-batches",
        ],
        HELD_OUT,
    ),
    (&["dataset-config", "dataset-config-name", "dataset-train-split", "split", "subset"], SUBSET),
    (
        &["dataset-dir"],
        Advice(
            "name the file: `--data DIR/dataset_info.json --dataset NAME`",
            "写出文件：`--data DIR/dataset_info.json --dataset NAME`",
        ),
    ),
    (
        &["dataset-text-field", "text-field", "text-column"],
        Advice("use `--columns text=NAME`", "用 `--columns text=NAME`"),
    ),
    (
        &["prompt-column", "response-column", "query-column", "field-instruction", "field-output"],
        Advice("use `--columns instruction=NAME,output=NAME`", "用 `--columns instruction=NAME,output=NAME`"),
    ),
    (
        &["remove-unused-columns", "label-names"],
        Advice(
            "omit it: `danlu data check` lists the keys that training ignores",
            "不用写：`danlu data check` 会列出训练忽略的键",
        ),
    ),
    (
        &["save-strategy"],
        Advice(
            "use `--save-steps 100`, or `--save-steps 0` to save only at the end",
            "用 `--save-steps 100`；只在结束时保存用 `--save-steps 0`",
        ),
    ),
    (&["logging-strategy"], Advice("use `--logging-steps 10`", "用 `--logging-steps 10`")),
    (
        &["load-best-model-at-end", "early-stopping-patience", "metric-for-best-model", "greater-is-better"],
        BEST_CHECKPOINT,
    ),
    (
        &["assistant-only-loss", "completion-only-loss", "mask-prompt", "train-on-responses-only"],
        ANSWERS_ONLY,
    ),
    (
        &["response-template", "instruction-template", "data-collator", "formatting-func"],
        Advice(
            "omit it: danlu finds the answers by the chat template, and trains only answers",
            "不用写：danlu 按对话模板找到答案，只训练答案",
        ),
    ),
    (
        &["agent-template", "tool-format"],
        Advice(
            "omit it: the chat template of the base writes the tools and the calls",
            "不用写：工具和调用由基座的对话模板写出",
        ),
    ),
    (&["mask-history", "loss-scale", "roles-to-train", "train-on-eos"], FULL_LOSS),
    (
        &[
            "group-by-length",
            "pad-token",
            "padding-side",
            "pad-to-multiple-of",
            "pad-to-sequence-len",
            "padding",
        ],
        NO_PADDING,
    ),
    (
        &[
            "eos-token",
            "bos-token",
            "special-tokens",
            "add-special-tokens",
            "new-special-tokens",
            "resize-vocab",
        ],
        FIXED_TOKENS,
    ),
    (
        &["max-prompt-length", "max-completion-length", "max-target-length", "max-source-length"],
        Advice(
            "use `--max-length`, which limits question and answer together",
            "用 `--max-length`，它限制问题与答案的总长",
        ),
    ),
    (
        &["overwrite-output-dir", "overwrite"],
        Advice(
            "danlu has no overwriting: choose a new `--output`, or resume with `--resume`",
            "danlu 不覆盖：换一个 `--output`，或用 `--resume` 继续",
        ),
    ),
    (
        &["ignore-data-skip"],
        Advice("omit it: a resumed run goes on with the next record", "不用写：继续的训练从下一条记录接着来"),
    ),
    (
        &["trust-remote-code"],
        Advice(
            "danlu has no remote code: it never runs code of a model; omit it",
            "danlu 没有远程代码：从不运行模型自带的代码；不用写",
        ),
    ),
    (
        &["use-fast-tokenizer", "tokenizer-type"],
        Advice("omit it: tokenizer.json is always used", "不用写：总是用 tokenizer.json"),
    ),
    (&["model-type", "model-author", "rope-scaling", "rope-theta"], READ_FROM_CONFIG),
    (
        &["model-revision", "revision"],
        Advice("name it with the model: `org/name@revision`", "和模型写在一起：`org/name@revision`"),
    ),
    (&["token", "use-auth-token", "hf-token"], LOGIN),
    (
        &[
            "use-peft",
            "finetuning-type",
            "fine-tune-type",
            "train-type",
            "tuner-type",
            "sft-type",
            "use-lora",
            "adapter-type",
            "full-finetuning",
        ],
        LORA_ONLY,
    ),
    (
        &["stage", "do-train", "train"],
        Advice("omit it: `danlu train` is supervised fine-tuning", "不用写：`danlu train` 就是监督微调"),
    ),
    (&["beta", "rl", "pref-beta", "pref-loss"], PREFERENCES),
    (&["ema", "swa"], Advice("danlu has no averaging of weights: omit it", "danlu 不平均权重：不用写")),
    (
        &["label-smoothing", "label-smoothing-factor"],
        Advice("danlu has no label smoothing: omit it", "danlu 没有标签平滑：不用写"),
    ),
    (
        &[
            "streaming",
            "cache-dir",
            "dataset-prepared-path",
            "overwrite-cache",
            "tokenized-path",
            "buffer-size",
            "dataset-kwargs",
        ],
        NO_CACHE,
    ),
    (
        &["save-safetensors", "safe-serialization", "export-legacy-format"],
        Advice("omit it: danlu writes safetensors only", "不用写：danlu 只写 safetensors"),
    ),
    (
        &["save-only-model"],
        Advice(
            "omit it: use `--save-total-limit 1` to keep one checkpoint",
            "不用写：只留一个检查点用 `--save-total-limit 1`",
        ),
    ),
    (
        &["logging-dir", "log-dir"],
        Advice(
            "danlu has no separate log folder: logs are in `--output`; omit it",
            "danlu 没有单独的日志文件夹：日志在 `--output` 里；不用写",
        ),
    ),
    (
        &["plot-loss", "include-num-input-tokens-seen"],
        Advice(
            "omit it: `danlu report DIR` shows the loss of every run",
            "不用写：`danlu report DIR` 会显示每次训练的损失",
        ),
    ),
    (&["run-name", "use-wandb", "use-swanlab"], NO_UPLOADS),
    (&["push-to-hub"], PUSH_LATER),
    (&["merge", "merge-adapter", "fuse", "save-merged-16bit", "save-method"], MERGE_LATER),
    (
        &["export-gguf", "gguf"],
        Advice(
            "danlu has no GGUF: merge to safetensors, and convert the folder with llama.cpp",
            "danlu 不写 GGUF：先合并成 safetensors，再用 llama.cpp 转换",
        ),
    ),
    (
        &["de-quantize", "dequantize"],
        Advice("use `--merge-base dequantized`", "用 `--merge-base dequantized`"),
    ),
    (&["upload-repo", "repo-id"], PUSH_LATER),
    (
        &["repo-type"],
        Advice(
            "omit it: danlu reads models, and data sets with `--data hf:org/name`",
            "不用写：danlu 读取模型；数据集用 `--data hf:org/name`",
        ),
    ),
    (
        &["local-dir"],
        Advice(
            "danlu has no folder for one download: set HF_HOME, or omit it to share Python's cache",
            "danlu 没有单次下载的文件夹：可设 HF_HOME；不写则与 Python 共用缓存",
        ),
    ),
    (
        &["resume-download", "force-download", "local-dir-use-symlinks"],
        Advice(
            "omit it: a download resumes by itself, and each file is checked",
            "不用写：下载自动续传，每个文件都校验",
        ),
    ),
    (
        &[
            "adapter-path",
            "adapter-name-or-path",
            "adapter",
            "lora",
            "lora-path",
            "peft-model-id",
            "adapters",
            "ckpt-dir",
        ],
        ADAPTER_FOLDER,
    ),
    (&["resume-adapter-file", "lora-model-dir", "lora-weights"], Same(&["init-adapter"])),
    (
        &["max-samples", "max-train-samples"],
        Advice(
            "danlu has no limit on records: pass a shorter file, or `--max-steps`",
            "danlu 不限制记录数：给一个更短的文件，或用 `--max-steps`",
        ),
    ),
    (
        &["mixture", "interleave-probs", "mix-strategy"],
        Advice(
            "danlu has no mixing weights: pass several files to `--data`",
            "danlu 没有混合比例：给 `--data` 几个文件",
        ),
    ),
    (
        &["host", "port", "api-key"],
        Advice(
            "danlu has no server in this command: use it with `danlu serve`",
            "这个命令不是服务：请在 `danlu serve` 中使用",
        ),
    ),
    (
        &["enable-lora", "max-loras", "max-lora-rank", "max-cpu-loras"],
        Advice(
            "omit it: `danlu serve` takes adapters of every rank; `--adapter-memory` limits them",
            "不用写：`danlu serve` 接受任何秩的适配器；用 `--adapter-memory` 限制",
        ),
    ),
    (
        &["best-of", "num-beams", "beam-size"],
        Advice(
            "danlu has no beam search: use `--temperature 0` for the likeliest tokens",
            "danlu 没有束搜索：用 `--temperature 0` 取最可能的词元",
        ),
    ),
    (
        &["do-sample"],
        Advice(
            "omit it: `--temperature 0` picks the likeliest token, any other value samples",
            "不用写：`--temperature 0` 取最可能的词元，其他值为采样",
        ),
    ),
    (
        &["stream", "interactive"],
        Advice("omit it: `danlu chat` prints replies as they grow", "不用写：`danlu chat` 边生成边显示"),
    ),
    (
        &["presence-penalty", "frequency-penalty"],
        Advice("use `--repetition-penalty`", "用 `--repetition-penalty`"),
    ),
    (
        &["ngl", "n-gpu-layers", "infer-backend"],
        Advice("use `--device auto`, cpu or cuda", "用 `--device auto`、cpu 或 cuda"),
    ),
    (
        &[
            "fast-inference",
            "fp16-opt-level",
            "half-precision-backend",
            "external-plugins",
            "plugins",
            "strict",
        ],
        Advice("danlu has no such setting: omit it", "danlu 没有这个设置：不用写"),
    ),
    (&["prompt", "max-new-tokens", "top-p", "top-k", "temperature"], CHAT_FLAG),
    (
        &["stop", "stop-words"],
        Advice(
            "danlu has no stop words: the model's end token stops a reply",
            "danlu 没有停止词：回答遇到模型的结束词元就停",
        ),
    ),
];

/// Meanings of all flags whose names begin with one of the words.
pub(super) const PREFIXES: &[(&[&str], PeerFlag)] = &[
    (&["wandb-", "swanlab-", "mlflow-", "comet-", "neptune-", "trackio-"], NO_UPLOADS),
    (&["fsdp-", "deepspeed-", "ddp-", "ray-"], ONE_DEVICE),
    (&["hub-"], PUSH_LATER),
    (&["dpo-", "kto-", "ppo-", "grpo-", "orpo-", "simpo-", "reward-"], PREFERENCES),
    (&["freeze-", "galore-", "badam-", "apollo-", "use-galore", "use-badam", "use-apollo"], UNTRAINED),
    (&["liger-", "unsloth-"], FUSED),
    (&["early-stopping-"], BEST_CHECKPOINT),
];

/// Values of other tools: danlu's flag, then their value and danlu's value.
pub(super) const VALUES: &[(&str, &[(&str, &str)])] = &[
    (
        "dtype",
        &[
            ("bfloat16", "bf16"),
            ("float16", "f16"),
            ("fp16", "f16"),
            ("half", "f16"),
            ("float32", "f32"),
            ("fp32", "f32"),
            ("float", "f32"),
            ("no", "f32"),
        ],
    ),
    (
        "quant",
        &[
            ("4bit", "nf4"),
            ("4-bit", "nf4"),
            ("4", "nf4"),
            ("int4", "nf4"),
            ("bnb", "nf4"),
            ("bitsandbytes", "nf4"),
        ],
    ),
    ("target-modules", &[("all", "all-linear")]),
    ("device", &[("gpu", "cuda")]),
    ("lr-scheduler-type", &[("cosine_decay", "cosine"), ("linear_schedule", "linear")]),
    ("report-to", &[("[]", "none"), ("", "none")]),
];

/// Values with which a flag has no effect in its own tool.
pub(super) const WITHOUT_EFFECT: &[(&str, &str)] = &[
    ("max-steps", "-1"),
    ("warmup-steps", "0"),
    ("neftune-noise-alpha", "0"),
    ("save-total-limit", "-1"),
    ("resume-from-checkpoint", "false"),
    ("fp16", "false"),
];

/// Commands of other tools, each with a hint that names the danlu command, in English and Chinese.
pub(super) const COMMANDS: &[(&[&str], &str, &str)] = &[
    (&["finetune", "fine-tune", "sft", "lora", "tune", "fit"], "did you mean `train`?", "是不是 `train`？"),
    (
        &["generate", "run", "infer", "inference", "talk", "predict", "complete"],
        "did you mean `chat`?",
        "是不是 `chat`？",
    ),
    (&["fuse", "export", "merge-lora", "merge-adapter"], "did you mean `merge`?", "是不是 `merge`？"),
    (&["eval", "evaluate", "test", "perplexity"], "did you mean `compare`?", "是不是 `compare`？"),
    (&["download", "fetch", "get"], "did you mean `pull`?", "是不是 `pull`？"),
    (&["upload", "publish", "share"], "did you mean `push`?", "是不是 `push`？"),
    (&["preprocess", "prepare", "dataset", "inspect"], "did you mean `data`?", "是不是 `data`？"),
    (&["preview", "show"], "did you mean `data preview`?", "是不是 `data preview`？"),
    (&["check", "validate", "lint"], "did you mean `data check`?", "是不是 `data check`？"),
    (&["convert", "convert-data"], "did you mean `data convert`?", "是不是 `data convert`？"),
    (&["translate"], "did you mean `config translate`?", "是不是 `config translate`？"),
    (&["auth"], "did you mean `login`?", "是不是 `login`？"),
    (&["init", "create", "wizard", "start"], "did you mean `new`?", "是不是 `new`？"),
    (&["env", "info", "system", "sysinfo"], "did you mean `doctor`?", "是不是 `doctor`？"),
    (&["benchmark", "perf"], "did you mean `bench`?", "是不是 `bench`？"),
    (&["estimate", "memory"], "did you mean `plan`?", "是不是 `plan`？"),
    (&["completion", "complete-shell"], "did you mean `completions`?", "是不是 `completions`？"),
    (&["server", "api", "vllm-serve", "api-server"], "did you mean `serve`?", "是不是 `serve`？"),
    (
        &["ls", "list", "ps", "models"],
        "danlu has no list of models: name a folder, or `org/name` on the Hub",
        "danlu 不列出模型：直接写文件夹，或 Hub 上的 `org/name`",
    ),
    (
        &["webui", "web", "ui", "gradio", "webchat"],
        "danlu has no web page: chat in the terminal with `danlu chat`, or connect a client to `danlu serve`",
        "danlu 没有网页界面：在终端用 `danlu chat` 对话，或让客户端连接 `danlu serve`",
    ),
    (
        &["dpo", "orpo", "kto", "grpo", "ppo", "reward"],
        "danlu has no preference training, only supervised fine-tuning: `danlu train`",
        "danlu 没有偏好训练，只有监督微调：`danlu train`",
    ),
    (
        &["gguf", "convert-gguf"],
        "danlu has no GGUF: merge to safetensors, and convert the folder with llama.cpp",
        "danlu 不写 GGUF：先合并成 safetensors，再用 llama.cpp 转换",
    ),
];
