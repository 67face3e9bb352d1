"""A model behind the routes that every client knows: OpenAI's completions and chat completions.

``GET /v1/models``, ``POST /v1/completions``, ``POST /v1/chat/completions``, both with ``stream``;
errors are JSON of the same API. What would change a text and is not built (``n``, ``logprobs``,
penalties, tools ..) is refused by name, not ignored.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from minids3.data import Tokenizer
from minids3.infer.engine import Sampling
from minids3.infer.service import Busy, Service
from minids3.infer.text import TextPieces, chat_ids

__all__ = ["Limits", "make_app"]

SHARED = {
    "model", "max_tokens", "temperature", "top_p", "seed", "stop", "stream", "stream_options",
    # Of no influence on the text:
    "user", "metadata", "store", "safety_identifier", "prompt_cache_key",
}  # fmt: skip
ALLOWED = {
    "completions": SHARED | {"prompt"},
    "chat": SHARED | {"messages", "max_completion_tokens"},
}
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1, None), "best_of": (1, None), "echo": (False, None), "suffix": (None, ""),
    "logprobs": (False, None), "top_logprobs": (None,), "logit_bias": (None, {}),
    "presence_penalty": (0, None), "frequency_penalty": (0, None), "tools": (None, []),
    "tool_choice": (None, "none"), "response_format": (None, {"type": "text"}),
}  # fmt: skip
"""Fields that may be there with these values, which ask for nothing."""


@dataclass(frozen=True)
class Limits:
    """What a request may cost: bytes of its body, seconds, prompts of one request."""

    body_bytes: int = 1 << 20
    seconds: float = 120.0
    prompts: int = 16


class _Refused(Exception):
    """An answer that is an error: status, message, and the field that is wrong."""

    def __init__(self, status: int, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param = status, param


def _error(status: int, message: str, param: str | None = None) -> JSONResponse:
    return JSONResponse(_error_body(status, message, param), status)


def _error_body(status: int, message: str, param: str | None = None) -> dict[str, Any]:
    kind = "invalid_request_error" if status < 500 and status != 429 else "server_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": None}}


def _refusal(error: Exception) -> _Refused:
    """What a client is told about something that went wrong while it was served."""
    if isinstance(error, _Refused):
        return error
    if isinstance(error, Busy):
        return _Refused(429, str(error))
    if isinstance(error, TimeoutError):
        return _Refused(504, str(error))
    if isinstance(error, ValueError):
        return _Refused(400, str(error))
    return _Refused(500, str(error))


@dataclass(frozen=True)
class _Job:
    """A request, read and checked."""

    prompts: list[list[int]]
    sampling: Sampling
    stop: Sequence[str]
    stream: bool
    usage: bool


class _Server:
    def __init__(
        self, service: Service, tokenizer: Tokenizer, name: str, template: bool, limits: Limits
    ) -> None:
        self.service, self.tokenizer, self.name = service, tokenizer, name
        self.template, self.limits, self.started = template, limits, int(time.time())

    async def models(self, _request: Request) -> Response:
        """The one model."""
        one = {"id": self.name, "object": "model", "created": self.started, "owned_by": "minids3"}
        return JSONResponse({"object": "list", "data": [one]})

    async def completions(self, request: Request) -> Response:
        """Continue a text."""
        return await self._answer(request, "completions")

    async def chat(self, request: Request) -> Response:
        """Answer in a conversation."""
        return await self._answer(request, "chat")

    async def _answer(self, request: Request, route: str) -> Response:
        try:
            job = self._read(await self._body(request), route)
            if job.stream:
                return StreamingResponse(self._events(job, route), media_type="text/event-stream")
            return JSONResponse(await self._whole(job, route, request))
        except ClientDisconnect:
            return Response(status_code=499)
        except Exception as error:
            refused = _refusal(error)
            return _error(refused.status, str(refused), refused.param)

    async def _body(self, request: Request) -> dict[str, Any]:
        raw = b""
        async for part in request.stream():
            raw += part
            if len(raw) > self.limits.body_bytes:
                raise _Refused(413, f"the body has more than {self.limits.body_bytes} bytes")
        try:
            body = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise _Refused(400, f"the body is not valid JSON ({error})") from None
        if not isinstance(body, dict):
            raise _Refused(400, f"the body must be a JSON object, not a {type(body).__name__}")
        return body

    def _read(self, body: dict[str, Any], route: str) -> _Job:
        for name, value in body.items():
            if name in NEUTRAL and value in NEUTRAL[name]:
                continue
            if name not in ALLOWED[route]:
                raise _Refused(400, f"{name}={value!r} is not supported here"[:300], name)
        model = body.get("model", self.name)
        if model != self.name:
            raise _Refused(404, f"there is no model {model!r}; there is {self.name!r}", "model")
        prompts = self._prompts(body) if route == "completions" else [self._messages(body)]
        stop = body.get("stop") or []
        stop = [stop] if isinstance(stop, str) else stop
        if not (
            isinstance(stop, list) and len(stop) <= 4 and all(isinstance(s, str) for s in stop)
        ):
            raise _Refused(400, "stop must be a text or a list of up to 4 texts", "stop")
        stream = body.get("stream") or False
        options = body.get("stream_options") or {}
        if not isinstance(stream, bool) or not isinstance(options, dict):
            raise _Refused(400, "stream must be true or false, stream_options an object", "stream")
        return _Job(
            prompts,
            self._sampling(body, route, prompts),
            stop,
            stream,
            options.get("include_usage") is True,
        )

    def _prompts(self, body: dict[str, Any]) -> list[list[int]]:
        given = body.get("prompt")
        if isinstance(given, str) or (
            isinstance(given, list) and given and all(isinstance(t, int) for t in given)
        ):
            given = [given]
        if not isinstance(given, list) or not 1 <= len(given) <= self.limits.prompts:
            raise _Refused(
                400,
                f"prompt must be a text, token ids, or up to {self.limits.prompts} of them",
                "prompt",
            )
        found = []
        for one in given:
            if isinstance(one, str):
                found.append(self.tokenizer.encode(one, bos=True))
            elif isinstance(one, list):
                found.append(one)
            else:
                raise _Refused(400, f"a prompt must be a text or token ids, not {one!r}", "prompt")
        return found

    def _messages(self, body: dict[str, Any]) -> list[int]:
        messages = body.get("messages")
        if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
            raise _Refused(
                400, "messages must be a list of objects with role and content", "messages"
            )
        plain = [{**m, "content": _content(m.get("content"))} for m in messages]
        try:
            return chat_ids(self.tokenizer, plain, self.template)
        except ValueError as error:
            raise _Refused(400, str(error), "messages") from None

    def _sampling(
        self, body: dict[str, Any], route: str, prompts: Sequence[Sequence[int]]
    ) -> Sampling:
        def given(name: str, default: Any) -> Any:
            value = body.get(name)
            return default if value is None else value

        room = self.service.engine.positions - max(map(len, prompts))
        tokens = given("max_tokens", 16 if route == "completions" else max(1, room))
        tokens = given("max_completion_tokens", tokens)
        try:
            return Sampling(
                tokens,
                given("temperature", 1.0),
                given("top_p", 1.0),
                given("seed", secrets.randbits(62)),
                self.tokenizer.eos_id,
            )
        except ValueError as error:
            raise _Refused(400, str(error)) from None

    async def _pieces(self, job: _Job, index: int) -> AsyncIterator[tuple[str, str | None, int]]:
        """Text, reason to end and number of new tokens, as they come."""
        pieces, end = TextPieces(self.tokenizer, job.stop), self.tokenizer.eos_id
        events = self.service.stream(job.prompts[index], job.sampling, self.limits.seconds)
        try:
            async for event in events:
                if event.finished == "error":
                    raise _Refused(500, event.message)
                text = pieces.add([t for t in event.tokens if t != end])
                reason: str | None = event.finished
                if event.finished:
                    text += pieces.end()
                if pieces.stopped:
                    reason = "stop"
                yield text, reason, len(event.tokens)
                if reason:
                    return
        finally:
            await events.aclose()

    async def _whole(self, job: _Job, route: str, request: Request) -> dict[str, Any]:
        choices, count = [], 0
        for index in range(len(job.prompts)):
            whole, reason = "", None
            async for text, ended, tokens in self._pieces(job, index):
                whole, reason, count = whole + text, ended, count + tokens
                if await request.is_disconnected():
                    raise ClientDisconnect
            choices.append(_choice(route, index, whole, reason, streaming=False))
        return {**self._head(route, False), "choices": choices, "usage": _usage(job, count)}

    async def _events(self, job: _Job, route: str) -> AsyncIterator[str]:
        head, count = self._head(route, True), 0
        try:
            for index in range(len(job.prompts)):
                async for text, reason, tokens in self._pieces(job, index):
                    count += tokens
                    choice = _choice(route, index, text, reason, streaming=True)
                    yield _line({**head, "choices": [choice]})
            if job.usage:
                yield _line({**head, "choices": [], "usage": _usage(job, count)})
        except Exception as error:  # the status has been sent; the client reads it in the stream
            refused = _refusal(error)
            yield _line(_error_body(refused.status, str(refused), refused.param))
        yield "data: [DONE]\n\n"

    def _head(self, route: str, streaming: bool) -> dict[str, Any]:
        kind = "text_completion"
        if route == "chat":
            kind = "chat.completion.chunk" if streaming else "chat.completion"
        name = f"{'chatcmpl' if route == 'chat' else 'cmpl'}-{secrets.token_hex(12)}"
        return {"id": name, "object": kind, "created": int(time.time()), "model": self.name}


def _content(content: Any) -> Any:
    """A message's text; clients may send it as a list of parts."""
    if isinstance(content, list) and all(
        isinstance(p, dict) and p.get("type") == "text" and isinstance(p.get("text"), str)
        for p in content
    ):
        return "".join(p["text"] for p in content)
    return content


