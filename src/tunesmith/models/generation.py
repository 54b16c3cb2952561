"""Answers with a key/value cache: batched, greedy or sampled, each prompt with a random stream of its own.

Prompts of a batch are padded on the left; answers that ended leave the batch, so the cache shrinks with it. An adapter's virtual
tokens go between padding and prompt, or into the cache before both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from tunesmith.models.causal_lm import CausalLM
from tunesmith.models.packs import pack_of
from tunesmith.models.routes import Routes
from tunesmith.models.seq2seq_lm import Answering, Seq2SeqLM
from tunesmith.models.virtual_tokens import front_of
from tunesmith.types import Completion, Sampling

Around = Callable[[Sequence[int]], AbstractContextManager[Routes | None]]
"""Places of the prompts of a batch -> what holds while it runs: which adapters each of them goes through."""


class Generator:
    """A Sampler over a module of our own.

    Args:
        model: the facade.
        stop_ids: tokens that end an answer; they are not part of it.
        pad_id: fills the left of shorter prompts; never seen by attention.
        decode: token ids to text.
        batch_tokens: prompt tokens in one batch.
        context: where an answer ends at the latest, prompt included; None asks for no limit.
    """

    def __init__(
        self,
        model: CausalLM,
        *,
        stop_ids: frozenset[int],
        pad_id: int,
        decode: Any,
        batch_tokens: int = 8192,
        context: int | None = None,
    ) -> None:
        self.model = model
        self.stop_ids = stop_ids
        self.pad_id = pad_id
        self.decode = decode
        self.batch_tokens = batch_tokens
        self.context = context

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        how: Sampling,
        *,
        around: Around | None = None,
        numbers: Sequence[int] | None = None,
    ) -> list[Completion]:
        """Answer each prompt, in order. Like lengths share a batch; a prompt that fills the context gets an empty answer.

        Args:
            prompts: token ids.
            how: greedy or sampled.
            around: asked for each batch, with the places of its prompts.
            numbers: with the seed, what decides what is drawn for each prompt; None is its place.
        """
        answers = [Completion(text="", ids=(), logprobs=(), ended=False)] * len(prompts)
        with_room = [index for index, prompt in enumerate(prompts) if self._room(prompt, how) > 0]
        by_length = sorted(with_room, key=lambda index: (len(prompts[index]), index))
        even, taken = self._needs_even_lengths(), front_of(self.model.hf).num_tokens
        start = 0
        while start < len(by_length):
            end = start + 1
            while (
                end < len(by_length) and (end - start + 1) * (len(prompts[by_length[end]]) + taken) <= self.batch_tokens
            ):
                if even and len(prompts[by_length[end]]) != len(prompts[by_length[start]]):
                    break
                end += 1
            members = by_length[start:end]
            chosen, drawn = [prompts[i] for i in members], [numbers[i] if numbers else i for i in members]
            with around(members) if around else nullcontext() as routes:
                found = self._batch(chosen, drawn, how, routes)
            for index, answer in zip(members, found, strict=True):
                answers[index] = answer
            start = end
        return answers

    def stream(self, prompt: Sequence[int], how: Sampling) -> Iterator[int]:
        """Yield one answer's token ids as they are chosen, without the end token."""
        room = self._room(prompt, how)
        if room < 1:
            return
        with self.model.plain_attention() as hf, weights_held(hf), torch.inference_mode():
            state = self._start(hf, [prompt])
            draws = [_stream_for(how.seed, 0)]
            for left in range(room - 1, -1, -1):
                chosen, _logprob = _choose(state.logits_BV, how, draws)
                token = int(chosen[0])
                if token in self.stop_ids:
                    return
                yield token
                if left:
                    state.advance(chosen)

    def _start(self, hf: Any, prompts: Sequence[Sequence[int]]) -> _Decoding | _Recomputing | Answering:
        if isinstance(self.model, Seq2SeqLM):
            return Answering(self.model, prompts)
        if self.model.unpacked is not None:
            return _Recomputing(self.model, prompts)
        return _Decoding(hf, prompts, self.pad_id, self.model.first_position)

    def _room(self, prompt: Sequence[int], how: Sampling) -> int:
        """Most tokens of an answer to ``prompt``."""
        return how.max_new_tokens if self.context is None else min(how.max_new_tokens, self.context - len(prompt))

    def _needs_even_lengths(self) -> bool:
        """A window counts places of the cache: padding between keys in front and a prompt would shorten it."""
        window = getattr(self.model.hf.config.get_text_config(), "sliding_window", None)
        return bool(window) and front_of(self.model.hf).num_cached > 0

    def _batch(
        self, prompts: list[Sequence[int]], numbers: list[int], how: Sampling, routes: Routes | None
    ) -> list[Completion]:
        ids: list[list[int]] = [[] for _ in prompts]
        logprobs: list[list[float]] = [[] for _ in prompts]
        ended = [False] * len(prompts)
        draws = [_stream_for(how.seed, number) for number in numbers]
        rooms = [self._room(prompt, how) for prompt in prompts]
        alive = list(range(len(prompts)))
        with self.model.plain_attention() as hf, weights_held(hf), torch.inference_mode():
            state = self._start(hf, prompts)
            while True:
                chosen, logprob = _choose(state.logits_BV, how, [draws[index] for index in alive])
                keep: list[int] = []
                for row, (token, score) in enumerate(zip(chosen.tolist(), logprob.tolist(), strict=True)):
                    if token in self.stop_ids:
                        ended[alive[row]] = True
                        continue
                    ids[alive[row]].append(token)
                    logprobs[alive[row]].append(score)
                    if len(ids[alive[row]]) < rooms[alive[row]]:
                        keep.append(row)
                if not keep:
                    break
                if len(keep) < len(alive):
                    state.keep(keep)
                    if routes is not None:
                        routes.keep(keep)
                    chosen = chosen[keep]
                    alive = [alive[row] for row in keep]
                state.advance(chosen)
        return [
            Completion(text=self.decode(tokens), ids=tuple(tokens), logprobs=tuple(scores), ended=done)
            for tokens, scores, done in zip(ids, logprobs, ended, strict=True)
        ]


