//! `--help` in Chinese. A table maps each English text of the command line to its translation.

use clap::Command;

/// Translations of headings, commands and flags, by the English text.
const TEXTS: &[(&str, &str)] = &[
    (
        "Number type of matrix multiplications: auto (the faster of bf16 and f32), bf16, f32, or f16 (GPU only) [default: auto]",
        "矩阵乘法的数字类型：auto（bf16 与 f32 中较快的）、bf16、f32、f16（仅 GPU）[默认：auto]",
    ),
    (
        "Value of `enable_thinking` in the chat template, as of Qwen3 [default: the template's]",
        "对话模板里 `enable_thinking` 的值，例如 Qwen3 [默认：由模板决定]",
    ),
    (
        "Further values of the chat template, as a JSON object such as {\"enable_thinking\": false}",
        "对话模板的其他变量，写成 JSON 对象，如 {\"enable_thinking\": false}",
    ),
    (
        "Chat template instead of the model's: a file, or chatml, llama3, alpaca, vicuna or zephyr",
        "代替模型的对话模板：文件，或 chatml、llama3、alpaca、vicuna、zephyr",
    ),
    (
        "Merge even if the adapter predicts the held-out text worse than the base alone does",
        "即使加上适配器后，对留出文本的预测比单独的基座更差，也合并",
    ),
    (
        "Plan for an idle GPU with this much memory, such as 15GiB; the GPU need not exist",
        "按一块空闲的、显存为此大小的 GPU 来预测，如 15GiB；不需要真有这块 GPU",
    ),
    ("Network", "网络"),
    ("Explain each stage and figure in one sentence", "在每个阶段和数字下用一句话解释"),
    ("Adapters", "适配器服务"),
    ("Load", "负载"),
    (
        "Serve a base and its adapters over HTTP, with the API of OpenAI",
        "通过 HTTP 提供基座与适配器的服务，接口与 OpenAI 相同",
    ),
    (
        "Base or merged model, or an adapter to serve on its base: a folder or a Hub name",
        "基座或合并后的模型，或在其基座上提供服务的适配器：文件夹或 Hub 名称",
    ),
    ("Address or name to listen on", "监听的地址或主机名"),
    ("Port to listen on; 0 takes a free one", "监听的端口；0 表示任选一个空闲端口"),
    ("Key that clients must send [default: DANLU_API_KEY]", "客户端必须发送的密钥 [默认：DANLU_API_KEY]"),
    (
        "Key that clients must send to load and unload adapters [default: DANLU_ADMIN_KEY]",
        "客户端加载、卸载适配器时必须发送的密钥 [默认：DANLU_ADMIN_KEY]",
    ),
    ("Listen without a key on an address that other machines reach", "在其他机器可达的地址上监听而不设密钥"),
    ("Seconds that running replies may take after a signal to stop", "收到结束信号后，留给进行中回复的秒数"),
    (
        "Name of the model for clients [default: its folder or Hub name]",
        "客户端看到的模型名 [默认：文件夹名或 Hub 名称]",
    ),
    (
        "Adapter to serve, and the name that clients send as `model`; may be repeated",
        "适配器，名字即客户端的 `model`；可重复",
    ),
    (
        "Output folder of a running training; its newest checkpoint is served as NAME",
        "正在训练的输出文件夹；以此名字提供其最新检查点",
    ),
    (
        "Adapters on the Hub that a request may load by their name, such as 'you/*'",
        "请求可按名字加载的 Hub 适配器，如 'you/*'",
    ),
    (
        "Folder that must contain every adapter that a request loads by path",
        "请求按路径加载的适配器必须在此文件夹内",
    ),
    ("Allow loading and unloading adapters without an admin key", "允许不用管理密钥加载、卸载适配器"),
    (
        "Memory for adapters; the least recently used adapters are evicted, and loaded again when needed [default: a tenth of the available memory]",
        "适配器的内存；最久未用的让出，需要时重新读取 [默认：可用内存的十分之一]",
    ),
    (
        "Longest prompt and reply together, in tokens [default: the model's limit, at most 8192]",
        "提示与回复合计的最大词元数 [默认：模型上限，至多 8192]",
    ),
    ("Maximum number of replies at the same time", "同时生成的回复数上限"),
    (
        "Measure the server with its own clients and adapters, such as 8x8, and end",
        "用自带的客户端与适配器测量服务器（如 8x8），然后结束",
    ),
    (
        "Maximum number of waiting requests; further requests get status 429 [default: 8 times --max-num-seqs]",
        "排队请求数上限；超出的得到状态 429 [默认：--max-num-seqs 的 8 倍]",
    ),
    (
        "Maximum number of prompt tokens in a step; each running reply gets one token",
        "一步中处理的提示词元上限；进行中的回复各得一个词元",
    ),
    (
        "Memory for keys and values of prompts and replies [default: enough for all replies, at most a quarter of the available memory]",
        "提示与回复的键和值的内存 [默认：够所有回复用，至多可用内存的四分之一]",
    ),
    (
        "Process each prompt from its start, even if an earlier prompt has the same beginning",
        "每个提示都从头处理，即使与先前的提示开头相同",
    ),
    (
        "Continue even if the base's chat template differs from the one in training",
        "即使基座的对话模板与训练时不同，也继续",
    ),
    ("Files", "文件"),
    ("Data", "数据"),
    ("Training", "训练"),
    ("Adapter", "适配器"),
    ("4 bits", "4 位量化"),
    ("Machine", "机器"),
    ("Log and checkpoints", "日志与检查点"),
    ("Model card", "模型卡片"),
    ("Output", "输出"),
    ("Reply", "回复"),
    ("Job", "任务"),
    ("Measurement", "测量"),
    ("Model", "模型"),
    ("Print help (see a summary with '-h')", "显示帮助（-h 显示摘要）"),
    ("Print help (see more with '--help')", "显示帮助（--help 显示全部）"),
    ("Print help", "显示帮助"),
    ("Print version", "显示版本"),
    ("Print this message or the help of the given subcommand(s)", "显示本帮助，或某个命令的帮助"),
    (
        "Fine-tune, compare, chat with and merge LoRA adapters, from one binary",
        "丹炉：训练、比较、对话、合并 LoRA 适配器，只需一个程序",
    ),
    (
        "Train, compare, merge and chat with an adapter on the embedded base, in about a minute",
        "用内置基座走完训练、比较、合并、对话的全过程，约一分钟",
    ),
    ("Check, preview, convert or get training data", "检查、预览、转换或获取训练数据"),
    ("Translate a configuration file of another tool", "翻译其他工具的配置文件"),
    ("Fine-tune a LoRA adapter on your data", "用你的数据训练 LoRA 适配器"),
    (
        "Predict memory and time of a training run before anything is loaded; takes the flags of train",
        "预测训练所需的内存和时间，不加载权重；参数与 train 相同",
    ),
    (
        "Compare base and adapter, or two models, on held-out data",
        "用留出的数据比较基座与适配器，或任意两个模型",
    ),
    ("Chat with a base, an adapter or a merged model", "与基座、适配器或合并后的模型对话"),
    ("Merge an adapter into its base, and measure the result", "把适配器合并进基座，并核对结果"),
    ("Update the model card of an adapter or a merged model", "更新适配器或合并模型的说明卡片"),
    ("Quantize a base to 4 bits, in the format of bitsandbytes", "把基座量化为 4 位（bitsandbytes 格式）"),
    ("Download or update a model from the Hugging Face Hub", "从 Hugging Face Hub 下载或更新模型"),
    (
        "Publish an adapter or a model on the Hugging Face Hub, in one commit",
        "把适配器或模型发布到 Hugging Face Hub，只用一次提交",
    ),
    ("Store a token for the Hugging Face Hub", "保存 Hugging Face Hub 的令牌"),
    ("Show the account of the current token", "显示当前令牌的账号"),
    ("Remove the stored token", "删除保存的令牌"),
    (
        "Measure training, prefill, decoding and merging, and compare with this machine's peak",
        "测量训练、预填充、解码与合并的速度，并与本机峰值比较",
    ),
    ("Print a completion script for a shell", "输出命令行补全脚本"),
    ("Show the hardware of this machine and what danlu uses of it", "显示本机硬件，以及 danlu 用到的部分"),
    ("Explain a term of fine-tuning, such as rank or loss", "解释一个微调术语，如 rank 或 loss"),
    (
        "Resume the run in the output folder, or start one if there is none; for a script that repeats a command",
        "继续输出文件夹中的训练；没有就新开一次。适合重复执行同一命令的脚本",
    ),
    (
        "A term, such as rank, loss or nf4; without it, all terms are listed",
        "术语，如 rank、loss 或 nf4；不写则列出全部",
    ),
    (
        "Show records as the model sees them: rendered text, token ids, and trained tokens",
        "显示模型看到的记录：渲染后的文本、词元编号、参与训练的部分",
    ),
    ("Count and measure records, and list every fault", "统计记录，列出每一处错误"),
    (
        "Convert data to JSON, CSV, TSV or Parquet, in any format",
        "把数据转换为 JSON、CSV、TSV 或 Parquet，格式任选",
    ),
    (
        "Show what danlu takes from a file, what it ignores, and what differs",
        "显示文件中哪些被采用、哪些被忽略、哪些不同",
    ),
    (
        "Training steps: tokens/s, GFLOP/s, seconds per step, memory",
        "训练步：词元/秒、GFLOP/s、每步秒数、内存",
    ),
    ("Reading a prompt: tokens/s, GFLOP/s", "读入提示：词元/秒、GFLOP/s"),
    (
        "Generating tokens, for one or several sequences: tokens/s, GB/s",
        "生成词元，一个或多个序列：词元/秒、GB/s",
    ),
    ("Merging an adapter, compared with a plain copy of the same bytes", "合并适配器，与复制同样的字节比较"),
    (
        "Language of messages, help and errors [default: DANLU_LANG, or the locale's]",
        "界面、帮助与错误信息的语言 [默认：DANLU_LANG，否则取系统语言]",
    ),
    ("When to use colour; NO_COLOR is honoured", "何时使用颜色；遵守 NO_COLOR"),
    ("Show log messages and tokens per second", "显示日志与每秒词元数"),
    ("Print results, warnings and errors only", "只输出结果、警告与错误"),
    ("Answer yes to every question", "对所有询问回答“是”"),
    (
        "Rank of the adapter: more rank, more capacity and more memory [default: 8]",
        "适配器的秩：越大容量越大，占用内存也越多 [默认：8]",
    ),
    ("Alpha: the adapter is scaled by alpha / rank [default: 32]", "适配器按 alpha / 秩 缩放 [默认：32]"),
    ("Dropout probability of the adapter [default: 0.1]", "适配器的 dropout 概率 [默认：0.1]"),
    (
        "Projections with an adapter: all-linear, names separated by commas, or a regular expression [default: all-linear]",
        "加适配器的投影：all-linear、逗号分隔的名字，或正则表达式 [默认：all-linear]",
    ),
    (
        "Train a magnitude for each output as well (DoRA); the dropout is then 0",
        "同时训练每个输出的幅度（DoRA）；此时 dropout 为 0",
    ),
    (
        "Adapter to continue from: a folder or a Hub name; its rank and modules are used",
        "从这个适配器接着训练：文件夹或 Hub 名字；沿用它的秩与模块",
    ),
    (
        "Projections without an adapter: names separated by commas, or a regular expression",
        "不加适配器的投影：逗号分隔的名字，或正则表达式",
    ),
    (
        "Layers with an adapter, such as 0,1 or 8-15 [default: all]",
        "加适配器的层，如 0,1 或 8-15 [默认：全部]",
    ),
    (
        "Ranks of some modules by the end of their path, such as q_proj=16,mlp.up_proj=4; JSON for other patterns",
        "单独指定某些模块的秩，写路径的末尾，如 q_proj=16,mlp.up_proj=4；其他写法用 JSON",
    ),
    (
        "Alphas of some modules, written like --rank-pattern",
        "单独指定某些模块的 alpha，写法同 --rank-pattern",
    ),
    (
        "Start values: default, gaussian, orthogonal, or olora, which starts from the base's weights and has twice the rank in the file [default: default]",
        "初始值：default、gaussian、orthogonal 或 olora；olora 从基座权重出发，文件中的秩是两倍 [默认：default]",
    ),
    (
        "Ratio of the learning rate of B to that of A, such as 16 (LoRA+) [default: 1]",
        "B 的学习率是 A 的多少倍，如 16（LoRA+） [默认：1]",
    ),
    (
        "Noise on the embeddings against overfitting, such as 5 (NEFTune) [default: none]",
        "给词嵌入加噪声以减轻过拟合，如 5（NEFTune） [默认：无]",
    ),
    ("Scale by alpha / sqrt(rank) instead of alpha / rank (rsLoRA)", "改按 alpha / sqrt(秩) 缩放（rsLoRA）"),
    (
        "Languages of the model card (README.md): zh, en or both [default: the language of the terminal]",
        "模型卡片（README.md）的语言：zh、en 或 both [默认：终端的语言]",
    ),
    (
        "The model's licence in the Hub's spelling, such as apache-2.0 [default: the licence of the base]",
        "模型的许可证，用 Hub 的写法，如 apache-2.0 [默认：基座的许可证]",
    ),
    (
        "Hub name of the base for links and snippets, if the base is a local folder",
        "基座在 Hub 上的名字，用于链接与示例代码（基座是本地文件夹时）",
    ),
    ("Names of the data sets on the Hub, separated by commas", "数据集在 Hub 上的名字，用逗号分隔"),
    (
        "Markdown file with your notes on the model's limits; replaces the notes in the card",
        "写明模型局限的 Markdown 文件，替换卡片里的说明",
    ),
    (
        "Number of CPU threads; results do not depend on it [default: one per core]",
        "CPU 线程数，不影响结果 [默认：每核一个]",
    ),
    (
        "Device: auto (the first NVIDIA GPU, otherwise the CPU), cpu, cuda or cuda:N [default: auto]",
        "设备：auto（有 NVIDIA GPU 用第一块，否则用 CPU）、cpu、cuda 或 cuda:N [默认：auto]",
    ),
    (
        "Format of the data, if it is not recognised: alpaca, messages, sharegpt, prompt-completion or text",
        "数据格式，无法自动识别时使用：alpaca、messages、sharegpt、prompt-completion 或 text",
    ),
    (
        "Column names of the file for a format's keys, such as instruction=question,output=answer",
        "文件中的列名与格式的键的对应，如 instruction=question,output=answer",
    ),
    (
        "Role names of the file, such as Alice=user,Bob=assistant",
        "文件中的角色名，如 Alice=user,Bob=assistant",
    ),
    (
        "Entries of LLaMA-Factory's dataset_info.json to read, separated by commas",
        "读取 LLaMA-Factory 的 dataset_info.json 中的哪几项，用逗号分隔",
    ),
    (
        "Quantize the base's projections to 4 bits at load time: nf4, fp4 or none [default: none]",
        "加载时把基座的投影量化为 4 位：nf4、fp4 或 none [默认：none]",
    ),
    ("Store the 4-bit scales in f32 instead of 8 bits", "4 位的缩放系数用 f32 存储，而不是 8 位"),
    (
        "Number of weights that share a 4-bit scale [default: 64]",
        "多少个权重共用一个 4 位缩放系数 [默认：64]",
    ),
    (
        "Sampling temperature; 0 always picks the likeliest token [default: the model's, or 0.7]",
        "采样温度；0 总取最可能的词元 [默认：模型的设置，否则 0.7]",
    ),
    (
        "Sample from the likeliest tokens whose probabilities sum to this [default: the model's, or 0.9]",
        "只在累计概率达到此值的词元中采样 [默认：模型的设置，否则 0.9]",
    ),
    (
        "Sample from this many of the likeliest tokens; 0 for all [default: the model's, or 0]",
        "只在最可能的若干词元中采样；0 表示全部 [默认：模型的设置，否则 0]",
    ),
    (
        "Drop tokens less probable than this fraction of the likeliest [default: the model's, or 0]",
        "舍弃概率低于最大概率此倍数的词元 [默认：模型的设置，否则 0]",
    ),
    (
        "Penalty for tokens already in the text; 1 is off [default: the model's, or 1]",
        "对已出现词元的惩罚；1 表示关闭 [默认：模型的设置，否则 1]",
    ),
    ("Random seed: the same seed and text give the same reply", "随机种子：种子与文字相同，回复就相同"),
    ("Random tokens of each prompt; reading them is not measured", "每个提示的随机词元数；读入不计时"),
    ("New tokens of each sequence, by greedy decoding", "每个序列生成的词元数（贪心解码）"),
    ("Number of sequences decoded at once", "同时解码的序列数"),
    (
        "Also measure with N random adapters, which the sequences use in turn; these runs alternate with runs of the base alone",
        "另用 N 个随机适配器（各序列轮流）测量，与只用基座交替进行",
    ),
    (
        "Rank of the adapters; a list such as 8,16,64 gives them different ranks",
        "适配器的秩；写成 8,16,64 则各不相同",
    ),
    (
        "Measured runs [default: 10 for train, 5 for prefill, 3 for decode and merge]",
        "计时的次数 [默认：train 10，prefill 5，decode 与 merge 3]",
    ),
    (
        "Unmeasured runs before the measured ones [default: 2 for train, 1 for prefill and decode, 0 for merge]",
        "计时前的预热次数 [默认：train 2，prefill 与 decode 1，merge 0]",
    ),
    (
        "Also print the time of each operation, with its share of the peak (CPU only)",
        "另外列出每种操作的时间，及其占峰值的比例（仅 CPU）",
    ),
    ("Print all results as one JSON object", "以一个 JSON 对象输出全部结果"),
    ("Print the result as one JSON object", "以一个 JSON 对象输出结果"),
    ("Print JSON to stdout: one line per event of a run", "向标准输出写 JSON：训练的每个事件一行"),
    ("Model: a folder or a Hub name", "模型：文件夹或 Hub 上的名字"),
    (
        "Random weights in a known shape instead: base-8m, base-28m, llama-125m, llama-3.2-1b, llama-3-8b, qwen3-0.6b, gemma-3-1b or phi-4-mini",
        "改用已知形状的随机权重：base-8m、base-28m、llama-125m、llama-3.2-1b、llama-3-8b、qwen3-0.6b、gemma-3-1b 或 phi-4-mini",
    ),
    (
        "Folder for the random weights; existing ones are used again [default: in memory]",
        "存放随机权重的文件夹，已有则复用 [默认：只放在内存里]",
    ),
    ("Random tokens of the prompt", "提示的随机词元数"),
    (
        "Random tokens, all trained: sequences per micro-batch x tokens per sequence [default: 2x512]",
        "随机词元，全部参与训练：每微批序列数 x 每序列词元数 [默认：2x512]",
    ),
    (
        "Training data instead, in any form that `danlu train` reads",
        "改用训练数据，格式与 `danlu train` 相同",
    ),
    (
        "Folder of the tokenizer for --data [default: the base's]",
        "--data 使用的分词器所在文件夹 [默认：基座的]",
    ),
    ("Longest record of --data in tokens [default: 384]", "--data 中记录的最大长度，以词元计 [默认：384]"),
    ("Skip bad records of --data", "跳过 --data 中的坏记录"),
    ("Records of --data per micro-batch [default: 2]", "每微批的 --data 记录数 [默认：2]"),
    ("Micro-batches per step [default: 1, or 2 with --data]", "每步的微批数 [默认：1；有 --data 时 2]"),
    (
        "Memory limit, such as 8GiB; layers recompute activations to stay below it",
        "内存上限，如 8GiB；各层会重算激活以不超过它",
    ),
    ("Folder written by `train`, `merge` or `quantize`", "由 `train`、`merge` 或 `quantize` 写出的文件夹"),
    ("Hub name of the model, for the snippets", "模型在 Hub 上的名字，用于示例代码"),
    (
        "Adapter, merged model or base: a folder or a Hub name",
        "适配器、合并后的模型或基座：文件夹或 Hub 上的名字",
    ),
    ("Base of the adapter, instead of the one the adapter names", "适配器的基座，代替适配器里写的那个"),
    ("Answer this prompt and exit", "回答这一句就退出"),
    ("System prompt", "系统提示词"),
    (
        "Continue even if the base's chat template differs from the adapter's",
        "即使基座的对话模板与适配器的不同也继续",
    ),
    ("Longest reply, in tokens", "回复的最大长度，以词元计"),
    (
        "Longest conversation, in tokens; older turns are dropped [default: the model's limit, at most 8192]",
        "对话的最大长度，以词元计；更早的轮次会被丢弃 [默认：模型的上限，最多 8192]",
    ),
    ("Model to compare with [default: the base of the adapter A]", "用来比较的模型 [默认：适配器 A 的基座]"),
    (
        "Records that neither model was trained on [default: held_out.json, which `train` writes to the adapter; for two adapters both files must be equal]",
        "两个模型都没训练过的记录 [默认：`train` 写在适配器里的 held_out.json；两个适配器的文件须相同]",
    ),
    ("Base of the adapters, instead of the one they name", "适配器的基座，代替它们写的那个"),
    ("Number of records to measure; 0 for all", "测量多少条记录；0 表示全部"),
    ("Number of questions that both models answer", "两个模型都回答的问题数"),
    ("Longest record, in tokens", "记录的最大长度，以词元计"),
    (
        "Continue even if the tokenizer or template of a base differs from that of its adapter",
        "即使基座的分词器或模板与适配器的不同也继续",
    ),
    ("Shell: bash, zsh, fish, elvish or powershell", "命令行：bash、zsh、fish、elvish 或 powershell"),
    ("YAML, JSON or TOML file", "YAML、JSON 或 TOML 文件"),
    (
        "Write a data set for a first training: an embedded one, or one from a public address",
        "写出一份练手用的数据：内置的，或从公开地址下载的",
    ),
    ("Data set; without it, all are listed", "数据集的名字；不写则列出全部"),
    (
        "Output file [default: the data set's own name, in this folder]",
        "输出文件 [默认：当前文件夹里，与数据集同名]",
    ),
    (
        "Plan for a known shape instead of a base: base-8m, base-28m, llama-125m, llama-3.2-1b, llama-3-8b, qwen3-0.6b, gemma-3-1b or phi-4-mini",
        "按已知的形状预测，不需要基座：base-8m、base-28m、llama-125m、llama-3.2-1b、llama-3-8b、qwen3-0.6b、gemma-3-1b 或 phi-4-mini",
    ),
    (
        "Answer five questions, get a run with its forecast, and start it",
        "回答五个问题，得到一份带预测的训练方案，并开始训练",
    ),
    ("Answers", "回答"),
    ("Language of the data: zh or en [default: asked]", "数据的语言：zh 或 en [默认：询问]"),
    (
        "Base model: demo, a folder or a Hub name [default: asked]",
        "基座模型：demo、文件夹或 Hub 上的名字 [默认：询问]",
    ),
    (
        "Training data: a file, hf:org/name, or a data set of `danlu data get` [default: asked]",
        "训练数据：文件、hf:org/name，或 `danlu data get` 的数据集 [默认：询问]",
    ),
    (
        "One sentence about who the model is; this sentence becomes the system message [default: asked]",
        "一句话说明模型是谁，作为系统消息 [默认：询问]",
    ),
    (
        "Time and memory that the run may take, such as '30m 4GiB' [default: asked]",
        "训练最多用多少时间和内存，如 '30m 4GiB' [默认：询问]",
    ),
    (
        "Configuration file to write [default: run.toml, or the next free run-N.toml]",
        "要写的配置文件 [默认：run.toml，或下一个空闲的 run-N.toml]",
    ),
    (
        "Show the report of a run in a browser, live, or compare several runs on one page",
        "在浏览器里看训练报告（训练时自动刷新），或在一页里对比几次训练",
    ),
    ("Output folders of runs; several are compared on one page", "训练的输出文件夹；给出多个则在一页里对比"),
    ("Write the page to a file instead of serving it", "把页面写到文件，而不是在本机提供"),
    ("Port on 127.0.0.1; 0 for any free one", "127.0.0.1 上的端口；0 表示任选一个空闲的"),
    ("Open the page in a browser", "在浏览器里打开页面"),
    (
        "Open report.html in a browser during the run; the page reloads itself",
        "训练时在浏览器里打开 report.html；页面会自动刷新",
    ),
    (
        "Answer each line of a file in a conversation of its own, and exit",
        "逐行回答文件里的问题，每行一次新的对话，然后退出",
    ),
    (
        "Data files, or data sets on the Hub such as hf:org/name:train",
        "数据文件，或 Hub 上的数据集，如 hf:org/name:train",
    ),
    (
        "Data file, or a data set on the Hub such as hf:org/name:train",
        "数据文件，或 Hub 上的一个数据集，如 hf:org/name:train",
    ),
    (
        "List every faulty record, not only the first ten of each kind",
        "列出每一条有问题的记录，而不只是每类前十条",
    ),
    (
        "Output file: .json, .jsonl, .csv, .tsv or .parquet, also with .gz or .zst",
        "输出文件：.json、.jsonl、.csv、.tsv 或 .parquet，可再加 .gz 或 .zst",
    ),
    ("Output format [default: messages; text for documents]", "输出格式 [默认：messages；纯文本用 text]"),
    ("Skip bad records", "跳过坏记录"),
    (
        "Base whose tokenizer and template are used [default: the embedded base]",
        "使用哪个基座的分词器与模板 [默认：内置基座]",
    ),
    (
        "Chat template instead of the base's: a file, or chatml, llama3, alpaca, vicuna or zephyr",
        "代替基座的对话模板：文件，或 chatml、llama3、alpaca、vicuna、zephyr",
    ),
    (
        "Longest record in tokens; longer ones lose the start of their question",
        "记录的最大长度，以词元计；超出时从问题开头截",
    ),
    (
        "System message for conversations without one, as `danlu train --default-system`",
        "给没有系统消息的对话加上的系统消息，同 `danlu train --default-system`",
    ),
    (
        "Also train on questions, as `danlu train --train-on-prompt`",
        "问题也参与训练，同 `danlu train --train-on-prompt`",
    ),
    ("Records to show", "显示多少条记录"),
    (
        "Output folder [default: danlu-demo, or the next free danlu-demo-N]",
        "输出文件夹 [默认：danlu-demo，或下一个空闲的 danlu-demo-N]",
    ),
    (
        "Character of the model: palace (376 Chinese records) or cook (121 English ones)",
        "模型扮演谁：palace（376 条中文）或 cook（121 条英文）",
    ),
    (
        "Model on the Hub: org/name, org/name@revision, or the URL of its page",
        "Hub 上的模型：组织/名字、组织/名字@版本，或页面网址",
    ),
    ("Folder of the adapter or the model", "适配器或模型的文件夹"),
    ("Repository on the Hub: org/name", "Hub 上的仓库：组织/名字"),
    ("Make a new or empty repository private", "把新建的或空的仓库设为私有"),
    (
        "Branch to commit to; a new branch starts at main [default: main]",
        "提交到哪个分支；新分支从 main 开始 [默认：main]",
    ),
    ("Open a pull request instead of committing to the branch", "发起合并请求，而不是直接提交"),
    ("Title of the commit [default: Upload with danlu]", "提交的标题 [默认：Upload with danlu]"),
    (
        "Hub name of the base, if adapter_config.json names a local folder",
        "基座在 Hub 上的名字（adapter_config.json 里是本地文件夹时）",
    ),
    ("List what would be uploaded, and upload nothing", "只列出会上传什么，不上传"),
    (
        "Also upload a file that is skipped by default: a path in the folder, or a pattern such as '*.jsonl'",
        "同时上传默认跳过的文件：文件夹内的路径，或 '*.jsonl' 这样的通配",
    ),
    ("Upload files even if they seem to contain a token", "即使文件像是含有令牌也上传"),
    ("Adapter: a folder or a Hub name", "适配器：文件夹或 Hub 上的名字"),
    ("Output folder: new or empty", "输出文件夹：新建的或空的"),
    (
        "Base to merge into after training on 4 bits: original, dequantized, or auto for the closer result",
        "适配器在 4 位基座上训练时，合并进哪种基座：original、dequantized，或 auto 取更接近的",
    ),
    ("Folder of the model from which the 4-bit base was quantized", "4 位基座的原始模型所在文件夹"),
    (
        "Quantize the merged model to 4 bits, nf4 or fp4; all results then describe the quantized model",
        "合并后再量化为 4 位（nf4 或 fp4）；之后的结果都是量化后的模型的",
    ),
    (
        "Type of the merged weights: f32, bf16 or f16 [default: the base's]",
        "合并后权重的类型：f32、bf16 或 f16 [默认：与基座相同]",
    ),
    (
        "Largest weight file, such as 2GB [default: files as the base has them]",
        "单个权重文件的上限，如 2GB [默认：与基座的分法相同]",
    ),
    (
        "Held-out records to measure the merge on [default: the adapter's held_out.json, or a built-in text]",
        "用来核对合并的留出记录 [默认：适配器的 held_out.json，否则用内置文本]",
    ),
    ("Format of the records in --data, if it is not recognised", "--data 中记录的格式，无法自动识别时使用"),
    (
        "Reject the merge if its mean KL divergence from base plus adapter exceeds this, in nats per token [default: a quarter of the adapter's own effect, at most 1e-2 for bf16, 2e-4 for f16, 1e-6 for f32]. With --to, the limit applies to the model before quantization too; the 4-bit model is only marked as passed or failed",
        "合并后的模型与“基座+适配器”的平均 KL 散度超过此值（奈特/词元）就拒绝 [默认：适配器自身作用的四分之一，bf16 最多 1e-2，f16 2e-4，f32 1e-6]。有 --to 时，此限同样用于量化之前的模型；4 位模型只标明是否通过，不会被拒绝",
    ),
    (
        "Continue even if the base's tokenizer or template differs from the adapter's",
        "即使基座的分词器或模板与适配器的不同也继续",
    ),
    ("Base: a folder or a Hub name", "基座：文件夹或 Hub 上的名字"),
    ("4-bit type: nf4 or fp4", "4 位类型：nf4 或 fp4"),
    ("Store the scales in f32 instead of 8 bits", "缩放系数用 f32 存储，而不是 8 位"),
    ("Number of weights that share a scale [default: 64]", "多少个权重共用一个缩放系数 [默认：64]"),
    (
        "Modules that are not quantized, separated by commas: full names or their last parts, such as down_proj",
        "不量化的模块，用逗号分隔：全名或末尾部分，如 down_proj",
    ),
    ("Base model: a folder or a Hub name", "基座模型：文件夹或 Hub 上的名字"),
    (
        "Training data: JSON, JSON lines, CSV, TSV, Parquet, or hf:org/name:split for a data set on the Hub",
        "训练数据：JSON、JSON Lines、CSV、TSV、Parquet，或 Hub 上的数据集 hf:org/name:split",
    ),
    (
        "Output folder: new, empty, or with --resume the run to resume",
        "输出文件夹：新建的或空的；有 --resume 时是要继续的训练",
    ),
    (
        "Read flags from a file: TOML, YAML or JSON, also of axolotl, LLaMA-Factory, TRL or mlx-lm",
        "从文件读取参数：TOML、YAML 或 JSON，也可以是 axolotl、LLaMA-Factory、TRL 或 mlx-lm 的配置",
    ),
    (
        "Resume from the newest checkpoint of the output folder, or from the given one",
        "从输出文件夹中最新的检查点继续，或从给出的检查点继续",
    ),
    ("Skip and list bad records instead of refusing the data", "跳过并列出坏记录，而不是拒绝整份数据"),
    (
        "Memory limit, weights included, such as 8GiB or 900MB; layers recompute activations to stay below it, with equal results [default: the available memory]",
        "内存上限（含权重），如 8GiB 或 900MB；各层会重算激活以不超过它，结果不变 [默认：可用内存]",
    ),
    (
        "Further log of the run: tensorboard writes event files to the output folder [default: none]",
        "另写一份日志：tensorboard 会在输出文件夹写事件文件 [默认：none]",
    ),
    (
        "Longest record in tokens; longer ones lose the start of their question [default: 384]",
        "记录的最大长度，以词元计；超出时从问题开头截 [默认：384]",
    ),
    (
        "Records to hold out: a fraction below 1, or a count; 0 for none [default: 0.02 from 50 records on]",
        "留出多少记录不训练：小于 1 的比例，或条数；0 表示不留 [默认：满 50 条时 0.02]",
    ),
    (
        "Pack several records into each row of a batch; attention stays within a record",
        "把多条记录拼进一行；注意力不跨记录",
    ),
    (
        "Shuffle the records in each epoch; =false keeps the order of the file [default: true]",
        "每轮打乱记录；=false 保持文件中的顺序 [默认：true]",
    ),
    ("Train on questions too, not only on answers", "问题也参与训练，而不只是回答"),
    (
        "Add the EOS token to documents, and to answers if the template has no end token; =false adds none [default: true]",
        "在文档之后加 EOS 词元；模板没有结束词元时，回答之后也加；=false 不加 [默认：true]",
    ),
    (
        "Whether answers without an end token get the EOS token, as `danlu train --add-eos-token`",
        "没有结束词元的回答是否加 EOS 词元，同 `danlu train --add-eos-token`",
    ),
    (
        "System message for conversations without one; stored with the adapter",
        "给没有系统消息的对话加上的系统消息；与适配器一起保存",
    ),
    (
        "The date for a chat template that uses one [default: today; a resumed run keeps its date]",
        "对话模板用到的日期 [默认：今天；继续训练时沿用原来的]",
    ),
    ("Peak learning rate [default: 1e-4]", "学习率的最大值 [默认：1e-4]"),
    ("Epochs: passes over the data [default: 1]", "数据训练几遍 [默认：1]"),
    ("Number of optimizer steps, instead of epochs", "训练多少步，代替遍数"),
    (
        "Records per micro-batch, or with --packing rows of --max-length tokens; a prefix that records share is computed once [default: 2]",
        "每微批的记录数（有 --packing 时是 --max-length 长的行数）；相同的开头只算一次 [默认：2]",
    ),
    ("Micro-batches per step [default: 2]", "每步的微批数 [默认：2]"),
    ("Fraction of the steps with a rising learning rate [default: 0]", "学习率预热占总步数的比例 [默认：0]"),
    (
        "Learning rate schedule: linear, cosine, constant or constant_with_warmup [default: linear]",
        "学习率的变化：linear、cosine、constant 或 constant_with_warmup [默认：linear]",
    ),
    ("Weight decay of AdamW, decoupled [default: 0]", "AdamW 的权重衰减（解耦）[默认：0]"),
    ("Gradient norm limit; 0 for none [default: 1]", "梯度范数上限；0 表示不限 [默认：1]"),
    ("Decay of AdamW's first moment [default: 0.9]", "AdamW 一阶矩的衰减 [默认：0.9]"),
    ("Decay of AdamW's second moment [default: 0.999]", "AdamW 二阶矩的衰减 [默认：0.999]"),
    ("Epsilon of AdamW [default: 1e-8]", "AdamW 的 epsilon [默认：1e-8]"),
    (
        "Random seed of the adapter, the record order and dropout [default: 42]",
        "随机种子：适配器、记录顺序与 dropout [默认：42]",
    ),
    ("Steps between two log lines [default: 10]", "每隔多少步输出一行日志 [默认：10]"),
    (
        "Steps between two checkpoints; 0 saves only at the end [default: 100]",
        "每隔多少步存一个检查点；0 表示只在最后保存 [默认：100]",
    ),
    (
        "Number of checkpoints to keep: only the newest stay [default: all]",
        "保留最新的几个检查点 [默认：全部]",
    ),
    (
        "Steps between two evaluations on held-out records [default: only before and after training]",
        "每隔多少步在留出记录上测量 [默认：只在训练前后]",
    ),
];

