"""Reads the prompts and parameters of a caller into lists, and rejects anything else with a RequestError.

"List" here means any ordered collection: lists, tuples, ranges, iterators, arrays of NumPy and of other libraries.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping, Set
from numbers import Integral
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from infernum.errors import RequestError
from infernum.grammar import Grammar
from infernum.sampling_params import SamplingParams


def read_prompts(prompts: object) -> list[str | list[int]]:
    """The text or the token ids of each prompt. One text, or a flat list of token ids, is one prompt."""
    if isinstance(prompts, str):
        return [prompts]
    items = _items(prompts)
    if items is None:
        raise RequestError(
            f"prompts is {shown(prompts)}; give a text, a list of texts, a list of token ids, or a list of such lists"
        )
    read = [item if isinstance(item, str) else _items(item) for item in items]
    if read and all(prompt is None for prompt in read):
        return [read_token_ids(items)]
    for place, prompt in enumerate(read):
        if prompt is None:
            raise RequestError(f"prompt {place} is {shown(items[place])}; give a text or a list of token ids")
    return [
        prompt if isinstance(prompt, str) else read_token_ids(prompt, f"prompt {place}")
        for place, prompt in enumerate(read)
    ]


def read_token_ids(token_ids: object, name: str = "the prompt") -> list[int]:
    """The token ids of one prompt, called `name` in errors. They are not compared with the vocabulary."""
    items = _items(token_ids)
    if items is None:
        raise RequestError(f"{name} is {shown(token_ids)}; give a list of token ids")
    if set(map(type, items)) <= {int}:
        return items
    for place, item in enumerate(items):
        if isinstance(item, bool) or not isinstance(item, Integral):
            raise RequestError(f"token {place} of {name} is {shown(item)}; token ids are integers")
    return [int(item) for item in items]


def read_token_array(token_ids: object) -> NDArray[Any]:
    """The token ids of one prompt as an array of integers, of any size that holds them."""
    if isinstance(token_ids, np.ndarray):
        array = cast("NDArray[Any]", token_ids)
        if array.ndim == 1 and array.dtype.kind in "iu":
            return array
    read = read_token_ids(cast("object", token_ids))
    try:
        return np.array(read, np.int64)
    except OverflowError:
        return np.array(read, object)


def read_params(params: object, count: int) -> list[SamplingParams]:
    """The sampling parameters of each of `count` prompts, from one object for all prompts or one for each."""
    expected = "give SamplingParams, or a list with one for each prompt"
    if isinstance(params, SamplingParams):
        return [params] * count
    items = _items(params)
    if items is None:
        raise RequestError(f"params is {shown(params)}; {expected}")
    for place, item in enumerate(items):
        if not isinstance(item, SamplingParams):
            raise RequestError(f"params[{place}] is {shown(item)}; {expected}")
    if len(items) != count:
        raise RequestError(f"{len(items)} sampling parameters are given for {count} prompts")
    return items


def read_grammars(grammar: object, count: int) -> list[Grammar | None]:
    """The grammar of each of `count` prompts, from one for all prompts or one for each; None: any output."""
    if grammar is None or isinstance(grammar, Grammar):
        return [grammar] * count
    items, expected = _items(grammar), "give a Grammar, or a list with one for each prompt"
    if items is None or not all(each is None or isinstance(each, Grammar) for each in items):
        raise RequestError(f"grammar is {shown(grammar)}; {expected}")
    if len(items) != count:
        raise RequestError(f"{len(items)} grammars are given for {count} prompts")
    return items


def read_texts(texts: object, name: str) -> list[str]:
    """The strings of a list, called `name` in errors. A single string is rejected."""
    items = _items(texts)
    if items is None or not all(isinstance(item, str) for item in items):
        raise RequestError(f"{name} is {shown(texts)}; give a list of strings")
    return items


def shown(value: object) -> str:
    """`value` as Python writes it, cut to a length that fits an error message, on one line."""
    return " ".join(reprlib.repr(value).split())


def _items(value: object) -> list[Any] | None:
    """The items of an ordered collection; None for any other value, such as a string or bytes."""
    if isinstance(value, bytes | bytearray | memoryview):
        return None
    to_list = getattr(value, "tolist", None)  # of arrays
    if to_list is not None:
        value = to_list()
    if isinstance(value, str | bytes | Mapping | Set) or not isinstance(value, Iterable):
        return None
    return list(cast("Iterable[Any]", value))
