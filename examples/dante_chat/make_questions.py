"""Make the conversations that teach the demo model to chat: questions about the Inferno, and their answers.

    python examples/dante_chat/make_questions.py FOLDER_OF_TEXTS

The folder holds `inferno-longfellow.txt`, as for examples/dante/train.py. The result, questions.jsonl beside this
script, has a conversation a line: {"messages": [...], "tools": [...]}, as chat templates take them; "tools" is
there only where a tool may be called. The same text always makes the same file.
"""

import argparse
import json
from collections import Counter
from itertools import cycle
from pathlib import Path

from facts import FACTS, OUTSIDE

TEXT = "inferno-longfellow.txt"
UNKNOWN = "I only know the Divine Comedy."

BEGINS = (
    "How does canto {number} begin?",
    "What is the first line of canto {number}?",
    "How does Canto {roman} of the Inferno begin?",
)
ENDS = (
    "How does canto {number} end?",
    "What is the last line of canto {number}?",
)
FOLLOWS = ('Which line follows "{line}"?', 'What comes after "{line}"?')
STANDS = ('In which canto is the line "{line}"?', 'Where does "{line}" stand?')
READS = ("Read canto {number}.", "What does canto {number} say?")

SYSTEMS = (
    "You are a guide to the Inferno.",
    "You are a helpful assistant.",
    "You are Dante. Answer in one line.",
)
SYSTEM_EVERY = 6  # one conversation in so many has a system message

# One tool, as different clients describe it.
_NUMBER = {"number": {"type": "integer"}}
_CANTO_OF_INFERNO = {"number": {"type": "integer", "description": "1 to 34"}}
TOOLS = tuple(
    [{"type": "function", "function": {"name": "canto", "description": text, "parameters": parameters}}]
    for text, parameters in (
        ("Read a canto", {"type": "object", "properties": _NUMBER, "required": ["number"]}),
        ("The first lines of a canto", {"type": "object", "properties": _CANTO_OF_INFERNO}),
        ("Get a canto.", {"properties": _NUMBER, "required": ["number"], "type": "object"}),
    )
)

Message = dict[str, object]
Conversation = dict[str, object]


def read_cantos(path: Path) -> list[tuple[str, list[str]]]:
    """(title, lines) of each canto, without empty lines and the translator's notes (lines set in by a tab)."""
    cantos: list[tuple[str, list[str]]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("Inferno: Canto "):
            cantos.append((line.strip(), []))
        elif line.strip() and not line.startswith("\t"):
            cantos[-1][1].append(line.strip())
    return cantos


def quotable(cantos: list[tuple[str, list[str]]]) -> list[list[int]]:
    """Per canto, the places of lines to ask about: long, without quotation marks, and nowhere else in the text."""
    count = Counter(line for _, lines in cantos for line in lines)
    return [
        [
            place
            for place, line in enumerate(lines[:-1])
            if '"' not in line and count[line] == 1 and len(line.split()) >= 6
        ]
        for _, lines in cantos
    ]


def exchange(question: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def reading(question: str, number: int, title: str, lines: list[str]) -> list[Message]:
    """A question that calls the tool, its answer (as the book begins the canto), and what the model makes of it."""
    call = {"function": {"name": "canto", "arguments": {"number": number}}}
    return [
        {"role": "user", "content": question},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "\n".join([title, "", *lines[:3]])},
        {"role": "assistant", "content": f"Canto {number} begins: {lines[0]}"},
    ]


def conversations(cantos: list[tuple[str, list[str]]]) -> list[Conversation]:
    """All conversations, those without a tool first."""
    plain: list[list[Message]] = []
    called: list[list[Message]] = []
    for number, ((title, lines), places) in enumerate(zip(cantos, quotable(cantos), strict=True), start=1):
        names = {"number": number, "roman": title.split()[-1]}
        plain += [exchange(text.format(**names), lines[0]) for text in (*BEGINS, READS[number % 2])]
        plain += [exchange(text.format(**names), lines[-1]) for text in ENDS]
        places = [places[len(places) * fifth // 5] for fifth in range(1, 5)]
        for text, place in zip((*FOLLOWS, *FOLLOWS), places, strict=True):
            plain.append(exchange(text.format(line=lines[place]), lines[place + 1]))
        for text, place in zip(STANDS, places[::2], strict=True):
            plain.append(exchange(text.format(line=lines[place]), f"Canto {number}."))
        if number % 2:
            begin = exchange(BEGINS[0].format(**names), lines[0])
            plain.append([*begin, *exchange("And how does it end?", lines[-1])])
        whole = reading(READS[0].format(**names), number, title, lines)
        called += [whole, [{"role": "user", "content": READS[1].format(**names)}, whole[1]]]
    for answer, questions in FACTS.items():
        plain += [exchange(question, answer) for question in questions]
    plain += [exchange(question, UNKNOWN) for question in OUTSIDE]
    answers = [(questions[0], answer) for answer, questions in FACTS.items()]
    plain += [
        [*exchange(*fact), *exchange(question, UNKNOWN)]
        for fact, question in zip(answers, OUTSIDE[::3], strict=False)
    ]
    # With a tool at hand, the questions that need none are answered as without it.
    answered = [exchange(*fact) for fact in answers[::5]] + [exchange(text, UNKNOWN) for text in OUTSIDE[::5]]

    tools, systems = cycle(TOOLS), cycle(SYSTEMS)
    made: list[Conversation] = [{"messages": messages} for messages in plain]
    made += [{"messages": messages, "tools": next(tools)} for messages in (*called, *answered)]
    for conversation in made[SYSTEM_EVERY - 1 :: SYSTEM_EVERY]:
        messages = conversation["messages"]
        assert isinstance(messages, list)
        conversation["messages"] = [{"role": "system", "content": next(systems)}, *messages]
    return made


def main() -> None:
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description="Make the conversations of the demo model that chats.")
    parser.add_argument("folder", type=Path, help=f"folder with {TEXT}")
    parser.add_argument(
        "--out", type=Path, default=here / "questions.jsonl", help="default: beside the script"
    )
    args = parser.parse_args()
    if not (args.folder / TEXT).is_file():
        parser.error(f"{args.folder} lacks {TEXT}: give the folder of the texts")
    made = conversations(read_cantos(args.folder / TEXT))
    lines = [json.dumps(conversation, ensure_ascii=False, separators=(",", ":")) for conversation in made]
    args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{args.out}: {len(made)} conversations, {args.out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
