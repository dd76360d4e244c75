"""View + prompt → the text that is sent: as it stands, in a chat template, or in one's own."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

View = str
"""How prompts are rendered: `raw`, as they stand; `chat`, as the user's turn in the chat template;
or a template of one's own, which has `{prompt}` once, such as `"Q: {prompt}\\nA:"`. What a
prompt ends in and the template too, such as `Answer:`, is written once."""
VIEWS = ("raw", "chat")
_PLACE = "{prompt}"
_DRESS = r"\s*#_"
"""Around a cue such as `Answer:`: white space, and what Markdown emphasizes with."""
_SENTENCE_ENDS = ".?!:;…)]\"'”"


def check_view(view: View, others: Sequence[str] = ()) -> View:
    """The view, if it is one.

    Args:
        others: further names that mean something where it was given.

    Raises:
        TypeError: if it is no text.
        ValueError: if it is no name, and does not have `{prompt}` once.
    """
    if not isinstance(view, str):
        raise TypeError(f"view must be a text, got {type(view).__name__}.")
    names = (*others, *VIEWS)
    if view in names or (times := view.count(_PLACE)) == 1:
        return view
    if times:
        raise ValueError(f"a view must have {_PLACE} once, got it {times} times in {view!r:.80}.")
    raise ValueError(
        f"view must be {', '.join(names)} or a template with {_PLACE} in it, got {view!r:.80}."
    )


def render(processor: Any, prompt: str, view: View) -> str:
    """A prompt as it is sent, without the tokenizer's own special tokens.

    Args:
        processor: a tokenizer or a processor; only `chat` needs it.

    Raises:
        ValueError: in view `chat`, if there is no template; see `render_chat`.
    """
    if view != "chat":
        return prompt if view == "raw" else _in_template(prompt, view)
    if with_chat_template(processor) is None:
        raise ValueError(
            "view must be 'raw' for a tokenizer without a chat template, got 'chat'. "
            "Set tokenizer.chat_template or use view='raw'."
        )
    return render_chat(processor, [{"role": "user", "content": prompt}])


def render_chat(processor: Any, messages: Sequence[Mapping[str, str]]) -> str:
    """A chat as its template shows it, up to where the answer begins.

    Args:
        processor: a tokenizer or a processor with a chat template.
        messages: with texts as their contents.

    Raises:
        ValueError: if the template raises, or does not show the last message's text.
    """
    templated, why = with_chat_template(processor), ""
    parts = [{**each, "content": [{"type": "text", "text": each["content"]}]} for each in messages]
    # some templates of image-text models take a list of parts, and of a text show nothing
    for asked in (messages, parts):
        try:
            text = templated.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
        except Exception as error:  # a template is a program, and may raise anything
            why = why or f"raised {type(error).__name__}: {error}"
            continue
        if "".join(messages[-1]["content"].split()) in "".join(text.split()):
            return text
        why = why or "leaves the text of a message out"
    name = getattr(templated, "name_or_path", "") or type(templated).__name__
    raise ValueError(
        f"the chat template of {name} must take a prompt without a system message, and {why}. "
        "Use view='raw', or set another template."
    )


def text_tokenizer(processor: Any) -> Any:
    """The tokenizer itself, also from within a processor."""
    return getattr(processor, "tokenizer", processor)


def with_chat_template(processor: Any) -> Any:
    """What renders a chat, of a tokenizer or a processor that has one; None without a template.

    A processor's template goes first, as in TRL.
    """
    owners = (processor, getattr(processor, "tokenizer", None))
    return next((each for each in owners if getattr(each, "chat_template", None)), None)


def _in_template(prompt: str, template: str) -> str:
    r"""A prompt in a template; a cue such as `Answer:` that both end in is written once.

    >>> _in_template("**Question:** Heads or tails?\n**Answer:**", "{prompt}\nAnswer:")
    '**Question:** Heads or tails?\nAnswer:'
    >>> _in_template("Which one is it? Vitamin A:", "Q: {prompt}\nA:")
    'Q: Which one is it? Vitamin A:\nA:'
    >>> _in_template("Flip a coin **Answer:**", "{prompt}\nAnswer:")
    'Flip a coin\nAnswer:'
    """
    before, after = template.split(_PLACE)
    cue = re.sub(rf"^[{_DRESS}]+|[{_DRESS}]+$", "", after.strip().rpartition("\n")[2])
    if cue.endswith(":"):
        prompt = _without_cue(prompt, cue)
    return before + prompt + after


def _without_cue(prompt: str, cue: str) -> str:
    """A prompt without a cue at its end: on a line of its own, dressed, or after a sentence.

    Other words that look like it stay, as in `Vitamin A:`.
    """
    found = re.search(rf"([{_DRESS}]+){re.escape(cue)}([{_DRESS}]*)$", prompt)
    if found is None or found.start() == 0:
        return prompt
    dressed = all(re.search("[*_]", part) for part in found.groups())
    ends = prompt[found.start() - 1] in _SENTENCE_ENDS
    return prompt[: found.start()] if dressed or ends or "\n" in found[1] else prompt
