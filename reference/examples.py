"""Records, rendering and batches, shared by the other scripts.

An example holds the ids of a rendered conversation and a label for each id.
The answer and its end-of-turn token are labelled; the labels before them are IGNORED.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch

IGNORED = -100


@dataclass
class Example:
    ids: list[int]
    labels: list[int]


def read_alpaca(path: Path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"))


def user_message(record: dict) -> dict:
    """Returns the user message: the instruction, then the input on a line of its own, as in LLaMA-Factory and axolotl."""
    texts = [record["instruction"], record.get("input", "")]
    return {"role": "user", "content": "\n".join(text for text in texts if text)}


def prompt_ids(tokenizer, message: dict) -> list[int]:
    """Returns the ids of one user turn and the header of the reply."""
    text = tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
    # The template already writes the begin-of-text token, and the tokenizer would add a second one.
    return tokenizer.encode(text, add_special_tokens=False)


def encode(tokenizer, record: dict, max_length: int | None = None) -> Example:
    user = user_message(record)
    prompt = prompt_ids(tokenizer, user)
    messages = [user, {"role": "assistant", "content": record["output"]}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert ids[: len(prompt)] == prompt, f"the prompt is no prefix of the conversation: {text!r}"
    assert ids.count(tokenizer.bos_token_id) == 1, f"{text!r} has more than one begin-of-text token"
    labels = [IGNORED] * len(prompt) + ids[len(prompt) :]
    return Example(ids[:max_length], labels[:max_length])


def collate(examples: list[Example], pad_id: int) -> dict[str, torch.Tensor]:
    """Returns a batch padded on the right to its longest row."""
    width = max(len(example.ids) for example in examples)

    def rows(pick, filler):
        return torch.tensor([pick(e) + [filler] * (width - len(e.ids)) for e in examples])

    return {
        "input_ids": rows(lambda e: e.ids, pad_id),
        "attention_mask": rows(lambda e: [1] * len(e.ids), 0),
        "labels": rows(lambda e: e.labels, IGNORED),
    }


def summed_loss(model, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Returns the negative log-likelihood, summed over the labelled positions."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].float().flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=IGNORED, reduction="sum"
    )


def label_tokens(batch: dict[str, torch.Tensor]) -> int:
    return int((batch["labels"][:, 1:] != IGNORED).sum())


@torch.no_grad()
def greedy(model, ids: list[int], count: int, stop_ids: set[int] = frozenset()) -> tuple[list[int], float]:
    """Returns the greedy continuation, and the smallest gap between the two largest logits.

    If the gap is small, a different order of summation may select the other token.
    """
    new_ids, least_gap, cache = [], float("inf"), None
    step = torch.tensor([ids])
    for _ in range(count):
        output = model(input_ids=step, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        best = output.logits[0, -1].float().topk(2)
        least_gap = min(least_gap, float(best.values[0] - best.values[1]))
        token = int(best.indices[0])
        if token in stop_ids:
            break
        new_ids.append(token)
        step = torch.tensor([[token]])
    return new_ids, least_gap
