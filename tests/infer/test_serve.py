"""The server with the official client, and with clients that do not behave."""

import asyncio
import json
import socket
import threading
import time

import httpx
import openai
import pytest
import torch
import uvicorn

from minids3.config import get_config
from minids3.data import load_tokenizer
from minids3.infer import __main__ as command
from minids3.infer import generate_ids
from minids3.infer.chat import chat
from minids3.infer.engine import Engine, Sampling
from minids3.infer.serve import Limits, make_app
from minids3.infer.service import Busy, Service
from minids3.infer.text import TextPieces, chat_ids
from minids3.model import Transformer, save_model
from small_models import SIZES, latent_model


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    sizes = {**SIZES, "vocab_size": tokenizer.vocab_size, "max_position_embeddings": 256}
    return Transformer(get_config("mini", **sizes)).eval()


@pytest.fixture(scope="module")
def address(model, tokenizer):
    with Service(Engine(model, max_batch=4, n_pages=80), max_waiting=8) as service:
        app = make_app(service, tokenizer, "small", True, Limits(20_000, 20.0))
        with socket.create_server(("127.0.0.1", 0)) as listening:
            server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
            thread.start()
            while not server.started:
                time.sleep(0.01)
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def client(address):
    return openai.OpenAI(base_url=address, api_key="none", max_retries=0, timeout=60)


def alone(model, tokenizer, ids, n, **settings):
    out = generate_ids(model, [ids], n, eos_id=tokenizer.eos_id, **settings)[0][len(ids) :].tolist()
    return tokenizer.decode([t for t in out if t != tokenizer.eos_id]), len(out)


def test_the_official_client_completes(client, model, tokenizer):
    assert [m.id for m in client.models.list()] == ["small"]
    want, count = alone(model, tokenizer, tokenizer.encode("Ask: Who", bos=True), 12)
    got = client.completions.create(model="small", prompt="Ask: Who", max_tokens=12, temperature=0)
    assert got.choices[0].text == want
    assert got.usage.completion_tokens == count
    assert got.choices[0].finish_reason in ("length", "stop")
    parts = client.completions.create(
        model="small",
        prompt="Ask: Who",
        max_tokens=12,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    parts = list(parts)
    assert "".join(p.choices[0].text for p in parts if p.choices) == want
    assert parts[-1].usage.completion_tokens == count


def test_seeds_and_several_prompts(client, model, tokenizer):
    settings = {"model": "small", "max_tokens": 8, "temperature": 1.2, "top_p": 0.9, "seed": 5}
    got = client.completions.create(prompt=["one", "two"], **settings)
    for choice, text in zip(got.choices, ("one", "two"), strict=True):
        ids = tokenizer.encode(text, bos=True)
        want, _ = alone(model, tokenizer, ids, 8, temperature=1.2, top_p=0.9, seed=5)
        assert choice.text == want
    assert client.completions.create(prompt=[5, 6, 7], **settings).usage.prompt_tokens == 3


def test_the_official_client_chats(client, model, tokenizer):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "Who?"},
    ]
    ids = [
        tokenizer.bos_id,
        tokenizer.user_id,
        *tokenizer.encode("Be brief.\nHello"),
        tokenizer.assistant_id,
        *tokenizer.encode("Hi"),
        tokenizer.eos_id,
        tokenizer.user_id,
        *tokenizer.encode("Who?"),
        tokenizer.assistant_id,
    ]
    want, _ = alone(model, tokenizer, ids, 10)
    settings = {"model": "small", "messages": messages, "max_tokens": 10, "temperature": 0}
    assert client.chat.completions.create(**settings).choices[0].message.content == want
    parts = list(client.chat.completions.create(**settings, stream=True))
    assert "".join(p.choices[0].delta.content or "" for p in parts) == want
    assert parts[-1].choices[0].finish_reason in ("length", "stop")


def test_stop_strings(client):
    settings = {"model": "small", "prompt": "Ask", "max_tokens": 30, "temperature": 0}
    whole = client.completions.create(**settings).choices[0].text
    stop = whole[7:10]
    got = client.completions.create(**settings, stop=[stop, "never to be seen"]).choices[0]
    assert got.text == whole[: whole.index(stop)]
    assert got.finish_reason == "stop"


def test_many_at_once(address, model, tokenizer):
    async def ask_all():
        client = openai.AsyncOpenAI(base_url=address, api_key="none", max_retries=0, timeout=60)
        ask = client.completions.create
        jobs = [
            ask(model="small", prompt=f"Ask {i}", max_tokens=3 + 5 * i, temperature=0)
            for i in range(6)
        ]
        return [r.choices[0].text for r in await asyncio.gather(*jobs)]

    for i, text in enumerate(asyncio.run(ask_all())):
        ids = tokenizer.encode(f"Ask {i}", bos=True)
        assert text == alone(model, tokenizer, ids, 3 + 5 * i)[0]


WRONG = {
    "is not valid JSON": b"{",
    "must be a JSON object": b"[]",
    "more than 20000 bytes": b" " * 20_001,
    "no model 'gpt'": {"model": "gpt", "prompt": "x"},
    "prompt must be": {},
    "a prompt must be a text": {"prompt": [{"x": 1}]},
    "is not in the vocabulary": {"prompt": [99999]},
    "the prompt has": {"prompt": [5] * 300},
    "max_tokens=0|max_new_tokens=0": {"prompt": "x", "max_tokens": 0},
    "temperature": {"prompt": "x", "temperature": -1},
    "at least 1e-06": {"prompt": "x", "temperature": 1e-300},
    "temperature or top_p too": {"prompt": "x", "temperature": 10**400},
    "top_p": {"prompt": "x", "top_p": "a"},
    "seed": {"prompt": "x", "seed": 1.5},
    "stop must": {"prompt": "x", "stop": [1]},
    "stream must": {"prompt": "x", "stream": "yes"},
    "n=2 is not supported": {"prompt": "x", "n": 2},
    "logprobs=3": {"prompt": "x", "logprobs": 3},
    "tempreature=1 is not supported": {"prompt": "x", "tempreature": 1},
}


