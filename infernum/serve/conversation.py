"""A conversation, whatever interface it came by, as the sequences that answer it."""

from __future__ import annotations

from dataclasses import dataclass

from infernum.chat.calls.grammar import CalledSchema, answer_grammar
from infernum.chat.reader import AnswerForm
from infernum.chat.reasoning import OPENING
from infernum.serve.generation import Wish
from infernum.serve.grammar_check import GrammarSource
from infernum.serve.requests import ChatRequest
from infernum.serve.served import Served
from infernum.serve.tools import NamedChoice, check_tools, schema_of


@dataclass(frozen=True)
class Conversation:
    """A conversation that a model can answer: the name of the model, the prompt, and a wish for each choice."""

    model: str
    prompt: list[int]
    wishes: list[Wish]


async def read_conversation(
    served: Served, request: ChatRequest, max_tokens: int | None, *, cuts: bool = False
) -> Conversation:
    """Read a request. Raises Problem. `cuts`: `max_tokens` is cut to what the context holds, else refused beyond it."""
    model = served.check_model(request.model)
    check_tools(request.tools or [], request.tool_choice)
    prompt = served.check_ids(await served.encode_chat(request))
    if cuts and max_tokens is not None:
        max_tokens = min(max_tokens, max(served.ready.longest - len(prompt), 1))
    form = _form(served, request, prompt)
    grammar = await _grammar(served, request, form)
    wishes = served.wishes(request, [prompt], max_tokens, chat=True, form=form, grammar=grammar)
    return Conversation(model, prompt, wishes)


def _form(served: Served, request: ChatRequest, prompt: list[int]) -> AnswerForm | None:
    """How the answer is written; None: as plain text. Raises Problem."""
    tools = bool(request.offered_tools)
    template = served.chat.template.text_for(tools=tools)
    calls = served.parsers.calls(template) if tools else None
    reasons = served.parsers.reasoning(template)
    opened = reasons and served.needed_tokenizer.decode(prompt[-8:], special=True).rstrip().endswith(OPENING)
    one_call = request.parallel_tool_calls is False or isinstance(request.tool_choice, NamedChoice)
    return AnswerForm(calls, reasons, opened, one_call) if calls or reasons else None


async def _grammar(served: Served, request: ChatRequest, form: AnswerForm | None) -> str | None:
    """What the answer must follow; None: nothing. Raises Problem.

    Where the answer must call, these are calls; else the form that is asked for, or calls. Reasoning may be in front.
    """
    answer = await served.grammar(request)
    choice, tools = request.tool_choice, request.offered_tools
    must_call = choice == "required" or isinstance(choice, NamedChoice)
    if isinstance(choice, NamedChoice):
        tools = [tool for tool in tools if tool.function.name == choice.function.name]
    if form is None or not (must_call or answer):
        return answer
    functions = [
        CalledSchema(tool.function.name, schema_of(tool), not tool.function.strict) for tool in tools
    ]
    text = answer_grammar(form, served.needed_tokenizer.token, functions, None if must_call else answer)
    source = GrammarSource("tools" if tools else "response_format", "llguidance", text)
    return await served.checked_grammar(source, request)
