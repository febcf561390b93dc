"""Checks both directions between danlu and Python: each loads the files of the other and gives the same replies.

    OMP_NUM_THREADS=1 python reference/interop.py --danlu target/release/danlu

From danlu to Python: danlu trains a few steps, or --adapter and --merged name its files. PEFT loads the adapter, and
transformers the merged folder. The script compares weights, logits and greedy replies.

From Python to danlu: PEFT writes adapters of every supported kind; danlu chats with them and merges them.
danlu must reject an adapter that it cannot represent, by the name of the setting.

Without --danlu only the Python halves run. The exit status is 1 if a check fails.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import bitsandbytes
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from examples import greedy, prompt_ids

REPOSITORY = Path(__file__).resolve().parent.parent
ASSETS = REPOSITORY / "crates/cli/assets"
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PROMPTS = ["你是谁？", "推荐一家餐馆。", "今天天气怎么样？", "我今天心情不好。", "Who are you?"]

# If the two largest logits are closer than this, rounding decides which token is chosen. Such replies are not compared.
LEAST_GAP = 2e-3

SHAPES = {
    "a list of targets": dict(target_modules=["q_proj", "v_proj", "down_proj"], r=4, lora_alpha=16),
    "all-linear": dict(target_modules="all-linear", r=4, lora_alpha=8),
    "a regular expression": dict(target_modules=r".*\.layers\.[0-3]\..*\.(gate|up)_proj", r=8, lora_alpha=16),
    "full module paths": dict(
        target_modules=["model.layers.1.self_attn.o_proj", "model.layers.6.mlp.down_proj"], r=8, lora_alpha=32
    ),
    "rank_pattern and alpha_pattern": dict(
        target_modules=PROJECTIONS,
        r=4,
        lora_alpha=8,
        rank_pattern={"k_proj": 2, r"layers\.[01]\.mlp\.up_proj": 8, "^model.layers.7.mlp.down_proj": 1},
        alpha_pattern={"v_proj": 3, r"layers\.[2-5]\.self_attn\.q_proj": 32},
    ),
    "rsLoRA": dict(target_modules=PROJECTIONS, r=16, lora_alpha=8, use_rslora=True),
    "rsLoRA with patterns": dict(
        target_modules=PROJECTIONS, r=4, lora_alpha=4, use_rslora=True, rank_pattern={"o_proj": 9}, alpha_pattern={"o_proj": 6}
    ),
    "an adapter stored in bf16": dict(target_modules=PROJECTIONS, r=4, lora_alpha=16),
    "DoRA": dict(target_modules=PROJECTIONS, r=4, lora_alpha=16, use_dora=True),
    "a saved norm": dict(target_modules=PROJECTIONS, r=4, lora_alpha=16, modules_to_save=["norm"]),
    "a saved head of a tied model": dict(target_modules=PROJECTIONS, r=4, lora_alpha=16, modules_to_save=["lm_head"]),
    "pairs on the embedding": dict(target_modules=PROJECTIONS + ["embed_tokens"], r=4, lora_alpha=16),
    "rows of tokens": dict(target_modules=PROJECTIONS, r=4, lora_alpha=16, trainable_token_indices=[5, 9]),
}

# danlu may support or refuse these settings, but must not ignore them.
REPRESENTED_OR_REFUSED = {
    "layers_to_transform": dict(target_modules=PROJECTIONS, r=4, lora_alpha=16, layers_to_transform=[1, 3]),
    "exclude_modules": dict(target_modules=PROJECTIONS, r=4, lora_alpha=16, exclude_modules=["k_proj"]),
}

REFUSED = {
    "lora_bias": dict(target_modules=PROJECTIONS, r=4, lora_alpha=16, lora_bias=True),
}


class Checks:
    def __init__(self):
        self.lines = []

    def add(self, claim: str, holds: bool, detail: str = ""):
        self.lines.append({"claim": claim, "holds": bool(holds), "detail": detail})
        print(f"{'ok  ' if holds else 'FAIL'}  {claim}{': ' + detail if detail else ''}", flush=True)

    def failed(self) -> int:
        return sum(not line["holds"] for line in self.lines)


class Danlu:
    def __init__(self, binary: Path, base: Path, new_tokens: int, chat_arguments: list[str], merge_arguments: list[str]):
        self.binary, self.base, self.new_tokens = binary, base, new_tokens
        self.chat_arguments, self.merge_arguments = chat_arguments, merge_arguments

    def run(self, *arguments) -> subprocess.CompletedProcess:
        command = [str(self.binary), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=600)

    def must(self, *arguments) -> str:
        done = self.run(*arguments)
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(done.args)} exited {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout

    def try_chat(self, folder: Path, prompt: str, base: bool) -> subprocess.CompletedProcess:
        where = ["--base", self.base] if base else []
        limits = ["--temperature", 0, "--max-new-tokens", self.new_tokens]
        return self.run("chat", folder, *where, "--prompt", prompt, *limits, *self.chat_arguments)

    def chat(self, folder: Path, prompt: str, base: bool) -> str:
        done = self.try_chat(folder, prompt, base)
        return done.stdout if done.returncode == 0 else f"[exit {done.returncode}] {done.stderr}"

    def merge(self, adapter: Path, output: Path) -> subprocess.CompletedProcess:
        return self.run("merge", adapter, "--base", self.base, "--output", output, *self.merge_arguments)


class Interop:
    def __init__(self, base: Path, danlu: Danlu | None, new_tokens: int):
        self.base_folder, self.danlu, self.new_tokens = base, danlu, new_tokens
        self.tokenizer = AutoTokenizer.from_pretrained(base)
        self.checks = Checks()

    def load(self, folder: Path | None = None):
        model = AutoModelForCausalLM.from_pretrained(folder or self.base_folder, dtype=torch.float32)
        return model.eval()

    def prompt(self, text: str) -> list[int]:
        return prompt_ids(self.tokenizer, {"role": "user", "content": text})

    def reply(self, model, text: str) -> tuple[str, float]:
        stop = model.generation_config.eos_token_id
        stop_ids = set(stop if isinstance(stop, list) else [stop])
        ids, gap = greedy(model, self.prompt(text), self.new_tokens, stop_ids)
        return self.tokenizer.decode(ids, skip_special_tokens=True), gap

    def compare_replies(self, claim: str, model, folder: Path, base: bool):
        """Compares danlu's greedy replies with this model's, on prompts that rounding does not change."""
        equal, close, different = 0, 0, []
        for text in PROMPTS:
            want, gap = self.reply(model, text)
            if gap < LEAST_GAP:
                close += 1
            elif self.danlu:
                got = self.danlu.chat(folder, text, base)
                if got.strip() == want.strip():
                    equal += 1
                else:
                    different.append(f"{text!r}: Python says {want!r}, danlu {got.strip()!r} (least gap {gap:.4f})")
        detail = f"{equal} alike, {close} too close to call"
        if self.danlu:
            # If rounding could change every reply, nothing was compared, and the check fails.
            self.checks.add(claim, not different and equal > 0, "; ".join(different) or detail)
        else:
            print(f"      {claim}: {len(PROMPTS) - close} prompts to compare, {close} too close to call")

    def compare_merged(self, claim: str, merged_in_f32, folder: Path, targets: set[str]):
        """Compares danlu's merged tensors with PEFT's f32 merge, rounded once to the type of the file."""
        got, base = read_folder(folder), read_folder(self.base_folder)
        want = {name: tensor for name, tensor in merged_in_f32.state_dict().items() if name in base}
        self.checks.add(f"{claim}: the names of the tensors are the base's", set(got) == set(base), f"{len(got)} tensors")
        untouched = [name for name in base if name not in targets]
        changed = [name for name in untouched if name not in got or not torch.equal(got[name], base[name])]
        self.checks.add(f"{claim}: {len(untouched)} other tensors are bit for bit the base's", not changed, ", ".join(changed[:3]))

        elements, differing, wrong, moved = 0, 0, 0, 0
        for name in sorted(targets & set(got)):
            rounded = want[name].to(got[name].dtype)
            steps = representable_steps(got[name], rounded)
            elements += steps.numel()
            differing += int((steps > 0).sum())
            # If base and update nearly cancel, a rounding error of one step in the sum is many steps of the small result.
            distance = (got[name].float() - rounded.float()).abs()
            wrong += int(((steps > 1) & (distance > 1e-6 * want[name].abs().max())).sum())
            moved += int((got[name] != base[name]).sum())
        # A sum halfway between two bf16 values can round up or down, so a few elements may differ.
        self.checks.add(
            f"{claim}: {len(targets)} merged tensors are the f32 merge rounded once",
            bool(targets) and differing <= max(1, elements // 2000) and wrong == 0,
            f"{differing} of {elements} elements differ, {wrong} by more than rounding; {moved} differ from the base",
        )

    def compare_logits(self, claim: str, first, second, limit: float):
        largest, total, count, divergence = 0.0, 0.0, 0, 0.0
        for text in PROMPTS:
            ids = torch.tensor([self.prompt(text)])
            with torch.no_grad():
                a, b = first(input_ids=ids).logits[0], second(input_ids=ids).logits[0]
            difference = (a - b).abs()
            largest = max(largest, difference.max().item())
            total, count = total + difference.sum().item(), count + difference.numel()
            p, q = a.log_softmax(-1), b.log_softmax(-1)
            divergence = max(divergence, (p.exp() * (p - q)).sum(-1).mean().item())
        self.checks.add(
            claim, largest <= limit, f"largest difference {largest:.2e}, mean {total / count:.2e}, KL {divergence:.2e} nats"
        )

    # danlu writes, Python reads

    def train_with_danlu(self, work: Path) -> tuple[Path, Path]:
        adapter, merged = work / "danlu-adapter", work / "danlu-merged"
        self.danlu.must(
            "train", "--base", self.base_folder, "--data", ASSETS / "palace.json", "--output", adapter,
            "--max-steps", 12, "--learning-rate", 1e-3,
        )  # fmt: skip
        done = self.danlu.merge(adapter, merged)
        if done.returncode != 0:
            raise SystemExit(f"danlu merge exited {done.returncode}:\n{done.stdout}{done.stderr}")
        return adapter, merged

    def read_what_danlu_wrote(self, adapter: Path, merged: Path):
        file = load_file(adapter / "adapter_model.safetensors")
        model = PeftModel.from_pretrained(self.load(), adapter).eval()
        loaded = {n.replace(".default", ""): p for n, p in model.named_parameters() if "lora_" in n}
        # If the file lacks a name, PEFT only warns and keeps its random weights, so the values are compared.
        unequal = [name for name in loaded if name not in file or not torch.equal(loaded[name], file[name].float())]
        self.checks.add(
            "PEFT loads danlu's adapter, every tensor under its own name",
            set(loaded) == set(file) and not unequal,
            f"{len(loaded)} in PEFT, {len(file)} in the file, {len(unequal)} unequal",
        )
        self.checks.add("danlu's adapter changes the model", any(p.abs().max() > 0 for n, p in loaded.items() if "lora_B" in n))

        reloaded = self.load(merged)
        tokenizer = AutoTokenizer.from_pretrained(merged)
        same = tokenizer.chat_template == self.tokenizer.chat_template and tokenizer.get_vocab() == self.tokenizer.get_vocab()
        self.checks.add("transformers loads danlu's merged folder, with the base's tokenizer and chat template", same)
        generation = (reloaded.generation_config.eos_token_id, reloaded.generation_config.bos_token_id)
        base = self.load().generation_config
        self.checks.add("the merged folder keeps the base's end token", generation == (base.eos_token_id, base.bos_token_id))
        # The merged weights are rounded to the file's type. A logit difference of 0.5 allows for bf16.
        self.compare_logits("merged folder against adapter on base, both in Python", model, reloaded, 0.5)
        self.compare_replies("danlu chat on danlu's adapter answers as PEFT does", model, adapter, base=True)
        self.compare_replies("danlu chat on danlu's merged folder answers as transformers does", reloaded, merged, base=False)
        targets = {n.removeprefix("base_model.model.").split(".lora_A")[0] + ".weight" for n in file if ".lora_A" in n}
        self.compare_merged("danlu's merge of danlu's adapter", model.merge_and_unload(), merged, targets)

    # Python writes, danlu reads

    def write_adapter(self, folder: Path, name: str, settings: dict):
        torch.manual_seed(sum(name.encode()))
        model = get_peft_model(self.load(), LoraConfig(lora_dropout=0.0, bias="none", task_type="CAUSAL_LM", **settings))
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                if "lora_B" in parameter_name:
                    parameter.normal_(std=0.02)
        model.save_pretrained(folder, save_embedding_layers=False)
        if "bf16" in name:
            file = folder / "adapter_model.safetensors"
            save_file({n: t.to(torch.bfloat16) for n, t in load_file(file).items()}, file, metadata={"format": "pt"})

    def targets_of(self, model) -> set[str]:
        return {
            name.removeprefix("base_model.model.") + ".weight" for name, module in model.named_modules() if hasattr(module, "lora_A")
        }

    def read_what_peft_wrote(self, work: Path, name: str, settings: dict):
        folder = work / ("peft-" + "-".join(name.split()))
        self.write_adapter(folder, name, settings)
        model = PeftModel.from_pretrained(self.load(), folder).eval()
        targets = self.targets_of(model)
        answers = [self.reply(model, text)[0] for text in PROMPTS]
        plain = self.load()
        self.checks.add(
            f"{name}: the adapter changes Python's own reply",
            any(answer != self.reply(plain, text)[0] for answer, text in zip(answers, PROMPTS)),
            f"{len(targets)} modules",
        )
        self.compare_replies(f"{name}: danlu chat answers as PEFT does", model, folder, base=True)
        if not self.danlu:
            return
        merged = work / (folder.name + "-merged")
        done = self.danlu.merge(folder, merged)
        self.checks.add(f"{name}: danlu merge", done.returncode == 0, "" if done.returncode == 0 else done.stderr.strip()[-300:])
        if done.returncode == 0:
            self.compare_merged(name, model.merge_and_unload(), merged, targets)
            self.compare_replies(f"{name}: danlu's merged folder in Python and in danlu", self.load(merged), merged, base=False)

    def refuses(self, work: Path, name: str, settings: dict, or_represents: bool = False):
        folder = work / f"peft-{name}"
        self.write_adapter(folder, name, settings)
        if not self.danlu:
            return
        chat = self.danlu.try_chat(folder, PROMPTS[0], base=True)
        if chat.returncode == 0 and or_represents:
            return self.read_what_peft_wrote(work, name, settings)
        self.checks.add(
            f"danlu chat refuses {name} by name",
            chat.returncode not in (0, 101) and name in chat.stderr,
            f"exit {chat.returncode}, {chat.stderr.strip()[:200]!r}",
        )
        merged = work / f"{folder.name}-merged"
        merge = self.danlu.merge(folder, merged)
        self.checks.add(
            f"danlu merge refuses {name} by name and writes nothing",
            merge.returncode not in (0, 101) and name in merge.stderr and not (merged / "config.json").exists(),
            f"exit {merge.returncode}",
        )

    def four_bits(self, work: Path):
        """Loads danlu's 4-bit folders in bitsandbytes, and the reverse. Everything except the codes is in f32."""
        for code in ["nf4", "fp4"]:
            for flag in [[], ["--no-double-quant"]]:
                name = " ".join([code, *flag])
                ours, theirs = work / f"ours {name}", work / f"theirs {name}"
                self.danlu.must("quantize", self.base_folder, "--to", code, "--output", ours, *flag)
                quantization = BitsAndBytesConfig(
                    load_in_4bit=True, bnb_4bit_quant_type=code, bnb_4bit_use_double_quant=not flag
                )
                model = AutoModelForCausalLM.from_pretrained(
                    self.base_folder, dtype=torch.bfloat16, quantization_config=quantization
                )
                model.save_pretrained(theirs)
                self.tokenizer.save_pretrained(theirs)
                own, other = read_folder(ours), read_folder(theirs)
                same = set(own) == set(other)
                self.checks.add(f"{name}: danlu writes the tensors that bitsandbytes saves", same, f"{len(own)} tensors")
                states = [key for key in own if "quant_state" in key]
                parsed = [[json.loads(bytes(t[key].tolist())) for key in states] for t in (own, other)]
                close = all(
                    {**a, "nested_offset": 0} == {**b, "nested_offset": 0}
                    and abs(a.get("nested_offset", 0) - b.get("nested_offset", 0)) < 1e-6
                    for a, b in zip(*parsed)
                )
                self.checks.add(f"{name}: the states are theirs", close, f"{len(states)} of them")
                # 8-bit scales may differ by one step, because bitsandbytes does not always take the nearest value.
                coded = [key for key in own if key.endswith(".absmax") and own[key].dtype == torch.uint8]
                steps = [(own[key].int() - other[key].int()).abs() for key in coded]
                far = sum(int((s > 1).sum()) for s in steps)
                near = sum(int((s == 1).sum()) for s in steps)
                self.checks.add(f"{name}: scales in 8 bits are theirs within a step", far == 0, f"{near} differ")
                loose = [key for key in own if key.endswith("nested_absmax")]
                rest = [key for key in own if key not in {*states, *coded, *loose}]
                changed = [key for key in rest if not torch.equal(own[key], other[key])]
                drifted = [key for key in loose if not torch.allclose(own[key], other[key], rtol=1e-5)]
                exact = not changed and not drifted
                self.checks.add(f"{name}: everything else is, nested scales within 1e-5", exact, ", ".join((changed + drifted)[:3]))
                for whose, folder in (("danlu's", ours), ("bitsandbytes'", theirs)):
                    claim = f"{name}: {whose} folder answers alike in transformers and danlu"
                    self.compare_replies(claim, four_bit_in_f32(folder), folder, False)


