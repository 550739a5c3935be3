"""lm-eval against our server: three kinds of tasks from Dante's text, by completions and by chats.

    python tests/acceptance/lm_eval_run.py [--questions 100] [--lm-eval lm_eval]

Log-likelihoods of lines and of choices must be those of `LLM.logits` to 1e-3, and all answers the same at a concurrency
of 1 and of 64. `lm_eval` is the command of lm-eval[api].
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
KINDS = {
    "dante_lines": ('"{{target}}"', "acc", "output_type: loglikelihood\ntarget_delimiter: ''"),
    "dante_choices": ("right", "acc", 'output_type: multiple_choice\ndoc_to_choice: "{{choices}}"'),
    "dante_answers": (
        '"{{target}}"',
        "exact_match",
        "output_type: generate_until\ngeneration_kwargs:\n  until: ['\\n']\n  max_gen_toks: 24\n  temperature: 0",
    ),
}


def write_tasks(folder: Path, questions: int) -> None:
    """Tasks from what dante-chat was taught: the last words of answers, an answer among others, and whole answers."""
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
        documents["dante_answers"].append({"text": question, "target": answer})
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
    tasks = ["dante_answers"] if chat else list(KINDS)
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


def log_likelihood(llm: LLM, context: str, continuation: str) -> float:
    """The sum over the tokens of `continuation` behind `context`, from the raw logits in float64.

    Without the token that begins a text, which lm-eval leaves out too.
    """
    assert llm.tokenizer is not None
    whole, begun = llm.tokenizer.encode_plain(context + continuation), llm.tokenizer.encode_plain(context)
    logits = llm.logits(whole).astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    scores = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return float(sum(scores[at - 1, whole[at]] for at in range(len(begun), len(whole))))


def largest_difference(llm: LLM, samples: list[dict[str, Any]]) -> float:
    """Between the log-likelihoods of lm-eval's requests and those of the logits."""
    worst = 0.0
    for sample in samples:
        requests = [arguments for _, arguments in sorted(sample["arguments"].items())]
        for request, response in zip(requests, sample["filtered_resps"], strict=True):
            expected = log_likelihood(llm, request["arg_0"], request["arg_1"])
            worst = max(worst, abs(expected - float(response[0])))
    return worst


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=100)
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
                    if task != "dante_answers":  # which are texts
                        difference = largest_difference(llm, samples)
                        wrong += difference > 1e-3
                        compared = f", largest difference from the logits {difference:.2g}"
                    wrong += not same
                    metric = KINDS[task][1]
                    score = sum(sample[metric] for sample in samples) / len(samples)
                    print(
                        f"{'chats' if chat else 'completions'} {task}: {len(samples)} documents, {metric} {score:.3f}, "
                        f"{'the same' if same else 'NOT the same'} at a concurrency of {CONCURRENCIES}{compared}"
                    )
    finally:
        code = server.stop()
    return int(bool(wrong) or code != 0)


if __name__ == "__main__":
    sys.exit(main())