@pytest.mark.parametrize("message", WRONG)
def test_errors_are_json(address, message):
    body = WRONG[message]
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = httpx.post(f"{address}/completions", content=raw)
    assert 400 <= answer.status_code < 500
    error = answer.json()["error"]
    assert any(part in error["message"] for part in message.split("|"))
    assert error["type"] == "invalid_request_error"


def test_errors_of_routes_and_roles(address):
    assert "there are /v1/models" in httpx.get(f"{address}/engines").json()["error"]["message"]
    assert httpx.get(f"{address}/completions").status_code == 405
    for messages, said in (
        ([], "there is no message"),
        ([{"role": "robot", "content": "x"}], "messages[0].role is 'robot'"),
        ([{"role": "user", "content": 5}], "messages[0].content"),
        ([{"role": "assistant", "content": "x"}], "the last message must be the user's"),
        ("hello", "messages must be a list"),
    ):
        answer = httpx.post(f"{address}/chat/completions", json={"messages": messages})
        assert answer.status_code == 400
        assert said in answer.json()["error"]["message"]


def test_a_bad_request_in_a_stream_says_so(address):
    body = {"prompt": [5] * 300, "stream": True}
    lines = httpx.post(f"{address}/completions", json=body).text.split("\n\n")
    assert (
        "the prompt has 300 tokens"
        in json.loads(lines[0].removeprefix("data: "))["error"]["message"]
    )


def slow_service(**settings):
    model = latent_model(torch.float32)
    engine, step = Engine(model), None
    step = engine.step

    def slowly():
        time.sleep(0.05)
        return step()

    engine.step = slowly
    return Service(engine, **settings)


def test_time_waiting_room_and_leaving_early():
    async def listen(service, seconds):
        return [e async for e in service.stream([1, 2], Sampling(max_new_tokens=40), seconds)]

    async def go(service):
        with pytest.raises(TimeoutError, match=r"more than 0.3 seconds"):
            await listen(service, 0.3)
        tasks = [asyncio.create_task(listen(service, 30)) for _ in range(2)]
        await asyncio.sleep(0.1)
        with pytest.raises(Busy, match="2 requests"):
            await listen(service, 30)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.5)
        assert service.engine.idle
        assert service.engine.pool.held == 0

    with slow_service(max_waiting=2) as service:
        asyncio.run(go(service))


def test_an_engine_that_fails_says_so_and_goes_on():
    async def go(service):
        plain = service.engine.model.hidden
        service.engine.model.hidden = lambda batch: 1 / 0
        with pytest.raises(RuntimeError, match="the engine failed: division by zero"):
            [e async for e in service.stream([1], Sampling(), 10)]
        service.engine.model.hidden = plain
        events = [e async for e in service.stream([1], Sampling(max_new_tokens=2), 10)]
        assert sum(len(e.tokens) for e in events) == 2

    with Service(Engine(latent_model(torch.float32))) as service:
        asyncio.run(go(service))


class Bytes:
    """One token per byte."""

    vocab_size, eos_id = 256, 0

    def encode(self, text, bos=False, eos=False):
        return list(text.encode())

    def decode(self, ids):
        return bytes(ids).decode("utf-8", errors="replace")


def test_pieces_are_whole_characters_up_to_a_stop_string():
    text = "naïve €5 abcabd"
    for stop, want in (
        ((), text),
        (("abd",), "naïve €5 abc"),
        (("€", "b"), "naïve "),
        (("zz",), text),
    ):
        pieces = TextPieces(Bytes(), stop)
        parts = [pieces.add([b]) for b in text.encode()]
        assert "".join(parts) + pieces.end() == want
        assert not any("\N{REPLACEMENT CHARACTER}" in p for p in parts)
        assert pieces.stopped == (want != text)
    pieces = TextPieces(Bytes())
    assert pieces.add([0xE2, 0x82]) == ""
    assert pieces.end() == "\N{REPLACEMENT CHARACTER}"


def test_a_chat_in_the_terminal(model, tokenizer):
    lines = iter(["Hello", "And?", "", "Hello", "x" * 2000])
    said = []

    def read(_prompt):
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    engine = Engine(model, max_batch=1, page=4)
    how = Sampling(max_new_tokens=6)
    assert chat(engine, tokenizer, how, False, read, said.append) == 3
    first = alone(
        model, tokenizer, chat_ids(tokenizer, [{"role": "user", "content": "Hello"}], False), 6
    )
    text = "".join(said)
    assert text.startswith(first[0] + "\n")
    assert text.count(first[0] + "\n") >= 2  # after the empty line the same again
    assert "an empty line begins a new conversation" in text
    assert engine.statistics.reused > 0


def test_the_command(model, tmp_path, monkeypatch, capsys):
    save_model(model, tmp_path / "m", {"chat": True})
    monkeypatch.setattr("builtins.input", lambda _: (_ for _ in ()).throw(EOFError))
    assert command.main(["chat", str(tmp_path / "m")]) == 0
    assert "not taught" not in capsys.readouterr().out
    assert command.main(["chat", str(tmp_path / "m"), "--plain"]) == 0
    assert "not taught" in capsys.readouterr().out
    assert command.main(["chat", "no_such_model"]) == 2
    assert command.main(["serve", str(tmp_path / "m"), "--port", "99999"]) == 2
    assert "--port 99999" in capsys.readouterr().err