/// Translations of the prose around the examples, by line.
const TAILS: &[(&str, &str)] = &[
    ("Examples:", "例子："),
    (
        "From data to a merged model, with the files of the demo:",
        "从数据到合并后的模型，用 demo 写出的文件：",
    ),
    (
        "Exit codes: 0 success, 1 bad input, 2 internal error (please report it), 130 interrupted. For `serve` and `report`, Ctrl-C is the normal end, with exit code 0.",
        "退出码：0 成功，1 输入有误，2 内部错误（请报告），130 被中断。`serve` 与 `report` 用 Ctrl-C 正常结束，退出码为 0。",
    ),
    (
        "Clients of OpenAI, vLLM and Ollama work with it: their `model` is the name of the base or of an adapter. Ctrl-C finishes the running replies, a second Ctrl-C ends at once.",
        "OpenAI、vLLM、Ollama 的客户端都能用：`model` 填基座或适配器的名字。Ctrl-C 等进行中的回复做完再结束，再按一次立即结束。",
    ),
    (
        "With --yes, questions without a flag get their default answers, and the run starts.",
        "有 --yes 时，没有给出的问题都用默认回答，然后开始训练。",
    ),
    (
        "Create a token at https://huggingface.co/settings/tokens. Downloads need `read`, `push` needs `write`. The token is stored where Python's tools look (HF_TOKEN_PATH, or `token` in HF_HOME), readable only by you. `hf auth whoami` finds it there; `hf auth list` shows only tokens from `hf auth login`.",
        "令牌在 https://huggingface.co/settings/tokens 创建：下载需要 `read`，`push` 需要 `write`。令牌存在 Python 工具也会读的地方（HF_TOKEN_PATH，或 HF_HOME 里的 `token`），只有你能读。`hf auth whoami` 能找到它；`hf auth list` 只列出 `hf auth login` 存的令牌。",
    ),
    (
        "A folder that danlu cannot load is refused. A missing repository is created. All files arrive in one commit; an interrupted push resumes when it is run again. Checkpoints, logs, training data, keys, and files that contain a token are not uploaded. Old shards of a replaced model are removed from the repository.",
        "danlu 加载不了的文件夹会被拒绝。仓库不存在时自动创建。所有文件在一次提交里到达；中断后重新运行即可继续。检查点、日志、训练数据、密钥和含令牌的文件不会上传。模型被替换后，仓库里旧的分片会被删除。",
    ),
    (
        "The cache is shared with Python's tools (HF_HOME, HF_HUB_CACHE). Other commands download `hf:org/name` if the cache lacks it; `pull` also checks for a newer version.",
        "缓存与 Python 工具共用（HF_HOME、HF_HUB_CACHE）。其他命令在缓存里没有 `hf:组织/名字` 时也会下载；`pull` 还会检查有没有新版本。",
    ),
    (
        "The page is served on 127.0.0.1 until Ctrl-C. The page of a running training reloads itself.",
        "页面在 127.0.0.1 上提供，直到 Ctrl-C。训练进行时，页面会自动刷新。",
    ),
    (
        "To keep the completions, add the line to ~/.bashrc, ~/.zshrc or config.fish.",
        "要长期使用，把这一行加到 ~/.bashrc、~/.zshrc 或 config.fish。",
    ),
    (
        "Commands in a chat: /retry answers again, /undo removes the last turn, /compare asks the base, /set changes the sampling, /reset clears the conversation, /system TEXT sets the system prompt, /save FILE saves the conversation as training data, /help lists them, /exit leaves. Ctrl-C stops a reply.",
        "对话中的命令：/retry 换一个回答，/undo 撤回上一问一答，/compare 让基座也答一遍，/set 改采样设置，/reset 忘记之前的对话，/system 文字 设定系统提示词，/save 文件 把对话存成训练数据，/help 列出命令，/exit 离开。Ctrl-C 打断回复。",
    ),
    ("A configuration file uses the same names, one per line:", "配置文件用同样的名字，一行一个："),
    (
        "Flag names of TRL, PEFT, axolotl, LLaMA-Factory, Unsloth and mlx-lm also work, such as --lr, --epochs and --load_in_4bit.",
        "TRL、PEFT、axolotl、LLaMA-Factory、Unsloth、mlx-lm 的参数名也能用，如 --lr、--epochs、--load_in_4bit。",
    ),
    (
        "Ctrl-C finishes the step, saves a checkpoint and prints the command to resume; a second Ctrl-C exits at once.",
        "Ctrl-C 做完这一步，存一个检查点，并给出继续训练的命令；再按一次立即退出。",
    ),
    (
        "`train` and `merge` write the card themselves; this command updates it without training. Values of earlier flags stay until a flag changes them. Only the text between `<!-- danlu:begin -->` and `<!-- danlu:end -->`, and danlu's own keys of the front matter, are written. The rest of README.md is yours and is not changed.",
        "`train` 与 `merge` 会自己写卡片；这条命令不训练，只更新卡片。以前给过的值一直有效，直到再给新值。只写 `<!-- danlu:begin -->` 与 `<!-- danlu:end -->` 之间的文字和 danlu 自己的元数据；README.md 的其余部分归你所有，不会改动。",
    ),
    (
        "DANLU_DATA_MIRROR replaces https://raw.githubusercontent.com, for a network that cannot reach it. The checksum of the file is checked in any case.",
        "连不上 https://raw.githubusercontent.com 时，用 DANLU_DATA_MIRROR 指定镜像。无论从哪里下载，都会核对文件的校验和。",
    ),
    (
        "The first compares base and adapter on the records that the run held out. The second compares an adapter with its merge. Two adapters are compared in the same way.",
        "第一条在训练时留出的记录上比较基座与适配器。第二条比较适配器与它合并后的模型。两个适配器也这样比较。",
    ),
    (
        "Without --data, every record is assumed to be as long as --max-length. The base folder needs only config.json. The time is measured with one layer of random weights, on the processor.",
        "没有 --data 时，假定每条记录都有 --max-length 那么长。基座的文件夹只需要有 config.json。时间用一层随机权重在处理器上实测得出。",
    ),
    (
        "Files of axolotl, LLaMA-Factory, TRL and mlx-lm are recognised. The table goes to stderr, the translated file to stdout.",
        "能识别 axolotl、LLaMA-Factory、TRL、mlx-lm 的文件。对照表写到标准错误，翻译后的文件写到标准输出。",
    ),
    ("Results and the machine's peak are measured in the same run.", "结果与本机峰值在同一次运行中测量。"),
    (
        "The folder has the format of bitsandbytes, and transformers loads it. `--quant nf4` does the same at load time, and writes nothing.",
        "写出的文件夹是 bitsandbytes 的格式，transformers 可以加载。`--quant nf4` 在加载时做同样的事，但不写文件。",
    ),
    (
        "  danlu login                      # asks for the token, without echo",
        "  danlu login                      # 输入令牌，不显示",
    ),
    (
        "  HF_TOKEN=hf_... danlu login      # stores the variable's token",
        "  HF_TOKEN=hf_... danlu login      # 保存环境变量里的令牌",
    ),
];