def _choice(
    route: str, index: int, text: str, reason: str | None, streaming: bool
) -> dict[str, Any]:
    if route == "completions":
        found: dict[str, Any] = {"text": text}
    else:
        found = {"delta" if streaming else "message": {"role": "assistant", "content": text}}
    return {"index": index, **found, "logprobs": None, "finish_reason": reason}


def _usage(job: _Job, count: int) -> dict[str, int]:
    read = sum(map(len, job.prompts))
    return {"prompt_tokens": read, "completion_tokens": count, "total_tokens": read + count}


def _line(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content)}\n\n"


async def _not_found(_request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    said = error.detail if isinstance(error, HTTPException) else "the server failed"
    return _error(status, f"{said}: there are /v1/models, /v1/completions, /v1/chat/completions")


def make_app(
    service: Service,
    tokenizer: Tokenizer,
    name: str,
    template: bool = True,
    limits: Limits | None = None,
) -> Starlette:
    """The ASGI application of a running service.

    Args:
        service: its engine's model has the tokenizer's vocabulary.
        tokenizer: of the model.
        name: the model's, as clients call it.
        template: write chats with control tokens; False for a model that only continues text.
        limits: of a request.

    Raises:
        ValueError: model and tokenizer do not fit.
    """
    if tokenizer.vocab_size != service.engine.vocabulary:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model "
            f"{service.engine.vocabulary}: load the tokenizer that the model was trained with"
        )
    server = _Server(service, tokenizer, name, template, limits or Limits())
    post: list[tuple[str, Callable[..., Any]]] = [
        ("/v1/completions", server.completions),
        ("/v1/chat/completions", server.chat),
    ]
    routes = [Route("/v1/models", server.models, methods=["GET"])]
    routes += [Route(path, endpoint, methods=["POST"]) for path, endpoint in post]
    return Starlette(routes=routes, exception_handlers={HTTPException: _not_found})
