"""A small serving engine: texts come and go, and every step computes what all of them need next.

Static batches wait for their longest text. Here a step is made anew each time (continuous batching,
Yu et al. 2022, OSDI, "Orca"):

1. admit waiting requests, oldest first, while there are places and pages; what a page in memory
   already knows of a prompt is not computed again;
2. plan: one token (and its guesses) of every text that is being continued, and a chunk of the
   prompts that are being read, so that a long prompt does not stop everybody else;
3. one pass of the model over all of it (``infer.paged``), and a token for every text that is due;
4. with an MTP module, guesses for the next step (``infer.speculative``).

A text that needs a page when there is none takes it from the youngest, which is put back to wait
and will be read again, up to where it was. The oldest is never robbed, so every request ends.

What a request gets does not depend on who else is there: it has its own random numbers, guesses
keep their distribution, and a text read again keeps its guesses. Logits may differ in the last
bits, since sums are taken in another order in another batch; nothing else differs.

No CUDA graphs: a step on a GPU pays for its launches. Fixed shapes would be needed, and with
guesses and chunks of prompts there are many.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Literal

import torch
from torch import Tensor

from minids3.infer.paged import PagedModel, Pass, Piece
from minids3.infer.pages import OutOfPages, PagePool, extend_digests, page_memory
from minids3.infer.sample import check_settings, next_token_probs
from minids3.infer.speculative import verify, verify_greedy
from minids3.model.transformer import Transformer

__all__ = ["Engine", "Event", "RequestError", "Sampling", "Statistics"]

Reason = Literal["stop", "length", "error"]
"""Why a request ended: its end token, its limit, or logits that are no numbers."""


COLDEST = 1e-6
"""Logits divided by less might no longer be fp32 numbers."""


class RequestError(ValueError):
    """A request that cannot be served; the message says why. Others are not concerned."""


@dataclass(frozen=True)
class Sampling:
    """How one request wants its tokens.

    max_new_tokens: at most so many, fewer if the model's positions run out. temperature: 0 for
    greedy. top_p: nucleus size. seed: of the draws. eos_id: ends the text, and is its last token.

    Raises ``RequestError`` for a value out of range.
    """

    max_new_tokens: int = 100
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    eos_id: int | None = None

    def __post_init__(self) -> None:
        for name, low, high in (("max_new_tokens", 1, 2**31), ("seed", 0, 2**63)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value < high:
                raise RequestError(f"{name}={value!r} must be a whole number from {low}")
        for name in ("temperature", "top_p"):
            value = getattr(self, name)
            if not isinstance(value, Real) or isinstance(value, bool):
                raise RequestError(f"{name}={value!r} must be a number")
        try:
            check_settings(float(self.temperature), float(self.top_p))
        except (ValueError, OverflowError) as error:
            raise RequestError(str(error).replace("int too", "temperature or top_p too")) from None
        if 0 < self.temperature < COLDEST:
            raise RequestError(
                f"temperature={self.temperature} must be 0 (greedy) or at least {COLDEST}"
            )


@dataclass(frozen=True)
class Event:
    """What a step did for a request.

    tokens: new ones, in order. finished: why it has ended, or None. message: of an error.
    """

    request: int
    tokens: list[int]
    finished: Reason | None = None
    message: str = ""


@dataclass
class Statistics:
    """Counts since the engine was made.

    steps: passes of the main model. computed: tokens that went through it. reused: tokens of
    prompts that did not have to, because a page knew them. generated: tokens handed out. drafted,
    accepted: guesses. preempted: how often a text lost its pages.
    """

    steps: int = 0
    computed: int = 0
    reused: int = 0
    generated: int = 0
    drafted: int = 0
    accepted: int = 0
    preempted: int = 0


@dataclass(eq=False)
class _Request:
    """A text on its way. ``computed`` positions are in its pages; ``tokens`` are known to be right.

    The last token and the guesses after it are computed together, and decide what comes next.
    """

    number: int
    tokens: list[int]
    limit: int
    sampling: Sampling
    generator: torch.Generator
    computed: int = 0
    pages: list[int] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    published: int = 0
    guesses: list[int] = field(default_factory=list)
    draft_probs: list[Tensor] = field(default_factory=list)

    @property
    def pending(self) -> int:
        """Tokens and guesses that have not been computed."""
        return len(self.tokens) + len(self.guesses) - self.computed

    @property
    def decoding(self) -> bool:
        """Whether all but the last token is in the pages."""
        return self.computed == len(self.tokens) - 1


class Engine:
    """Serves many requests with one model; ``submit``, then ``step`` until ``idle``."""

    def __init__(
        self,
        model: Transformer,
        *,
        n_pages: int | None = None,
        page: int = 16,
        max_batch: int = 16,
        chunk: int = 128,
        drafts: int = 0,
        fp8_cache: bool = False,
        prepare: bool | None = None,
    ) -> None:
        """Reserve memory and pack the weights if that is of use.

        Args:
            model: in evaluation mode, on any device.
            n_pages: pages of memory, one more than are lent; default: enough for ``max_batch``
                texts of the model's maximal length.
            page: tokens of a page.
            max_batch: texts that are computed together; others wait.
            chunk: tokens of prompts that a step reads at most.
            drafts: tokens that the first MTP module guesses per step; 0: none.
            fp8_cache: keep latents as FP8 lines; changes the numbers.
            prepare: pack the weights, for fp32 on a CPU; None: where it is possible.

        Raises:
            ValueError: a number out of range, no MTP module for drafts, no FP8 line for the model's
                latent, or a model with layers of somebody else's.
        """
        for name, value, low in (
            ("page", page, 1),
            ("max_batch", max_batch, 1),
            ("chunk", chunk, 1),
            ("drafts", drafts, 0),
        ):
            if not isinstance(value, int) or value < low:
                raise ValueError(f"{name}={value!r} must be a whole number from {low}")
        if model.training:
            raise ValueError("the model is in training mode: call model.eval()")
        if drafts and not len(model.mtp):
            raise ValueError(
                "this model has no MTP module, so it drafts nothing: build it with "
                "num_nextn_predict_layers=1, or leave drafts out"
            )
        cfg = model.config
        self.positions, self.vocabulary = cfg.max_position_embeddings, cfg.vocab_size
        self.page, self.max_batch, self.chunk, self.drafts = page, max_batch, chunk, drafts
        self._ahead = 1 if drafts else 0
        if n_pages is None:
            n_pages = 1 + max_batch * self._pages_of(self.positions + drafts)
        self.pool = PagePool(n_pages)
        head = model.lm_head.weight
        memory = page_memory(
            cfg,
            n_pages,
            page,
            cfg.num_hidden_layers + self._ahead,
            head.dtype,
            head.device,
            fp8_cache,
        )
        self.model = PagedModel(model, memory, page, bool(drafts), prepare)
        self.waiting: list[_Request] = []  # both in the order of arrival
        self.running: list[_Request] = []
        self.statistics = Statistics()
        self._arrived = 0

    @property
    def idle(self) -> bool:
        """Whether nobody waits for anything."""
        return not self.waiting and not self.running

    def submit(self, prompt: Sequence[int] | Tensor, sampling: Sampling | None = None) -> int:
        """Add a request and return its number.

        Args:
            prompt: token ids, at least one.
            sampling: default: greedy.

        Raises:
            RequestError: empty or too long, a token outside the vocabulary, or more than all pages.
        """
        sampling = sampling or Sampling()
        tokens = self._tokens(prompt)
        limit = min(len(tokens) + sampling.max_new_tokens, self.positions)
        need = self._pages_of(limit + self.drafts)
        if need > self.pool.n_pages - 1:
            raise RequestError(
                f"the request may need {need} pages of {self.page} tokens, and there are "
                f"{self.pool.n_pages - 1}: shorten the prompt or max_new_tokens"
            )
        generator = torch.Generator(self.model.device).manual_seed(sampling.seed)
        self._arrived += 1
        self.waiting.append(_Request(self._arrived, tokens, limit, sampling, generator))
        return self._arrived

    def cancel(self, number: int) -> bool:
        """Forget a request; False if there is none of that number (any more)."""
        for queue in (self.waiting, self.running):
            for request in queue:
                if request.number == number:
                    queue.remove(request)
                    self._give_back(request)
                    return True
        return False

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Do one step for everybody; an event for each request that got tokens or ended."""
        self._admit()
        work = self._plan()
        if not work:
            return []
        requests, pieces = [r for r, _ in work], [piece for _, piece in work]
        batch = Pass.of(pieces, self.page, self.model.device)
        hidden = self.model.hidden(batch)
        self.statistics.steps += 1
        self.statistics.computed += len(batch.ids)
        events = self._decide(requests, pieces, batch, hidden)
        ended = {event.request: event.finished for event in events if event.finished}
        kept = [i for i, request in enumerate(requests) if request.number not in ended]
        if self.drafts and kept:
            rows = [batch.order[i] for i in kept]
            starts = [pieces[i].start for i in kept]
            due = {event.request for event in events}
            self._guess([requests[i] for i in kept], starts, rows, hidden, due)
        for request in requests:
            if request.number not in ended:
                self._publish(request)
            else:
                if not self.drafts and ended[request.number] != "error":
                    self._publish(request)
                self.running.remove(request)
                self._give_back(request)
        return events

    def run(self) -> Iterator[Event]:
        """Step until nobody waits, and yield what happens."""
        while not self.idle:
            yield from self.step()

    def generate(
        self,
        prompts: Sequence[Sequence[int] | Tensor],
        sampling: Sampling | Sequence[Sampling] | None = None,
    ) -> list[list[int]]:
        """The continuation of each prompt, without it; the engine must be idle before.

        Raises:
            RequestError: one of the requests is wrong (then none is served), or its logits are.
        """
        if not self.idle:
            raise RequestError("other requests are being served: submit and step instead")
        each = (
            [sampling] * len(prompts)
            if sampling is None or isinstance(sampling, Sampling)
            else list(sampling)
        )
        numbers: list[int] = []
        try:
            for prompt, settings in zip(prompts, each, strict=True):
                numbers.append(self.submit(prompt, settings))
        except ValueError:
            for number in numbers:
                self.cancel(number)
            raise
        found: dict[int, list[int]] = {number: [] for number in numbers}
        for event in self.run():
            found[event.request] += event.tokens
            if event.finished == "error":
                for number in numbers:
                    self.cancel(number)
                raise RequestError(event.message)
        return [found[number] for number in numbers]

    def _tokens(self, prompt: Sequence[int] | Tensor) -> list[int]:
        """The prompt as plain integers, checked."""
        tokens = prompt.tolist() if isinstance(prompt, Tensor) else prompt
        if isinstance(tokens, str | bytes) or not isinstance(tokens, Sequence):
            raise RequestError(f"a prompt is a sequence of token ids, not {type(prompt).__name__}")
        tokens = list(tokens)
        if not 1 <= len(tokens) < self.positions:
            raise RequestError(
                f"the prompt has {len(tokens)} tokens; it needs 1 to {self.positions - 1} so that "
                "something can follow"
            )
        for token in tokens:
            if not isinstance(token, int) or isinstance(token, bool):
                raise RequestError(f"a prompt is a sequence of integer token ids; one is {token!r}")
            if not 0 <= token < self.vocabulary:
                raise RequestError(
                    f"token {token} is not in the vocabulary, 0 to {self.vocabulary - 1}"
                )
        return tokens

    def _pages_of(self, n_tokens: int) -> int:
        return -(-n_tokens // self.page)

    def _admit(self) -> None:
        """Let the oldest waiting requests in, as far as places and pages go."""
        while self.waiting and len(self.running) < self.max_batch:
            request = self.waiting[0]
            known = request.tokens if self._ahead else request.tokens[:-1]  # one is left to compute
            for digest in extend_digests(request.digests, known, self.page, self._ahead):
                page = self.pool.share(digest)
                if page is None:
                    break
                request.pages.append(page)
            need = self._pages_of(len(request.tokens) + len(request.guesses) + self.drafts)
            if need - len(request.pages) > self.pool.available:
                self._give_back(request)
                return
            request.computed = len(request.pages) * self.page
            request.published = len(request.pages)
            self.statistics.reused += request.computed
            self.running.append(self.waiting.pop(0))

    def _plan(self) -> list[tuple[_Request, Piece]]:
        """What each text computes in this step, oldest first, its pages in hand."""
        work, budget = [], self.chunk
        for request in list(self.running):
            if request not in self.running:  # robbed by an older one
                continue
            take = request.pending
            if not request.decoding:
                if budget == 0:
                    continue
                if take > budget:  # the last token and its guesses are not torn apart
                    take = min(budget, len(request.tokens) - 1 - request.computed)
                budget = max(0, budget - take)
            start = request.computed
            if self._reserve(request, start + take + max(0, self.drafts - 1)):
                text = request.tokens + request.guesses
                piece = Piece(text[start : start + take], start, request.pages)
                work.append((request, piece))
        return work

    def _reserve(self, request: _Request, n_tokens: int) -> bool:
        """Get pages for so many tokens, if need be from the youngest; False: it was this one."""
        while len(request.pages) < self._pages_of(n_tokens):
            try:
                request.pages.append(self.pool.take())
            except OutOfPages:
                youngest = self.running.pop()
                self._give_back(youngest)
                bisect.insort(self.waiting, youngest, key=lambda r: r.number)
                self.statistics.preempted += 1
                if youngest is request:
                    return False
        return True

    def _give_back(self, request: _Request) -> None:
        for page in reversed(request.pages):  # a text's end is of less use to others than its start
            self.pool.give_back(page)
        request.pages, request.computed, request.published = [], 0, 0

    def _publish(self, request: _Request) -> None:
        """Let others find the pages that are full of tokens that will not change."""
        final = request.tokens[: request.computed + self._ahead]
        digests = extend_digests(request.digests, final, self.page, self._ahead)
        for i in range(request.published, request.computed // self.page):
            self.pool.publish(request.pages[i], digests[i])
        request.published = request.computed // self.page

    def _decide(
        self,
        requests: Sequence[_Request],
        pieces: Sequence[Piece],
        batch: Pass,
        hidden: Tensor,
    ) -> list[Event]:
        """Next tokens of the texts whose last token was computed."""
        rows: list[int] = []
        due: list[_Request] = []
        for request, piece, place in zip(requests, pieces, batch.order, strict=True):
            request.computed = piece.stop
            if request.pending == 0:
                due.append(request)
                rows += range(place.stop - len(request.guesses) - 1, place.stop)
        if not due:
            return []
        logits = self.model.logits(hidden[torch.tensor(rows, device=hidden.device)])
        best = logits.argmax(-1).tolist()
        finite = logits.isfinite().all(-1).tolist()
        events, first = [], 0
        for request in due:
            mine = slice(first, first + len(request.guesses) + 1)
            first = mine.stop
            if not all(finite[mine]):
                events.append(
                    Event(request.number, [], "error", "the model's logits are not finite numbers")
                )
                continue
            try:
                accepted, token = self._choose(request, logits[mine], best[mine])
            except FloatingPointError as error:
                events.append(Event(request.number, [], "error", str(error)))
                continue
            self.statistics.drafted += len(request.guesses)
            self.statistics.accepted += accepted
            new = [*request.guesses[:accepted], token]
            request.computed = len(request.tokens) + accepted
            request.guesses, request.draft_probs = [], []
            events.append(self._append(request, new))
        return events

    def _choose(self, request: _Request, logits: Tensor, best: Sequence[int]) -> tuple[int, int]:
        """How many guesses hold, and the token after them; ``logits [k + 1, V]``."""
        how = request.sampling
        if how.temperature == 0:
            return verify_greedy(best, request.guesses)
        if not request.guesses:
            probs = _probs(logits, how)  # as in sample, so that the same seed gives the same text
            return 0, int(torch.multinomial(probs, 1, generator=request.generator))
        probs = _probs(logits, how)
        return verify(probs, request.guesses, torch.stack(request.draft_probs), request.generator)

    def _append(self, request: _Request, new: list[int]) -> Event:
        """Add new tokens up to the end token or the limit."""
        finished: Reason | None = None
        if request.sampling.eos_id in new:
            new = new[: new.index(request.sampling.eos_id) + 1]
            finished = "stop"
        request.tokens += new
        if finished is None and len(request.tokens) >= request.limit:
            finished = "length"
        self.statistics.generated += len(new)
        return Event(request.number, new, finished)

    def _guess(
        self,
        requests: Sequence[_Request],
        starts: Sequence[int],
        rows: Sequence[slice],
        hidden: Tensor,
        due: set[int],
    ) -> None:
        """Bring the MTP module's pages up to date, and let it guess for the texts that are due.

        Only after a new token, never in the middle of reading a prompt: how a prompt is cut depends
        on who else is there, and the guesses, which use up random numbers, must not.
        """
        pieces = [
            Piece(r.tokens[start + 1 : r.computed + 1], start, r.pages)
            for r, start in zip(requests, starts, strict=True)
        ]
        batch = Pass.of(pieces, self.page, self.model.device)
        source = [0] * len(batch.ids)
        for piece, place, row in zip(pieces, batch.order, rows, strict=True):
            source[place] = range(row.start, row.start + len(piece.tokens))
        hidden = self.model.draft(hidden[torch.tensor(source, device=hidden.device)], batch)
        going = [
            (r, place.stop - 1)
            for r, place in zip(requests, batch.order, strict=True)
            if r.number in due
        ]
        for ahead in range(self.drafts):
            going = [(r, row) for r, row in going if len(r.guesses) == ahead < self._wanted(r)]
            if not going:
                return
            hidden = hidden[torch.tensor([row for _, row in going], device=hidden.device)]
            logits = self.model.logits(hidden)
            best = logits.argmax(-1).tolist()
            finite = logits.isfinite().all(-1).tolist()
            for i, (request, _) in enumerate(going):
                finite[i] = finite[i] and self._add_guess(request, logits[i], best[i])
            going = [(r, i) for i, (r, _) in enumerate(going) if finite[i]]
            again = [(r, i) for r, i in going if ahead + 1 < self._wanted(r)]
            if not again:
                return
            hidden = hidden[torch.tensor([i for _, i in again], device=hidden.device)]
            batch = Pass.of(
                [Piece([r.guesses[-1]], r.computed + ahead, r.pages) for r, _ in again],
                self.page,
                self.model.device,
            )
            hidden = self.model.draft(hidden, batch)
            going = [(r, batch.order[i].start) for i, (r, _) in enumerate(again)]

    def _wanted(self, request: _Request) -> int:
        """How many guesses a text can use: its own limit decides, and nobody else."""
        return min(self.drafts, request.limit - len(request.tokens) - 1)

    def _add_guess(self, request: _Request, logits: Tensor, best: int) -> bool:
        """Guess a text's next token from ``logits [V]``; False if they give no distribution."""
        how, token = request.sampling, best
        if how.temperature > 0:
            try:
                probs = _probs(logits, how)
            except FloatingPointError:
                return False
            token = int(torch.multinomial(probs, 1, generator=request.generator))
            request.draft_probs.append(probs)
        request.guesses.append(token)
        return True


def _probs(logits: Tensor, how: Sampling) -> Tensor:
    """What a request draws from; ``FloatingPointError`` if rounding has left no distribution."""
    probs = next_token_probs(logits, how.temperature, how.top_p)
    if not bool(probs.isfinite().all()):
        raise FloatingPointError(f"logits divided by temperature={how.temperature} overflow")
    return probs