const TEMPLATE: &str = "{about-with-newline}\n用法：{usage}\n\n{all-args}{after-help}";

/// Translates headings, commands and flags of `command` and its subcommands.
pub fn translate(mut command: Command) -> Command {
    // clap adds `--help` and `--version` only when it builds a command.
    command.build();
    translated(command)
}

fn translated(command: Command) -> Command {
    let about = command.get_about().map(|text| chinese(&text.to_string()));
    let command = command.mut_args(|arg| {
        let help = arg.get_help().map(|text| chinese(&text.to_string()));
        let heading = match arg.get_help_heading() {
            Some(heading) => leaked(chinese(heading)),
            None if arg.is_positional() => "参数",
            None => "选项",
        };
        let long = arg.get_long_help().map(|text| chinese(&text.to_string()));
        let values = values(&arg);
        let help = help.map(|text| text + &values);
        let arg = arg.help_heading(heading).hide_default_value(true).hide_possible_values(true);
        let arg = match long {
            Some(long) => arg.long_help(long),
            None => arg,
        };
        match help {
            Some(help) => arg.help(help),
            None => arg,
        }
    });
    let command = match about {
        Some(about) => command.about(about),
        None => command,
    };
    let tail = command.get_after_help().map(|text| chinese_tail(&text.to_string()));
    let command = match tail {
        Some(tail) => command.after_help(tail),
        None => command,
    };
    command.help_template(TEMPLATE).subcommand_help_heading("命令").mut_subcommands(translated)
}