@contextmanager
def weights_held(hf: nn.Module) -> Iterator[None]:
    """Within the context nothing that trains changes: modules with a ``hold`` keep what they would make of it in each pass."""
    holding: list[Callable[[bool], None]] = [
        cast(Callable[[bool], None], module.hold) for module in hf.modules() if hasattr(module, "hold")
    ]
    for hold in holding:
        hold(True)
    try:
        yield
    finally:
        for hold in holding:
            hold(False)


class _Decoding:
    """The cache, mask and last logits of a batch of growing sequences."""

    def __init__(self, hf: Any, prompts: Sequence[Sequence[int]], pad_id: int, first_position: int) -> None:
        self.hf = hf
        self.first_position = first_position
        device = hf.device
        front = front_of(hf)
        longest = max(len(prompt) for prompt in prompts) + front.num_embedded
        pads = [longest - front.num_embedded - len(prompt) for prompt in prompts]
        own = front.num_embedded * [pad_id]
        ids = [[pad_id] * pad + own + list(prompt) for pad, prompt in zip(pads, prompts, strict=True)]
        seen = [[1] * front.num_cached + [0] * pad + [1] * (longest - pad) for pad in pads]
        self.mask_BT = torch.tensor(seen, device=device)
        self.cache: Any = DynamicCache(config=hf.config)
        front.fill(self.cache, len(prompts), hf.dtype)
        positions_BT = (self.mask_BT.cumsum(-1) - 1).clamp(min=0)[:, front.num_cached :]
        self.logits_BV = self._forward(front.embed(hf, torch.tensor(ids, device=device), pads), positions_BT)
        self.lengths_B = self.mask_BT.sum(-1)

    def _forward(self, given: dict[str, Tensor], positions_BT: Tensor) -> Tensor:
        result = self.hf(
            **given,
            attention_mask=self.mask_BT,
            position_ids=positions_BT + self.first_position,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits_BV: Tensor = result.logits[:, -1].float()
        return logits_BV

    def keep(self, rows: list[int]) -> None:
        """Drop the sequences that ended."""
        index = torch.tensor(rows, device=self.mask_BT.device)
        self.cache.batch_select_indices(index)
        self.mask_BT = self.mask_BT[index]
        self.lengths_B = self.lengths_B[index]

    def advance(self, tokens_B: Tensor) -> None:
        """Append a token to each sequence."""
        self.mask_BT = torch.cat([self.mask_BT, self.mask_BT.new_ones(len(tokens_B), 1)], dim=1)
        self.logits_BV = self._forward({"input_ids": tokens_B[:, None]}, self.lengths_B[:, None])
        self.lengths_B = self.lengths_B + 1


class _Recomputing:
    """Growing sequences of a model whose cache is not ours to pad and cut: each token runs its whole sequence again."""

    def __init__(self, model: CausalLM, prompts: Sequence[Sequence[int]]) -> None:
        self.model = model
        self.sequences = [list(prompt) for prompt in prompts]
        self.logits_BV = self._forward()

    def _forward(self) -> Tensor:
        ids_T = torch.tensor([token for sequence in self.sequences for token in sequence], device=self.model.device)
        return self.model.last_logits(pack_of(ids_T, [len(sequence) for sequence in self.sequences]))

    def keep(self, rows: list[int]) -> None:
        """Drop the sequences that ended."""
        self.sequences = [self.sequences[row] for row in rows]

    def advance(self, tokens_B: Tensor) -> None:
        """Append a token to each sequence."""
        for sequence, token in zip(self.sequences, tokens_B.tolist(), strict=True):
            sequence.append(token)
        self.logits_BV = self._forward()


def _stream_for(seed: int, number: int) -> torch.Generator:
    """A random stream that depends on the seed and the prompt's number, not on its neighbours."""
    return torch.Generator().manual_seed((seed * 1_000_003 + number * 7_919 + 12_345) % (1 << 63))


def _choose(logits_BV: Tensor, how: Sampling, draws: Sequence[torch.Generator]) -> tuple[Tensor, Tensor]:
    """Next tokens and their log-probabilities under the untempered model."""
    logprob_BV = logits_BV.log_softmax(-1)
    if how.temperature == 0:
        chosen_B = logits_BV.argmax(-1)
    else:
        share_BV = _truncate(logits_BV / how.temperature, how).softmax(-1).cpu()
        chosen_B = torch.cat(
            [torch.multinomial(share_V, 1, generator=draw) for share_V, draw in zip(share_BV, draws, strict=True)]
        ).to(logits_BV.device)
    return chosen_B, logprob_BV.gather(1, chosen_B[:, None])[:, 0]


def _truncate(logits_BV: Tensor, how: Sampling) -> Tensor:
    """Keep the ``top_k`` tokens and the smallest set that holds ``top_p`` of the probability."""
    if how.top_k > 0:
        bound = logits_BV.topk(min(how.top_k, logits_BV.shape[-1]), dim=-1).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < bound, float("-inf"))
    if how.top_p < 1:
        ordered, places = logits_BV.sort(dim=-1, descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        cut = torch.zeros_like(before, dtype=torch.bool).scatter(1, places, before >= how.top_p)
        logits_BV = logits_BV.masked_fill(cut, float("-inf"))
    return logits_BV
