"""Make the demo model: a Llama of five million parameters that knows the Inferno by heart.

The result is an ordinary Hugging Face folder (config.json, tokenizer.json, model.safetensors in bf16, ...),
small enough to be committed, with everything in it that a large Llama 3 has: grouped-query attention, llama3
rope scaling, tied embeddings, a byte-level BPE tokenizer that puts the beginning-of-text token first.

    python examples/dante/train.py --data FOLDER_OF_TEXTS --out examples/dante

It is meant for one GPU and a few minutes. The last thing it does is to reload what it saved and recite: it
exits with 1 unless greedy decoding continues the poem for at least 100 tokens.
"""

import argparse
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"
FIRST_LINE = "Midway upon the journey of our life"
TEXTS = ("inferno-longfellow.txt", "purgatorio-longfellow.txt", "paradiso-longfellow.txt")
VOCAB_SIZE = 4096
CONTEXT = 2048

# A word, a number, a run of punctuation, the line breaks or other white space. Unlike Llama 3's own pattern
# this one keeps line breaks and quotation marks apart from what stands beside them: a line starts a token.
WORDS = r"'(?:[sdmt]|ll|ve|re)\b| ?\p{L}+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s*[\r\n]+|\s+(?!\S)|\s+"

# Where the windows that make up a batch start. The rest start at any token of the canticle.
CANTICLE_SHARES = (0.6, 0.2, 0.2)
FIRST_LINE_SHARE = 0.06
TITLE_SHARE = 0.04
LINE_SHARE = 0.75

# Sequence lengths, in turn. Three short ones to a long one: cheap, and yet every position is trained.
LENGTHS = (512, 512, 512, CONTEXT)

PEAK_LR, FINAL_LR, WARMUP = 2e-3, 2e-5, 200
REPORT_EVERY = 200

RECITED, MARGINS_OVER, MUST_MATCH = 1000, 200, 100


@dataclass(frozen=True)
class Corpus:
    """The canticles as one row of token ids, and where in it a window may start."""

    ids: torch.Tensor  # [total] int64: each canticle followed by EOS
    ends: list[int]  # one past each canticle's EOS
    lines: list[torch.Tensor]  # per canticle: the position of each line's first token
    first_line: int  # the position of FIRST_LINE

    def begins(self, canticle: int) -> int:
        return self.ends[canticle - 1] if canticle else 0


def read_poem(path: Path) -> str:
    """The text of one canticle, without the translator's notes (they are the lines set in by a tab)."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return "\n".join(line.rstrip() for line in lines if not line.startswith("\t")).strip() + "\n"


def train_tokenizer(poems: list[str]) -> Tokenizer:
    """A byte-level BPE of VOCAB_SIZE tokens, the two special ones last, that puts BOS before every text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [BOS, EOS]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(special),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(poems, trainer)
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A",
        pair=f"{BOS} $A {BOS}:1 $B:1",
        special_tokens=[(BOS, tokenizer.token_to_id(BOS))],
    )
    assert tokenizer.get_vocab_size() == VOCAB_SIZE, "the texts are too short for this vocabulary"
    return tokenizer


def encode(poems: list[str], tokenizer: Tokenizer) -> Corpus:
    """Tokenize the canticles and find the token that begins each of their lines."""
    ids: list[int] = []
    ends: list[int] = []
    lines: list[torch.Tensor] = []
    first_line = -1
    for poem in poems:
        encoding = tokenizer.encode(poem, add_special_tokens=False)
        token_at = {start: len(ids) + i for i, (start, _) in enumerate(encoding.offsets)}
        starts = [i + 1 for i, c in enumerate(poem[:-1]) if c == "\n" and poem[i + 1] != "\n"]
        lines.append(torch.tensor([token_at[0], *(token_at[start] for start in starts)]))
        if first_line < 0 and FIRST_LINE in poem:
            first_line = token_at[poem.index(FIRST_LINE)]
        ids += [*encoding.ids, tokenizer.token_to_id(EOS)]
        ends.append(len(ids))
    assert first_line >= 0, f"no text contains {FIRST_LINE!r}"
    return Corpus(torch.tensor(ids), ends, lines, first_line)


def llama_config(tokenizer: Tokenizer) -> LlamaConfig:
    """Five layers of 256.

    With these rope values the 32 frequencies of a head fall into all three of llama3's bands: 8 are kept, 3 are
    blended, 21 are divided by the factor.
    """
    return LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-5,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": CONTEXT // 4,
        },
        tie_word_embeddings=True,
        bos_token_id=tokenizer.token_to_id(BOS),
        eos_token_id=tokenizer.token_to_id(EOS),
    )