/// Returns the translation of `text`, or `text` itself if there is none.
fn chinese(text: &str) -> String {
    let found = TEXTS.iter().find(|(english, _)| *english == text);
    found.map_or_else(|| text.to_owned(), |(_, chinese)| (*chinese).to_owned())
}

/// Returns the notes that clap adds to the help of a flag: the default and the possible values.
fn values(arg: &clap::Arg) -> String {
    let joined = |values: Vec<String>| values.join("、");
    let mut notes = String::new();
    let defaults =
        arg.get_default_values().iter().map(|value| value.to_string_lossy().into_owned()).collect();
    if arg.get_action().takes_values()
        && !arg.get_default_values().is_empty()
        && !arg.is_hide_default_value_set()
    {
        notes += &format!(" [默认：{}]", joined(defaults));
    }
    let possible: Vec<String> = match arg.get_action().takes_values() && !arg.is_hide_possible_values_set() {
        true => arg.get_possible_values().iter().map(|value| value.get_name().to_owned()).collect(),
        false => Vec::new(),
    };
    if !possible.is_empty() {
        notes += &format!(" [可选：{}]", joined(possible));
    }
    notes
}

/// Translates the text below the flags, line by line. Commands stay as they are.
fn chinese_tail(text: &str) -> String {
    let translated = text
        .lines()
        .map(|line| TAILS.iter().find(|(english, _)| *english == line).map_or(line, |(_, zh)| zh));
    translated.collect::<Vec<_>>().join("\n")
}

