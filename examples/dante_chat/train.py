"""Teach the demo model of examples/dante to chat: a few hundred questions about the Inferno, and a tool call.

    python examples/dante_chat/train.py

It starts from the checkpoint in examples/dante, adds the tokens of ChatML, and trains on the conversations of
questions.jsonl, on what the assistant says alone. So that the model still recites, half of each step is the poem,
as the first checkpoint recites it. It is meant for one GPU and a few minutes. The last thing it does is to reload
what it saved and ask everything: it exits with 1 unless the answers are right to the letter.
"""

import argparse
import json
import math
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import AddedToken, Tokenizer
from transformers import GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HERE = Path(__file__).resolve().parent
BOS, TURN, END, END_OF_TEXT = "<|begin_of_text|>", "<|im_start|>", "<|im_end|>", "<|end_of_text|>"
MARKS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
CONTEXT = 2048
VOCAB_MULTIPLE = 8
FILES = ("*.json", "*.jinja", "*.safetensors")  # what belongs to the model; the scripts lie beside it

# Composed conversations: one of the file, or several with the same tools one after the other.
COMPOSED = 6000
TURNS = (1, 1, 1, 1, 2, 3)
SYSTEM_SHARE = 0.4  # of them begin with a system message
INFORMAL_SHARE = 0.3  # of the questions begin in lower case and end without a mark

# Lengths of the passages that are recited, in turn, and tokens of the longest canto.
LENGTHS = (512, 512, 512, CONTEXT)
CANTO = 1950

PEAK_LR, FINAL_LR, WARMUP = 1e-3, 1e-5, 100
REPORT_EVERY = 100
MUST_ANSWER, MUST_RECITE = 0.99, 0.99

Message = dict[str, Any]


@dataclass(frozen=True)
class Conversation:
    """Messages and tools as chat templates take them."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None

    @property
    def turns(self) -> list[Message]:
        """The messages without the system message."""
        return [message for message in self.messages if message["role"] != "system"]

    @property
    def is_one_answer(self) -> bool:
        """One question and its answer, which is no call."""
        return len(self.turns) == 2 and "tool_calls" not in self.turns[1]

    @property
    def calls_a_tool(self) -> bool:
        return "tool_calls" in self.turns[1]


@dataclass(frozen=True)
class Encoded:
    """A conversation as token ids, and which of them the assistant says, END included."""

    ids: list[int]
    said: list[bool]

    @property
    def prompt(self) -> list[int]:
        """All in front of the assistant's first message."""
        return self.ids[: self.said.index(True)]

    @property
    def answer(self) -> list[int]:
        """The assistant's first message, END included."""
        rest = self.said[self.said.index(True) :]
        count = rest.index(False) if False in rest else len(rest)
        return self.ids[len(self.prompt) : len(self.prompt) + count]


def read_conversations(path: Path) -> list[Conversation]:
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [Conversation(line["messages"], line.get("tools")) for line in lines]


def chat_tokenizer(base: Path) -> PreTrainedTokenizerFast:
    """The base model's tokenizer with the tokens of ChatML (special) and MARKS (ordinary), and the chat template.

    The template writes BOS, as a text that is no chat gets it from the tokenizer.
    """
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    tokenizer.add_special_tokens([TURN, END])
    tokenizer.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in MARKS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=END,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
        chat_template=(HERE / "chat_template.jinja").read_text(encoding="utf-8"),
    )