def draw_starts(corpus: Corpus, count: int, generator: torch.Generator) -> torch.Tensor:
    """`count` window starts, [count, 2]: the first token's position and the end of its canticle."""
    rows = []
    canticles = torch.multinomial(torch.tensor(CANTICLE_SHARES), count, replacement=True, generator=generator)
    dice = torch.rand(count, 2, generator=generator, dtype=torch.float64)
    for canticle, (kind, place) in zip(canticles.tolist(), dice.tolist(), strict=True):
        lines = corpus.lines[canticle]
        begin, end = corpus.begins(canticle), corpus.ends[canticle]
        if kind < FIRST_LINE_SHARE:
            start, end = corpus.first_line, corpus.ends[0]
        elif kind < FIRST_LINE_SHARE + TITLE_SHARE:
            start = begin
        elif kind < FIRST_LINE_SHARE + TITLE_SHARE + LINE_SHARE:
            start = int(lines[int(place * len(lines))])
        else:
            start = begin + int(place * (end - begin - 1))
        rows.append((start, end))
    return torch.tensor(rows)


def windows(
    ids: torch.Tensor, starts: torch.Tensor, length: int, bos: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs (BOS, then the text) and targets (the text; -100 past the canticle's end): [windows, length]."""
    positions = starts[:, :1] + torch.arange(length, device=ids.device)
    inside = positions < starts[:, 1:]
    text = ids[positions.clamp(max=len(ids) - 1)]
    first = torch.full_like(text[:, :1], bos)
    return torch.cat([first, text[:, :-1]], dim=1), text.masked_fill(~inside, -100)


def loss_of(model: LlamaForCausalLM, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy in nats, the model under bf16 autocast and the loss in float32."""
    with torch.autocast(inputs.device.type, dtype=torch.bfloat16):
        logits = model(input_ids=inputs, use_cache=False).logits
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=-100)


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to FINAL_LR."""
    warmup = min(WARMUP, steps // 10 + 1)
    if step < warmup:
        return PEAK_LR * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return FINAL_LR + 0.5 * (PEAK_LR - FINAL_LR) * (1 + math.cos(math.pi * progress))


def optimizer_for(model: LlamaForCausalLM) -> torch.optim.AdamW:
    """Fused AdamW; matrices decay, norm weights do not."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=PEAK_LR, betas=(0.9, 0.95), fused=True)


def batches(
    corpus: Corpus, steps: int, tokens: int, bos: int, device: torch.device, seed: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """One batch of about `tokens` tokens a step.

    All is drawn on the CPU beforehand: a seed means the same batches on every device.
    """
    generator = torch.Generator().manual_seed(seed)
    lengths = [LENGTHS[step % len(LENGTHS)] for step in range(steps)]
    drawn = [draw_starts(corpus, max(1, tokens // length), generator).to(device) for length in lengths]
    ids = corpus.ids.to(device)
    for length, starts in zip(lengths, drawn, strict=True):
        yield windows(ids, starts, length, bos)


def train(
    model: LlamaForCausalLM, corpus: Corpus, steps: int, tokens: int, device: torch.device, seed: int
) -> None:
    """Train in place, reporting every REPORT_EVERY steps."""
    optimizer = optimizer_for(model)
    model.train()
    began = time.perf_counter()
    sums, counted = torch.zeros((), device=device), 0
    drawn = batches(corpus, steps, tokens, model.config.bos_token_id, device, seed)
    for step, (inputs, targets) in enumerate(drawn):
        rate = learning_rate(step, steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = loss_of(model, inputs, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        sums, counted = sums + loss.detach(), counted + 1
        if (step + 1) % REPORT_EVERY == 0 or step + 1 == steps:
            mean, seconds = sums.item() / counted, time.perf_counter() - began
            print(f"step {step + 1:5d}/{steps}  loss {mean:.4f}  lr {rate:.2e}  {seconds:6.1f} s", flush=True)
            if not math.isfinite(mean):
                raise SystemExit("the loss is not finite: training failed")
            sums, counted = torch.zeros((), device=device), 0


@torch.no_grad()
def inferno_loss(model: LlamaForCausalLM, corpus: Corpus, device: torch.device, length: int = 512) -> float:
    """Mean loss over the Inferno, in windows that start at a line and together cover it about once."""
    model.eval()
    ids, starts = corpus.ids.to(device), []
    for line in corpus.lines[0].tolist():
        if not starts or line >= starts[-1][0] + length:
            starts.append((line, corpus.ends[0]))
    losses = [
        loss_of(model, *windows(ids, some, length, model.config.bos_token_id)) * len(some)
        for some in torch.tensor(starts, device=device).split(16)
    ]
    return float(torch.stack(losses).sum()) / len(starts)


def save(model: LlamaForCausalLM, tokenizer: Tokenizer, out: Path) -> None:
    """Write the Hugging Face folder, the weights rounded to bf16."""
    out.mkdir(parents=True, exist_ok=True)
    model.generation_config = GenerationConfig(
        bos_token_id=model.config.bos_token_id, eos_token_id=model.config.eos_token_id, do_sample=False
    )
    model.to("cpu", torch.bfloat16).save_pretrained(out)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    wrapped.save_pretrained(out)


@torch.no_grad()
def recite(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, poem: str, prompt: str
) -> tuple[int, float]:
    """Continue `prompt` greedily.

    Returns how many tokens match the poem, and the smallest top-2 margin (in logits) over the first MARGINS_OVER.
    """
    rest = poem[poem.index(prompt) + len(prompt) :]
    prompt_ids = tokenizer(prompt, return_tensors="pt")
    expected = tokenizer(rest, add_special_tokens=False).input_ids[:RECITED]
    length = prompt_ids.input_ids.shape[1]
    output = model.generate(
        **prompt_ids, max_new_tokens=RECITED, do_sample=False, pad_token_id=model.config.eos_token_id
    )
    new = output[0, length:].tolist()
    matching = next(
        (i for i, (a, b) in enumerate(zip(new, expected, strict=False)) if a != b),
        min(len(new), len(expected)),
    )
    top = model(output).logits[0, length - 1 :].topk(2).values[:MARGINS_OVER]
    margin = float((top[:, 0] - top[:, 1]).min())
    print(
        f"\n{prompt!r}: {matching} of {len(expected)} tokens match, "
        f"smallest top-2 margin over {len(top)}: {margin:.3f}"
    )
    print(tokenizer.decode(output[0, : length + MARGINS_OVER], skip_special_tokens=True))
    return matching, margin


def check(folder: Path, poem: str) -> bool:
    """Reload the saved folder, compute in float32 on the CPU, recite from the start and from the middle."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    alone = Tokenizer.from_file(str(folder / "tokenizer.json"))
    sample = poem[:20000]
    assert tokenizer(sample).input_ids == alone.encode(sample).ids, (
        "transformers reads another tokenizer than was saved"
    )
    assert tokenizer(sample).input_ids.count(model.config.bos_token_id) == 1, (
        "the tokenizer should add BOS once"
    )
    assert tokenizer.decode(tokenizer(sample).input_ids, skip_special_tokens=True) == sample, (
        "decoding changed the text"
    )
    for prompt in (
        "Through me the way is to the city dolent;",
        "Love, that on gentle heart doth swiftly seize,",
    ):
        recite(model, tokenizer, poem, prompt)
    matching, _ = recite(model, tokenizer, poem, FIRST_LINE)
    return matching >= MUST_MATCH


def main() -> int:
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description="Train the Dante demo model.")
    parser.add_argument("--data", type=Path, default=here / "texts", help=f"folder with {', '.join(TEXTS)}")
    parser.add_argument(
        "--out", type=Path, default=here, help="where to save the model (default: beside the script)"
    )
    parser.add_argument("--steps", type=int, default=3500)
    parser.add_argument("--batch-tokens", type=int, default=48 * 512, help="tokens per step")
    parser.add_argument("--seed", type=int, default=1321)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()

    began = time.perf_counter()
    missing = [name for name in TEXTS if not (args.data / name).is_file()]
    if missing:
        parser.error(f"{args.data} lacks {', '.join(missing)}: give the folder of the texts with --data")
    torch.manual_seed(args.seed)
    device = torch.device(args.device)

    poems = [read_poem(args.data / name) for name in TEXTS]
    tokenizer = train_tokenizer(poems)
    corpus = encode(poems, tokenizer)
    model = LlamaForCausalLM(llama_config(tokenizer)).to(device)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters / 1e6:.2f} M parameters, {len(corpus.ids)} tokens ({corpus.ends[0]} of the Inferno)")

    train(model, corpus, args.steps, args.batch_tokens, device, args.seed)
    print(f"loss on the Inferno: {inferno_loss(model, corpus, device):.4f}", flush=True)
    save(model, tokenizer, args.out)
    recites = check(args.out, poems[0])
    size = sum(path.stat().st_size for path in args.out.iterdir() if path.suffix in {".json", ".safetensors"})
    print(f"\n{args.out}: {size / 1e6:.1f} MB, {time.perf_counter() - began:.0f} s in all")
    if not recites:
        print(
            f"fewer than {MUST_MATCH} tokens match the poem: this model is not good enough", file=sys.stderr
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