/// Leaks `text`, because clap needs headings that live as long as the process. A help page has about a dozen
/// headings.
fn leaked(text: String) -> &'static str {
    Box::leak(text.into_boxed_str())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::Cli;

    fn texts(command: &Command, out: &mut Vec<String>) {
        out.extend(command.get_about().map(ToString::to_string));
        for arg in command.get_arguments().filter(|arg| !arg.is_hide_set()) {
            out.extend(arg.get_help().map(ToString::to_string));
            out.extend(arg.get_help_heading().map(str::to_owned));
        }
        command.get_subcommands().for_each(|command| texts(command, out));
    }

    #[test]
    fn every_text_of_the_help_is_translated() {
        let mut all = Vec::new();
        texts(&Cli::command(), &mut all);
        let missing: Vec<_> = all.iter().filter(|text| chinese(text) == **text).collect();
        assert!(missing.is_empty(), "{missing:#?}");
        for (english, chinese) in TEXTS {
            let flags = |text: &str| text.matches("--").count();
            assert_eq!(flags(english), flags(chinese), "{english}");
        }
    }

    #[test]
    fn every_text_around_the_examples_is_translated() {
        fn tails(command: &Command, out: &mut Vec<String>) {
            out.extend(command.get_after_help().map(ToString::to_string));
            command.get_subcommands().for_each(|command| tails(command, out));
        }
        let mut all = Vec::new();
        tails(&Cli::command(), &mut all);
        let lines = all.iter().flat_map(|text| text.lines());
        let is_prose = |line: &&str| (!line.is_empty() && !line.starts_with(' ')) || line.contains("  # ");
        let missing: Vec<&str> = lines.filter(is_prose).filter(|line| chinese_tail(line) == *line).collect();
        assert!(missing.is_empty(), "{missing:#?}");
        for (english, _) in TAILS {
            assert!(all.iter().any(|text| text.lines().any(|line| line == *english)), "{english}");
        }
    }

    #[test]
    fn the_help_is_chinese_and_its_flags_are_not() {
        let mut command = translate(Cli::command());
        let train = command.find_subcommand_mut("train").unwrap();
        let help = train.render_long_help().to_string();
        for text in [
            "用你的数据训练 LoRA 适配器",
            "--learning-rate <RATE>",
            "学习率的最大值",
            "文件:",
            "用法：",
            "显示帮助",
        ] {
            assert!(help.contains(text), "{text}: {help}");
        }
        for english in ["Peak learning rate", "Usage", "[default", "[possible", "Examples"] {
            assert!(!help.contains(english), "{english}: {help}");
        }
    }
}
