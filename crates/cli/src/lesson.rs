//! The sentences that `--teach` prints below the stages and the numbers of the output. `danlu explain`
//! describes each term at length.

use crate::lang::Lang;

/// A sentence about a stage or a number of the output, in Chinese and English.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lesson(&'static str, &'static str);

impl Lesson {
    pub fn text(self, lang: Lang) -> &'static str {
        lang.pick(self.0, self.1)
    }
}

pub const TRAINABLE_PARAMETERS: Lesson = Lesson(
    "训练只改这些参数，基座的权重一个也不动。",
    "Training changes these parameters only, and no weight of the base.",
);

pub const TRAINED_TOKENS: Lesson = Lesson(
    "只有回答部分的词元计入损失，问题只作上下文。",
    "Only the tokens of the answers count in the loss; the questions are context.",
);

pub const BATCH: Lesson = Lesson(
    "一步读一批记录，然后把适配器修改一次。",
    "A step reads one batch of records, and then changes the adapter once.",
);

pub const SETTINGS: Lesson = Lesson(
    "lora_r 决定两个小矩阵有多宽，lora_alpha 除以 lora_r 决定它们的作用有多大。",
    "lora_r is the width of the two small matrices, and lora_alpha / lora_r scales their effect.",
);

pub const PEAK_MEMORY: Lesson = Lesson(
    "这是整个训练中占用内存最多的那一刻，开始之前就算好了。",
    "This is the most memory that the run needs at any moment, computed before it starts.",
);

pub const STORED_ACTIVATIONS: Lesson = Lesson(
    "内存不够时，有些层不保存中间结果，反向传播时再算一遍：省内存，多花时间。",
    "With little memory, some layers recompute their intermediate results: less memory, more time.",
);

pub const HELD_OUT_LOSS: Lesson = Lesson(
    "留出的记录从不参与训练，它们的损失下降说明学到了东西，不是死记硬背；困惑度 N 表示每一步都像在 N 个词元里猜一个。",
    "Held-out records are never trained on, so a falling loss means learning and not memorizing; \
                 a perplexity of N is the uncertainty of a guess among N tokens.",
);

pub const STEP_LINE: Lesson = Lesson(
    "损失表示模型对下一个词元有多意外，越低越好；学习率是这一步修改的幅度。",
    "The loss measures how much the next token surprises the model, lower is better; \
                 lr is the size of this step's change.",
);

pub const CURVE: Lesson = Lesson(
    "训练损失还在降而留出集损失开始升，就是过拟合，该停了。",
    "If the training loss falls while the held-out loss rises, the run overfits: stop earlier.",
);

pub const VERDICT: Lesson = Lesson(
    "结论只看损失，回答好不好还要自己读一读。",
    "The verdict rests on the losses alone, so read some replies too.",
);

pub const LENGTHS: Lesson = Lesson(
    "长度按词元算，一步的时间和内存取决于最长的记录。",
    "Lengths are in tokens, and the longest records decide the time and memory of a step.",
);

pub const PREVIEW: Lesson = Lesson(
    "末尾的结束符也在训练之列，模型由此学会在哪里停。",
    "The end token is trained too, which teaches the model where to stop.",
);

pub const RECORD_WINS: Lesson = Lesson(
    "平均值会被几条记录带偏，所以再数一数各自在多少条记录上更好。",
    "A few records can sway a mean, so the last rows count on how many records each model is better.",
);

pub const SIDE_BY_SIDE: Lesson = Lesson(
    "两边都取概率最大的词元，同样的问题每次得到同样的回答。",
    "Both sides always take the most likely token, so the same question gives the same reply each time.",
);

pub const LOGIT_DIFFERENCE: Lesson = Lesson(
    "logit 是模型给每个词元打的分，合并后的分数应当几乎不变。",
    "A logit is the model's score of a token, and a merge should hardly change any score.",
);

pub const DIVERGENCE: Lesson = Lesson(
    "KL 散度衡量两个模型的预测差多少，零表示完全一样；下一行是适配器本身带来的变化，可作比较。",
    "KL divergence measures how far two models' predictions are apart, and zero means equal; \
                 the next row gives the adapter's own effect for comparison.",
);

pub const SAME_TOKEN: Lesson = Lesson(
    "这么多比例的位置上，两个模型首选的词元相同。",
    "At this share of all positions, both models prefer the same token.",
);

pub const MERGED_PERPLEXITY: Lesson = Lesson(
    "后两个困惑度几乎相等，说明合并没有丢掉适配器学到的东西。",
    "If the last two perplexities are almost equal, the merge kept what the adapter learned.",
);

pub const QUANTIZED: Lesson = Lesson(
    "4 位权重只有 16 种取值，每组共用一个缩放系数，所以小得多，也略有误差。",
    "A 4-bit weight has one of 16 values and a shared scale, so it is much smaller and slightly off.",
);

pub const PLAN_TABLE: Lesson = Lesson(
    "权重只读，优化器为每个训练的参数多存两个数，激活是反向传播要用的中间结果。",
    "Weights are only read; the optimizer stores two more numbers for each trained parameter; \
                 activations are the intermediate results that the backward pass needs.",
);

pub const PLAN_TIME: Lesson = Lesson(
    "时间由这台机器刚刚测得的速度推算。",
    "The time follows from this machine's speed, measured just now.",
);

pub const REPLY_SPEED: Lesson = Lesson(
    "首词元之前要先读完提示（预填充），之后逐个写出词元（解码）。",
    "The first token comes after the whole prompt is read (prefill); the others follow one by one (decode).",
);
