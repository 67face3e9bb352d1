"""From tokens to text, piece by piece: whole characters, up to a stop string; and back, for chats.

A chat is written with the tokenizer's control tokens, one turn after the other::

    <|bos|><|user|> question <|assistant|> answer <|eos|><|user|> question <|assistant|>

A model that has not been taught to chat has never seen them. It continues plain text instead: the
messages, one below the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from minids3.data import Tokenizer
from minids3.infer.generate import TextTokenizer

__all__ = ["TextPieces", "chat_ids"]

BROKEN = "\N{REPLACEMENT CHARACTER}"


class TextPieces:
    """Turns tokens into text as they come.

    Held back are the bytes of a character that is not complete, and text that may turn out to be
    the beginning of a stop string. The stop string itself is never handed out.
    """

    def __init__(self, tokenizer: TextTokenizer, stop: Sequence[str] = ()) -> None:
        self.tokenizer, self.stop = tokenizer, tuple(s for s in stop if s)
        self.stopped = False
        self._ids: list[int] = []
        self._text = ""

    def add(self, tokens: Sequence[int]) -> str:
        """The text that is certain after these tokens; nothing more after a stop string."""
        for token in tokens:
            if self.stopped:
                return ""
            self._ids.append(token)
        return self._release(self.tokenizer.decode(self._ids), last=False)

    def end(self) -> str:
        """What was held back, when nothing follows."""
        return self._release(self.tokenizer.decode(self._ids), last=True)

    def _release(self, new: str, last: bool) -> str:
        if self.stopped or (new.endswith(BROKEN) and not last):
            return ""
        self._ids, text = [], self._text + new
        found = [place for s in self.stop if (place := text.find(s)) >= 0]
        if found:
            self.stopped, self._text = True, ""
            return text[: min(found)]
        held = 0 if last else max((_overlap(text, s) for s in self.stop), default=0)
        self._text = text[len(text) - held :]
        return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that ``stop`` begins with."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


def chat_ids(
    tokenizer: Tokenizer, messages: Sequence[Mapping[str, str]], template: bool = True
) -> list[int]:
    """Token ids of a conversation whose next turn is the assistant's.

    Args:
        tokenizer: of the model.
        messages: each with ``role`` (``"system"``, ``"user"``, ``"assistant"``) and ``content``. A
            system message is put before the user's next.
        template: write turns with control tokens, for a model that was taught to chat.

    Raises:
        ValueError: no message, an unknown role, or a last one that needs no answer.
    """
    if not messages:
        raise ValueError("there is no message: a chat needs at least one of the user's")
    ids, before = [tokenizer.bos_id], ""
    for i, message in enumerate(messages):
        role, content = message.get("role"), message.get("content")
        if role not in ("system", "user", "assistant"):
            raise ValueError(
                f"messages[{i}].role is {role!r}; it must be 'system', 'user' or 'assistant'"
            )
        if not isinstance(content, str):
            raise ValueError(f"messages[{i}].content must be a text")
        if role == "system":
            before += content + "\n"
            continue
        if not template:
            ids += tokenizer.encode(before + content + "\n")
        elif role == "user":
            ids += [tokenizer.user_id, *tokenizer.encode(before + content)]
        else:
            ids += [tokenizer.assistant_id, *tokenizer.encode(before + content), tokenizer.eos_id]
        before = ""
    if messages[-1].get("role") != "user":
        raise ValueError("the last message must be the user's: there is nothing to answer")
    return [*ids, tokenizer.assistant_id] if template else ids
