"""Log-probabilities of continuations; many candidates after one context share it as a tree.

context ─┬─ card ─┬─ _arrival
         │        └─ _linking          one forward: a node sees the context, its ancestors and itself
         └─ refund
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from tunesmith.models.causal_lm import CausalLM
from tunesmith.models.head import token_logprob
from tunesmith.models.virtual_tokens import front_of
from tunesmith.types import Batch, LogProb

MakeBatch = Callable[[Sequence[tuple[np.ndarray, np.ndarray]], Sequence[int]], Batch]


@dataclass(frozen=True)
class CandidateTree:
    """Candidates merged by common beginnings. Parent -1 is the context's last token."""

    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    depths: tuple[int, ...]
    paths: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, candidates: Sequence[Sequence[int]]) -> CandidateTree:
        """Merge candidates; each must have at least one token."""
        known: dict[tuple[int, int], int] = {}
        tokens: list[int] = []
        parents: list[int] = []
        depths: list[int] = []
        paths: list[tuple[int, ...]] = []
        for candidate in candidates:
            parent, path = -1, []
            for depth, token in enumerate(candidate):
                node = known.get((parent, token))
                if node is None:
                    node = known[(parent, token)] = len(tokens)
                    tokens.append(token)
                    parents.append(parent)
                    depths.append(depth)
                path.append(node)
                parent = node
            paths.append(tuple(path))
        return cls(tuple(tokens), tuple(parents), tuple(depths), tuple(paths))

    def sees(self) -> Tensor:
        """``[N, N]``: whether a node sees another (its ancestors and itself)."""
        count = len(self.tokens)
        sees_NN = torch.eye(count, dtype=torch.bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                sees_NN[node] |= sees_NN[parent]
        return sees_NN


class PackScorer:
    """A Scorer over a module of our own.

    Args:
        model: the facade.
        make_batch: lays documents side by side (the loader's, so that scoring sees what training sees).
        context: longest sequence the model takes.
        batch_tokens: tokens in one forward pass.
    """

    def __init__(self, model: CausalLM, make_batch: MakeBatch, *, context: int, batch_tokens: int = 8192) -> None:
        self.model = model
        self.make_batch = make_batch
        self.context = context
        self.batch_tokens = batch_tokens

    def score(self, contexts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]) -> list[LogProb]:
        """Log-probability of each continuation after its context, in order. A context has at least one token."""
        taken = front_of(self.model.hf).num_tokens
        sizes = [len(a) + len(b) + taken for a, b in zip(contexts, continuations, strict=True)]
        results: list[LogProb | None] = [None] * len(sizes)
        order = sorted(range(len(sizes)), key=lambda index: (sizes[index], index))
        with torch.inference_mode():
            for members in _groups(order, sizes, self.batch_tokens):
                documents = [_document(contexts[index], continuations[index]) for index in members]
                batch = self.make_batch(documents, members).to(self.model.device)
                outputs = self.model(batch, want=("logprob", "correct"))
                if outputs.logprob_S is None or outputs.correct_S is None:
                    raise AssertionError("the facade returns what was wanted")
                totals = torch.zeros(len(members), dtype=torch.float64, device=self.model.device)
                totals.index_add_(0, batch.document_S, outputs.logprob_S.double())
                wrong = torch.zeros(len(members), device=self.model.device)
                wrong.index_add_(0, batch.document_S, (~outputs.correct_S).float())
                for index, total, mistakes in zip(members, totals.tolist(), wrong.tolist(), strict=True):
                    results[index] = LogProb(total, len(continuations[index]), mistakes == 0)
        return [result for result in results if result is not None]

    def row_losses(self, documents: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[tuple[float, int]]:
        """Loss in nats and trained tokens of each document (token ids, trained flags), in order."""
        taken = front_of(self.model.hf).num_tokens
        sizes = [len(ids) + taken for ids, _ in documents]
        results: list[tuple[float, int]] = [(0.0, 0)] * len(sizes)
        order = sorted(range(len(sizes)), key=lambda index: (sizes[index], index))
        with torch.inference_mode():
            for members in _groups(order, sizes, self.batch_tokens):
                batch = self.make_batch([documents[index] for index in members], members).to(self.model.device)
                outputs = self.model(batch, want=("logprob",))
                if outputs.logprob_S is None:
                    raise AssertionError("the facade returns what was wanted")
                totals = torch.zeros(len(members), dtype=torch.float64, device=self.model.device)
                totals.index_add_(0, batch.document_S, -outputs.logprob_S.double())
                counts = torch.bincount(batch.document_S, minlength=len(members))
                for index, total, count in zip(members, totals.tolist(), counts.tolist(), strict=True):
                    results[index] = (total, int(count))
        return results

    def rank(self, contexts: Sequence[Sequence[int]], candidates: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probability in nats of every candidate after every context: ``[context][candidate]``."""
        tree = CandidateTree.of(candidates)
        nodes = len(tree.tokens)
        longest = max(len(context) for context in contexts)
        taken = front_of(self.model.hf).num_tokens
        window = getattr(self.model.hf.config.get_text_config(), "sliding_window", None) or self.context + taken
        if longest + nodes + taken > window or not self.model.takes_trees:
            return self._rank_plainly(contexts, candidates)
        results: list[list[float]] = [[] for _ in contexts]
        sizes = [len(context) + nodes + taken for context in contexts]
        order = sorted(range(len(sizes)), key=lambda index: (sizes[index], index))
        with self.model.plain_attention(), torch.inference_mode():
            for members in _groups(order, sizes, self.batch_tokens):
                scores_BN = self._tree_scores([contexts[index] for index in members], tree)
                for row, index in enumerate(members):
                    results[index] = [float(scores_BN[row, list(path)].sum()) for path in tree.paths]
        return results

    def _rank_plainly(
        self, contexts: Sequence[Sequence[int]], candidates: Sequence[Sequence[int]]
    ) -> list[list[float]]:
        results = []
        for context in contexts:
            scores = self.score([context] * len(candidates), candidates)
            results.append([score.total for score in scores])
        return results

    def _tree_scores(self, contexts: Sequence[Sequence[int]], tree: CandidateTree) -> Tensor:
        """Log-probability of each node after its parent ``[B, N]``, in fp64 on the CPU."""
        hf, device = self.model.hf, self.model.device
        front = front_of(hf)
        own, before = front.num_embedded, front.num_cached
        rows, nodes = len(contexts), len(tree.tokens)
        longest = max(len(context) for context in contexts) + own
        ids_BT = torch.zeros(rows, longest + nodes, dtype=torch.long)
        positions_BT = torch.zeros_like(ids_BT)
        seen_BTT = torch.zeros(rows, longest + nodes, longest + nodes, dtype=torch.bool)
        causal = torch.ones(longest, longest, dtype=torch.bool).tril()
        tree_sees = tree.sees()
        depths = torch.tensor(tree.depths)
        pads = [longest - own - len(context) for context in contexts]
        for row, (context, pad) in enumerate(zip(contexts, pads, strict=True)):
            ids_BT[row, pad + own : longest] = torch.tensor(list(context))
            positions_BT[row, pad:longest] = torch.arange(longest - pad) + before
            seen_BTT[row, :longest, :longest] = causal
            seen_BTT[row, :longest, :pad] = False
            seen_BTT[row, longest:, pad:longest] = True
            positions_BT[row, longest:] = longest - pad + before + depths
        ids_BT[:, longest:] = torch.tensor(tree.tokens)
        seen_BTT[:, longest:, longest:] = tree_sees
        seen_BTT |= torch.eye(longest + nodes, dtype=torch.bool)
        seen_BTT = torch.cat([torch.ones(rows, longest + nodes, before, dtype=torch.bool), seen_BTT], dim=-1)
        cache = DynamicCache(config=hf.config) if before else None
        front.fill(cache, rows, hf.dtype)
        hidden_BTH = self.model.base()(
            **front.embed(hf, ids_BT.to(device), pads), position_ids=positions_BT.to(device),
            attention_mask=seen_BTT[:, None].to(device), past_key_values=cache, use_cache=False,
        ).last_hidden_state  # fmt: skip
        parents = torch.tensor(
            [parent + longest if parent >= 0 else longest - 1 for parent in tree.parents], device=device
        )
        before_SH = hidden_BTH.index_select(1, parents).reshape(rows * nodes, -1)
        targets_S = torch.tensor(tree.tokens, device=device).repeat(rows)
        logprob_S = token_logprob(before_SH, self.model.head(), targets_S).logprob_S
        return logprob_S.view(rows, nodes).double().cpu()


def _document(context: Sequence[int], continuation: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    ids = np.asarray([*context, *continuation], dtype=np.uint32)
    trained = np.zeros(len(ids), dtype=np.bool_)
    trained[len(context) :] = True
    return ids, trained


def _groups(order: Sequence[int], sizes: Sequence[int], budget: int) -> list[list[int]]:
    """Cut an order by length into groups whose rectangle stays within ``budget`` tokens."""
    groups: list[list[int]] = []
    for index in order:
        if groups and (len(groups[-1]) + 1) * sizes[index] <= budget:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups
