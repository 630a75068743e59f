"""What tasks ask of a model: the log-likelihood of a text after another one, and text that goes on.

Requests are cut into tokens, truncated and scored as lm-evaluation-harness's Hugging Face backend does it
(EleutherAI/lm-evaluation-harness 0.4.13, lm_eval/models/huggingface.py), so that numbers can be compared.
Log-likelihoods are in nats.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from data_pipeline.tokenize import Tokenizer
from llama_foundation.errors import DataError
from llama_train.decode import Row, generate_together
from llama_train.model.llama import Llama, compute_dtype
from llama_train.peers import Peers, device_of, in_step


@dataclass(frozen=True)
class Likelihood:
    """How likely a continuation is after its context, and whether every token of it is the likeliest."""

    log_likelihood: float
    greedy: bool


@dataclass(frozen=True)
class Generation:
    """A context to continue, until one of the texts `until` (left out), the end of the text or `max_new_tokens`."""

    context: str
    until: tuple[str, ...]
    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Scorer:
    """A model that is asked by all of its ranks together: each gives the same requests and gets all answers.

    Requests are sorted by length, longest first, and dealt out to the ranks in batches of `batch_size`.
    """

    model: Llama
    context: int  # tokens that the model reads at most
    tokenizer: Tokenizer
    peers: Peers
    batch_size: int

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, without bos."""
        return self.tokenizer.encode_batch([text])[0].tolist()

    def likelihoods(self, pairs: list[tuple[str, str]]) -> list[Likelihood]:
        """Score (context, continuation) pairs. Of what is longer than the model's context, the left end is cut off.

        Raises:
            DataError: a continuation has no tokens, or does not fit into the model's context by itself.
        """
        return self._score([self._encode_pair(context, continuation) for context, continuation in pairs])

    def rolling_likelihoods(self, texts: list[str]) -> list[float]:
        """Return the log-likelihood of each whole text, in as many windows as it takes.

        Every token is predicted once; the last window reaches back to be as long as the others. As in the Hugging
        Face backend, whose tokenizers begin a text with bos, that bos counts as a token predicted after bos.
        """
        windows: list[tuple[list[int], list[int]]] = []
        counts = []
        for text in texts:
            bos = self.tokenizer.bos_id
            parts = list(rolling_windows([bos, *self.encode(text)], bos, self.context))
            windows += parts
            counts.append(len(parts))
        scores = iter(self._score(windows))
        return [sum(next(scores).log_likelihood for _ in range(count)) for count in counts]

    def generate(self, requests: list[Generation]) -> list[str]:
        """Return the text that continues each context; what does not fit of a context is cut off on its left.

        Raises:
            DataError: `max_new_tokens` leaves no room for any context.
        """
        rows = []
        for request in requests:
            room = self.context - request.max_new_tokens
            if room < 1:
                raise DataError(
                    f"max_new_tokens={request.max_new_tokens} leaves no room for a prompt in the model's context of "
                    f"{self.context} tokens; use less than {self.context}"
                )
            ids = [self.tokenizer.bos_id, *self.encode(request.context)][-room:]
            rows.append(
                Row(
                    ids,
                    request.max_new_tokens,
                    request.temperature,
                    request.top_p,
                    request.seed,
                    self.tokenizer.end_of_text_ids,
                    self._stop_at(request.until),
                )
            )
        chosen = generate_together(self.model, rows, self.peers, self.batch_size, self.tokenizer.vocabulary_size)
        return [cut(self.tokenizer.decode(ids), request.until) for ids, request in zip(chosen, requests, strict=True)]

    def _stop_at(self, until: tuple[str, ...]) -> Callable[[list[int]], bool]:
        return lambda ids: any(text in self.tokenizer.decode(ids) for text in until if text)

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Cut the tokens of the whole text where those of the context end; its last spaces belong to what follows."""
        bos = self.tokenizer.bos_id
        if context == "":
            ids = ([bos], self.encode(continuation))
        else:
            kept = context.rstrip()
            whole, before = self.encode(context + continuation), self.encode(kept)
            ids = ([bos, *before], whole[len(before) :])
        if not ids[1]:
            raise DataError(f"the continuation {continuation!r} of {context[-60:]!r} has no tokens")
        if len(ids[1]) > self.context:
            raise DataError(
                f"the continuation {continuation[:60]!r}... has {len(ids[1])} tokens, more than the model's context of "
                f"{self.context}"
            )
        return ids

    def _score(self, requests: list[tuple[list[int], list[int]]]) -> list[Likelihood]:
        order = sorted(range(len(requests)), key=lambda n: (-len(requests[n][0] + requests[n][1]), n))
        batches = [order[first : first + self.batch_size] for first in range(0, len(order), self.batch_size)]
        scored: dict[int, tuple[float, bool]] = {}

        def passes() -> Iterator[None]:
            for batch in batches[self.peers.rank :: self.peers.size]:
                yield
                # context and continuation up to the last token, which is only predicted
                inputs = [(requests[n][0] + requests[n][1])[-(self.context + 1) :] for n in batch]
                rows = token_log_probabilities(self.model, inputs)
                for number, (values, greedy) in zip(batch, rows, strict=True):
                    count = len(requests[number][1])
                    scored[number] = (float(values[-count:].sum()), bool(greedy[-count:].all()))

        in_step(passes(), self.model, self.peers)
        return [Likelihood(*each) for each in self.peers.share(scored)]


@torch.no_grad()  # not inference_mode: the weights that FSDP2 gathers here may be trained on next
def token_log_probabilities(model: Llama, rows: list[list[int]]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Score every token of each row but the first, in one forward pass.

    Returns:
        For each row of n tokens, log-probabilities [n - 1] (float32, float64 for a float64 model) on the CPU, and
        whether each token is the likeliest [n - 1].
    """
    device = device_of(model)
    longest = max(map(len, rows)) - 1
    assert min(map(len, rows)) > 1
    # Padding on the right is never seen: attention is causal.
    tokens = torch.tensor([row[:-1] + [0] * (longest + 1 - len(row)) for row in rows], device=device)
    training = model.training
    model.eval()
    logits_BSV = model(tokens)
    model.train(training)
    answers = []
    for row, logits_SV in zip(rows, logits_BSV, strict=True):
        wide_SV = logits_SV[: len(row) - 1].to(compute_dtype(logits_SV.dtype))
        labels_S = torch.tensor(row[1:], device=device)
        values_S = wide_SV.log_softmax(dim=-1).gather(1, labels_S[:, None])[:, 0]
        answers.append((values_S.cpu(), (wide_SV.argmax(dim=-1) == labels_S).cpu()))
    return answers


def rolling_windows(token_ids: list[int], first: int, context: int) -> Iterator[tuple[list[int], list[int]]]:
    """Cut a text into (read, predicted) windows: each token is predicted once, from at most `context` tokens.

    The first window begins after the token `first`. Later ones begin with the last token predicted before them, and
    the last one reaches back to read a whole context.
    """
    whole = [first, *token_ids]
    for begin in range(0, len(token_ids), context):
        stop = min(begin + context, len(token_ids))
        yield whole[max(0, stop - context) : begin + 1], whole[begin + 1 : stop + 1]


def cut(text: str, until: tuple[str, ...]) -> str:
    """Return `text` up to the first of the texts `until`."""
    for end in until:
        text = text.split(end)[0] if end else text
    return text
