"""lm-eval against our server: four kinds of tasks from Dante's text, by completions and by chats.

    python tests/acceptance/lm_eval_run.py [--questions 300] [--lm-eval lm_eval]

Log-likelihoods must be those of `LLM.logits` to the last bit, and all answers the same at a concurrency of 1 and of 64.
`lm_eval` is the command of lm-eval[api].
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from serving import ROOT, RunningServer, start

from infernum import LLM
from infernum.ops import sampling

CONCURRENCIES = (1, 64)
TASK = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
doc_to_text: "{{{{text}}}}"
doc_to_target: {target}
{rest}
metric_list:
  - metric: {metric}
"""
ROLLING, ANSWERS = "dante_passages", "dante_answers"
KINDS = {
    "dante_lines": ('"{{target}}"', "acc", "output_type: loglikelihood\ntarget_delimiter: ''"),
    "dante_choices": ("right", "acc", 'output_type: multiple_choice\ndoc_to_choice: "{{choices}}"'),
    ROLLING: (
        '"{{target}}"',
        "word_perplexity",
        "output_type: loglikelihood_rolling",
    ),
    ANSWERS: (
        '"{{target}}"',
        "exact_match",
        "output_type: generate_until\ngeneration_kwargs:\n  until: ['\\n']\n  max_gen_toks: 24\n  temperature: 0",
    ),
}


def write_tasks(folder: Path, questions: int) -> None:
    """Tasks from what dante-chat was taught.

    They ask for the last words of answers, for an answer among others, for every word of three questions and answers,
    and for whole answers.
    """
    lines = (ROOT / "examples/dante_chat/questions.jsonl").read_text().splitlines()
    conversations = [json.loads(line)["messages"] for line in lines]
    pairs = [
        (question["content"], answer["content"])
        for question, answer in (each[:2] for each in conversations if len(each) == 2)
        if question["role"] == "user" and answer.get("content")
    ]
    answers = list(dict.fromkeys(answer for _, answer in pairs))
    documents: dict[str, list[dict[str, Any]]] = {name: [] for name in KINDS}
    for number, (question, answer) in enumerate(pairs[:: max(1, len(pairs) // questions)][:questions]):
        words = answer.split(" ")
        begun = " ".join(words[: len(words) // 2])
        documents["dante_lines"].append(
            {"text": f"{question} {begun}".rstrip(), "target": " " + " ".join(words[len(words) // 2 :])}
        )
        others = [answers[(number * 7 + i) % len(answers)] for i in range(3)]
        choices = list(dict.fromkeys([answer, *others]))
        documents["dante_choices"].append({"text": question, "choices": choices, "right": 0})
        documents[ANSWERS].append({"text": question, "target": answer})
        passage = [pairs[(number * 5 + i) % len(pairs)] for i in range(3)]
        documents[ROLLING].append({"text": "", "target": " ".join(" ".join(pair) for pair in passage)})
    for name, (target, metric, rest) in KINDS.items():
        data = folder / f"{name}.jsonl"
        data.write_text("\n".join(map(json.dumps, documents[name])))
        task = TASK.format(name=name, data=data, target=target, metric=metric, rest=rest)
        (folder / f"{name}.yaml").write_text(task)


def evaluated(
    command: str, server: RunningServer, folder: Path, chat: bool, concurrency: int
) -> dict[str, list[dict[str, Any]]]:
    """The samples of each task, in the order of its documents."""
    out = folder / f"{'chat' if chat else 'completions'}-{concurrency}"
    path = "chat/completions" if chat else "completions"
    settings = (
        f"base_url={server.url}/v1/{path},model=dante-chat,num_concurrent={concurrency},max_length=1024"
    )
    kind = ["local-chat-completions", "--apply_chat_template"] if chat else ["local-completions"]
    tasks = [ANSWERS] if chat else list(KINDS)
    settings += "" if chat else ",tokenizer_backend=remote"
    options = ["--model_args", settings, "--tasks", ",".join(tasks), "--include_path", str(folder)]
    finished = subprocess.run(
        [command, "run", "--model", *kind, *options, "--output_path", str(out), "--log_samples"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    if finished.returncode:
        raise SystemExit(finished.stderr[-2000:])
    samples: dict[str, list[dict[str, Any]]] = {}
    for task in tasks:
        (file,) = out.rglob(f"samples_{task}_*.jsonl")
        each = [json.loads(line) for line in file.read_text().splitlines()]
        samples[task] = sorted(each, key=lambda sample: sample["doc_id"])
    return samples


def log_likelihood(llm: LLM, begun: list[int], whole: list[int]) -> tuple[float, float]:
    """The sum over the tokens of `whole` behind `begun`, by the raw logits.

    First as a client has it, who adds up what the op `logprobs` rounds to float32; then unrounded, in float64.
    """
    logits = llm.logits(whole)[len(begun) - 1 : -1]
    following = np.array(whole[len(begun) :], np.int32)
    _, rounded = sampling.logprobs.meaning(logits, following, following)
    exact = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    exact = exact[np.arange(len(following)), following] - np.log(np.exp(exact).sum(axis=1))
    return sum(rounded[:, 0].tolist()), float(exact.sum())


def differences(llm: LLM, samples: list[dict[str, Any]]) -> tuple[float, float]:
    """The largest between the log-likelihoods of lm-eval's requests and those of the logits, rounded and not.

    lm-eval leaves out the token that begins a text, but where every token of the text counts.
    """
    assert llm.tokenizer is not None
    encode = llm.tokenizer.encode_plain
    first = llm.source.generation.bos_token_id
    assert first is not None
    worst = np.zeros(2)
    for sample in samples:
        requests = [arguments for _, arguments in sorted(sample["arguments"].items())]
        for request, response in zip(requests, sample["filtered_resps"], strict=True):
            if "arg_1" in request:
                begun, whole = encode(request["arg_0"]), encode(request["arg_0"] + request["arg_1"])
                total = float(response[0])
            else:
                begun, whole = [first], [first, *encode(request["arg_0"])]
                total = float(response)
            worst = np.maximum(worst, np.abs(np.array(log_likelihood(llm, begun, whole)) - total))
    return float(worst[0]), float(worst[1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--lm-eval", default="lm_eval")
    arguments = parser.parse_args()
    wrong = 0
    server = start()
    try:
        with tempfile.TemporaryDirectory() as name, LLM("dante-chat", device="cpu") as llm:
            folder = Path(name)
            write_tasks(folder, arguments.questions)
            for chat in (False, True):
                first, second = (
                    evaluated(arguments.lm_eval, server, folder, chat, at_once) for at_once in CONCURRENCIES
                )
                for task, samples in first.items():
                    others = second[task]
                    same = [s["filtered_resps"] for s in samples] == [s["filtered_resps"] for s in others]
                    compared = ""
                    if task != ANSWERS:  # which are texts
                        rounded, exact = differences(llm, samples)
                        wrong += rounded > 0
                        compared = f"; log-likelihoods differ from those of the logits by {rounded:.2g}, "
                        compared += f"from those that nothing rounds by {exact:.2g}"
                    wrong += not same
                    metric = KINDS[task][1]
                    score = ""
                    if task != ROLLING:
                        score = f", {metric} {sum(sample[metric] for sample in samples) / len(samples):.3f}"
                    print(
                        f"{'chats' if chat else 'completions'} {task}: {len(samples)} documents{score}, "
                        f"{'the same' if same else 'NOT the same'} at a concurrency of {CONCURRENCIES}{compared}",
                        flush=True,
                    )
    finally:
        code = server.stop()
    return int(bool(wrong) or code != 0)


if __name__ == "__main__":
    sys.exit(main())
