"""A conversation in the terminal: what you write is answered as it is made, token by token."""

from __future__ import annotations

from collections.abc import Callable

from minids3.data import Tokenizer
from minids3.infer.engine import Engine, RequestError, Sampling
from minids3.infer.text import TextPieces, chat_ids

__all__ = ["chat"]


def chat(
    engine: Engine,
    tokenizer: Tokenizer,
    sampling: Sampling,
    template: bool,
    read: Callable[[str], str] | None = None,
    write: Callable[[str], object] | None = None,
) -> int:
    """Read a line, answer it, and so on, until the end of input.

    An empty line begins anew. Earlier turns stay in the engine's pages, so that only what is new is
    read. Each answer has a seed of its own, one more than the one before.

    Args:
        engine: idle, and left so.
        tokenizer: of its model.
        sampling: of the first answer.
        template: write turns with control tokens, for a model that was taught to chat.
        read: asks for a line, by default ``input``; ``EOFError`` ends the conversation.
        write: prints a piece of text without a line break.

    Returns:
        How many answers were given.
    """
    read = read or input
    write = write or (lambda text: print(text, end="", flush=True))
    messages: list[dict[str, str]] = []
    answers = 0
    while True:
        try:
            line = read("> ")
        except EOFError:
            write("\n")
            return answers
        if not line.strip():
            messages.clear()
            write("(a new conversation)\n")
            continue
        messages.append({"role": "user", "content": line})
        how = Sampling(
            sampling.max_new_tokens,
            sampling.temperature,
            sampling.top_p,
            sampling.seed + answers,
            tokenizer.eos_id,
        )
        try:
            number = engine.submit(chat_ids(tokenizer, messages, template), how)
        except RequestError as error:
            messages.pop()
            write(f"({error}; an empty line begins a new conversation)\n")
            continue
        messages.append({"role": "assistant", "content": _answer(engine, tokenizer, number, write)})
        answers += 1


def _answer(
    engine: Engine, tokenizer: Tokenizer, number: int, write: Callable[[str], object]
) -> str:
    """Print an answer as it comes; Ctrl-C cuts it short."""
    pieces, whole = TextPieces(tokenizer), ""
    try:
        for event in engine.run():
            text = pieces.add([t for t in event.tokens if t != tokenizer.eos_id])
            if event.finished:
                text += pieces.end()
            if event.finished == "error":
                text += f"({event.message})"
            write(text)
            whole += text
    except KeyboardInterrupt:
        engine.cancel(number)
    write("\n")
    return whole