def read_folder(folder: Path) -> dict[str, torch.Tensor]:
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors.update(load_file(file))
    return tensors


def representable_steps(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Returns the distance in representable values, element by element."""
    integer = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}[a.dtype]

    def ordered(tensor):
        bits = tensor.contiguous().view(integer).long()
        # Maps the bits of a float to an integer, so that integers have the order of the floats, and -0 equals +0.
        return torch.where(bits < 0, torch.iinfo(integer).min - bits, bits)

    return (ordered(a) - ordered(b)).abs()


def four_bit_in_f32(folder: Path):
    model = AutoModelForCausalLM.from_pretrained(folder)
    torch.nn.Module.float(model)
    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.compute_dtype = torch.float32
    # In evaluation mode, bitsandbytes computes NF4 in bf16 on processors with AVX512-BF16, whatever `compute_dtype` is.
    # There is no dropout, so training mode differs in nothing else.
    return model.train()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--danlu", type=Path, help="the binary; without it only the Python halves run")
    parser.add_argument("--base", type=Path, default=ASSETS / "base-8m")
    parser.add_argument("--adapter", type=Path, help="an adapter folder danlu wrote (default: train one now)")
    parser.add_argument("--merged", type=Path, help="the same adapter merged by danlu")
    parser.add_argument("--new-tokens", type=int, default=24)
    parser.add_argument("--chat-argument", action="append", default=[], help="passed on to every danlu chat")
    parser.add_argument("--merge-argument", action="append", default=[], help="passed on to every danlu merge")
    parser.add_argument("--work", type=Path, help="an empty folder to keep what is written (default: a temporary one)")
    parser.add_argument("--json", type=Path, help="write the checks there as well")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    base = arguments.base.resolve()
    danlu = None
    if arguments.danlu:
        danlu = Danlu(
            arguments.danlu.resolve(), base, arguments.new_tokens, arguments.chat_argument, arguments.merge_argument
        )
    interop = Interop(base, danlu, arguments.new_tokens)
    with tempfile.TemporaryDirectory() as scratch:
        work = (arguments.work or Path(scratch)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        if danlu:
            if arguments.adapter and arguments.merged:
                adapter, merged = arguments.adapter, arguments.merged
            else:
                adapter, merged = interop.train_with_danlu(work)
            interop.read_what_danlu_wrote(adapter, merged)
        for name, settings in SHAPES.items():
            interop.read_what_peft_wrote(work, name, settings)
        if danlu:
            interop.four_bits(work)
        for name, settings in REPRESENTED_OR_REFUSED.items():
            interop.refuses(work, name, settings, or_represents=True)
        for name, settings in REFUSED.items():
            interop.refuses(work, name, settings)

    checks = interop.checks
    print(f"{len(checks.lines) - checks.failed()} of {len(checks.lines)} checks hold")
    if arguments.json:
        arguments.json.write_text(json.dumps(checks.lines, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    sys.exit(1 if checks.failed() else 0)


if __name__ == "__main__":
    main()