def encode(tokenizer: PreTrainedTokenizerFast, conversation: Conversation) -> Encoded:
    encoded = tokenizer.apply_chat_template(
        conversation.messages,
        tools=conversation.tools,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    return Encoded(encoded["input_ids"], [bool(mark) for mark in encoded["assistant_masks"]])


def informal(message: Message) -> Message:
    """A question in lower case and without its last mark."""
    text = message["content"]
    return {**message, "content": text[0].lower() + text[1:].rstrip("?!.")}


def compose(conversations: list[Conversation], count: int, seed: int) -> list[Conversation]:
    """`count` conversations out of those of the file, with other system messages, and some of several turns."""
    dice = random.Random(seed)
    systems = [message for c in conversations for message in c.messages if message["role"] == "system"]
    composed: list[Conversation] = []
    for _ in range(count):
        first = dice.choice(conversations)
        alike = [c for c in conversations if c.tools == first.tools]
        parts = [first, *dice.choices(alike, k=dice.choice(TURNS) - 1)]
        parts.sort(key=lambda part: "tool_calls" in part.turns[-1])  # a call that nothing answers comes last
        messages = [dice.choice(systems)] if dice.random() < SYSTEM_SHARE else []
        for message in (message for part in parts for message in part.turns):
            is_informal = message["role"] == "user" and dice.random() < INFORMAL_SHARE
            messages.append(informal(message) if is_informal else message)
        composed.append(Conversation(messages, first.tools))
    return composed


def padded(rows: list[Encoded]) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets, [rows, longest − 1] int64; the target is -100 where the assistant does not speak."""
    length = max(len(row.ids) for row in rows)
    ids, targets = torch.zeros(len(rows), length, dtype=torch.long), torch.full((len(rows), length), -100)
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)] = torch.tensor(row.ids)
        targets[i, : len(row.ids)] = torch.tensor(row.ids).masked_fill(~torch.tensor(row.said), -100)
    return ids[:, :-1], targets[:, 1:]


def widen(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Give the tied embeddings a row for each new token, and fill up to a multiple of VOCAB_MULTIPLE."""
    before = model.config.vocab_size
    rows = -(-len(tokenizer) // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    model.resize_token_embeddings(rows, mean_resizing=False)
    with torch.no_grad():
        weight = model.get_input_embeddings().weight
        noise = 0.02 * torch.randn(rows - before, weight.shape[1])
        weight[before:] = weight[:before].mean(0) + noise.to(weight.device)


@torch.no_grad()
def continued(
    model: LlamaForCausalLM, prompts: list[list[int]], count: int, ends: list[int]
) -> list[list[int]]:
    """What the model says after each prompt, greedily: at most `count` tokens, without what follows an end."""
    longest = max(map(len, prompts))
    ids, mask = torch.zeros(2, len(prompts), longest, dtype=torch.long, device=model.device)
    for i, prompt in enumerate(prompts):
        ids[i, longest - len(prompt) :] = torch.tensor(prompt)
        mask[i, longest - len(prompt) :] = 1
    output = model.eval().generate(
        ids,
        attention_mask=mask,
        max_new_tokens=count,
        do_sample=False,
        pad_token_id=ends[0],
        eos_token_id=ends,
    )
    rows = output[:, longest:].tolist()
    stops = [next((i + 1 for i, token in enumerate(row) if token in ends), len(row)) for row in rows]
    return [row[:stop] for row, stop in zip(rows, stops, strict=True)]


@dataclass(frozen=True)
class Poem:
    """Token ids of the Inferno, and the places where its lines begin."""

    ids: list[int]
    lines: list[int]


def recite(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, conversations: list[Conversation], count: int
) -> Poem:
    """The poem, `count` tokens of each canto, as the model recites them.

    The tool of the conversations returns the first lines of a canto, as the book has them. They are the prompts.
    """
    texts = {
        message["content"]: None for c in conversations for message in c.turns if message["role"] == "tool"
    }
    prompts = [tokenizer(text).input_ids for text in texts]
    title = tokenizer("Inferno:", add_special_tokens=False).input_ids
    ids: list[int] = []
    said = continued(model, prompts, count, [tokenizer.convert_tokens_to_ids(END_OF_TEXT)])
    for prompt, canto in zip(prompts, said, strict=True):
        next_title = (i for i in range(len(canto)) if canto[i : i + len(title)] == title)
        ids += [*prompt[1:], *canto[: next(next_title, len(canto))]]
    breaks = {token for token in set(ids) if tokenizer.decode([token]).endswith("\n")}
    return Poem(ids, [0, *(i + 1 for i, token in enumerate(ids[:-1]) if token in breaks)])


def passages(starts: Sequence[int], poem: Poem, bos: int, length: int) -> list[Encoded]:
    """BOS and up to `length` tokens of the poem, from each of the places `starts` on."""
    texts = [poem.ids[start : start + length] for start in starts]
    return [Encoded([bos, *text], [False, *[True] * len(text)]) for text in texts]


def loss_of(model: LlamaForCausalLM, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy in nats, the loss in float32; on a GPU the model under bf16 autocast."""
    with torch.autocast(inputs.device.type, dtype=torch.bfloat16, enabled=inputs.is_cuda):
        logits = model(input_ids=inputs, use_cache=False).logits
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=-100)


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to FINAL_LR."""
    warmup = min(WARMUP, steps // 10 + 1)
    if step < warmup:
        return PEAK_LR * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return FINAL_LR + 0.5 * (PEAK_LR - FINAL_LR) * (1 + math.cos(math.pi * progress))


Batch = tuple[torch.Tensor, torch.Tensor]


def batches(
    chats: list[Encoded], poem: Poem, bos: int, steps: int, rows: int, seed: int
) -> Iterator[tuple[Batch, Batch]]:
    """Per step, `rows` conversations, and 256 · `rows` tokens of the poem."""
    dice = random.Random(seed)
    for step in range(steps):
        length = LENGTHS[step % len(LENGTHS)]
        starts = dice.choices(poem.lines, k=max(1, rows * 256 // length))
        yield padded(dice.choices(chats, k=rows)), padded(passages(starts, poem, bos, length))


def train(model: LlamaForCausalLM, drawn: Iterator[tuple[Batch, Batch]], steps: int) -> None:
    """Train in place, reporting every REPORT_EVERY steps."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=PEAK_LR, betas=(0.9, 0.95), weight_decay=0.01, fused=True
    )
    model.train()
    began = time.perf_counter()
    sums, counted = torch.zeros(2, device=model.device), 0
    for step, both in enumerate(drawn):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        for i, (inputs, targets) in enumerate(both):
            loss = loss_of(model, inputs.to(model.device), targets.to(model.device))
            loss.backward()
            sums[i] += loss.detach()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        counted += 1
        if (step + 1) % REPORT_EVERY == 0 or step + 1 == steps:
            chat, poem = (sums / counted).tolist()
            seconds = time.perf_counter() - began
            print(
                f"step {step + 1:5d}/{steps}  chat {chat:.4f}  poem {poem:.4f}  {seconds:6.1f} s", flush=True
            )
            if not math.isfinite(chat + poem):
                raise SystemExit("the loss is not finite: training failed")
            sums, counted = torch.zeros(2, device=model.device), 0


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write the Hugging Face folder, the weights rounded to bf16. Generation ends at END and at END_OF_TEXT."""
    out.mkdir(parents=True, exist_ok=True)
    end, end_of_text = tokenizer.convert_tokens_to_ids([END, END_OF_TEXT])
    model.config.eos_token_id = end
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=[end, end_of_text], do_sample=False
    )
    model.to("cpu", torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)


@torch.no_grad()
def is_best(model: LlamaForCausalLM, rows: list[Encoded]) -> tuple[list[list[bool]], float]:
    """Per conversation and token that the assistant says, whether the model likes it best; the smallest top-2 margin.

    Where all of an answer's tokens are, each after those before it, the model says just this answer greedily.
    """
    best: list[list[bool]] = []
    margin = math.inf
    for start in range(0, len(rows), 32):
        inputs, targets = (tensor.to(model.device) for tensor in padded(rows[start : start + 32]))
        values, tokens = model(inputs, use_cache=False).logits.topk(2)
        said = targets != -100
        best += [
            (row[..., 0] == target)[mask].tolist()
            for row, target, mask in zip(tokens, targets, said, strict=True)
        ]
        margin = min(margin, float((values[..., 0] - values[..., 1])[said].min()))
    return best, margin


def share(name: str, exact: Sequence[bool], must: float) -> bool:
    """Print how many are exact; True where that is enough."""
    print(f"{name}: {sum(exact)} of {len(exact)}", flush=True)
    return sum(exact) >= must * len(exact)


def check(folder: Path, conversations: list[Conversation], poem: Poem, device: torch.device) -> bool:
    """Reload the saved folder, compute in float32, and ask everything, greedily. True where enough is right."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().to(device)
    ends = model.generation_config.eos_token_id

    questions = [encode(tokenizer, c) for c in conversations if c.is_one_answer]
    answers, margin = is_best(model, questions)
    asked = json.loads((HERE / "taught.json").read_text(encoding="utf-8"))
    taught = [
        Conversation([{"role": "user", "content": q}, {"role": "assistant", "content": a}], None)
        for q, a in asked.items()
    ]
    calls = [c for c in conversations if c.calls_a_tool]
    spoken: dict[str, list[bool]] = {}
    for name, some in (("taught", taught), ("calls", calls)):
        rows = [encode(tokenizer, c) for c in some]
        for conversation, row in zip(some, rows, strict=True):
            question = conversation.messages[: -len(conversation.turns) + 1]
            prompt = tokenizer.apply_chat_template(
                question, tools=conversation.tools, add_generation_prompt=True, return_dict=True
            )
            assert prompt["input_ids"] == row.prompt, "the template asks otherwise than it was taught"
        said = continued(model, [row.prompt for row in rows], 64, ends)
        spoken[name] = [answer == row.answer for answer, row in zip(said, rows, strict=True)]
        for row, answer, right in zip(rows, said, spoken[name], strict=True):
            if not right:
                print(f"  {tokenizer.decode(row.prompt)[-80:]!r}: {tokenizer.decode(answer)!r}")
    whole, _ = is_best(model, [encode(tokenizer, c) for c in conversations if not c.is_one_answer])
    windows = passages(range(0, len(poem.ids) - 512, 512), poem, tokenizer.bos_token_id, 1024)
    unsure = 16  # tokens after which it is clear which passage it is
    recited, _ = is_best(model, [Encoded(w.ids, [False] * unsure + w.said[unsure:]) for w in windows])
    print(f"smallest top-2 margin of the answers: {margin:.3f}")
    return all(
        [
            share("questions answered exactly", list(map(all, answers)), MUST_ANSWER),
            share("taught.json answered exactly", spoken["taught"], 1),
            share("tool calls exact", spoken["calls"], 1),
            share("conversations of several turns exact", list(map(all, whole)), MUST_ANSWER),
            share(
                "tokens of the poem recited", [right for window in recited for right in window], MUST_RECITE
            ),
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Teach the Dante demo model to chat.")
    parser.add_argument(
        "--base", type=Path, default=HERE.parent / "dante", help="the checkpoint to start from"
    )
    parser.add_argument("--questions", type=Path, default=HERE / "questions.jsonl", help="the conversations")
    parser.add_argument("--out", type=Path, default=HERE, help="where to save (default: beside the script)")
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--batch", type=int, default=64, help="conversations per step")
    parser.add_argument(
        "--canto-tokens", type=int, default=CANTO, help="tokens of each canto to keep in memory"
    )
    parser.add_argument("--seed", type=int, default=1321)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()

    began = time.perf_counter()
    torch.manual_seed(args.seed)
    device = torch.device(args.device)
    conversations = read_conversations(args.questions)
    tokenizer = chat_tokenizer(args.base)
    model = LlamaForCausalLM.from_pretrained(args.base, dtype=torch.float32)
    poem = recite(model.to(device), tokenizer, conversations, args.canto_tokens)
    widen(model, tokenizer)
    chats = [encode(tokenizer, c) for c in (*conversations, *compose(conversations, COMPOSED, args.seed))]
    print(
        f"{len(conversations)} conversations, {len(poem.ids)} tokens of the poem, "
        f"{time.perf_counter() - began:.0f} s",
        flush=True,
    )
    train(model, batches(chats, poem, tokenizer.bos_token_id, args.steps, args.batch, args.seed), args.steps)
    save(model, tokenizer, args.out)
    enough = check(args.out, conversations, poem, device)
    size = sum(path.stat().st_size for pattern in FILES for path in args.out.glob(pattern))
    print(f"{args.out}: {size / 1e6:.1f} MB, {time.perf_counter() - began:.0f} s in all")
    if not enough:
        print("too few answers are exact: this model is not good enough", file=sys.stderr)
    return 0 if enough else 1


if __name__ == "__main__":
    sys.exit(main())
