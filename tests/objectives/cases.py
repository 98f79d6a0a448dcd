"""A case for every objective: a tiny model, examples of different lengths, and how they become a Batch."""
from dataclasses import dataclass, field
from functools import cache, partial

import numpy as np

from pyllm.autograd import no_grad
from pyllm.data.batch import IGNORED, Batch
from pyllm.folders import build

V = 23
SIZES = {"gpt2": dict(n_positions=40, n_embd=8, n_layer=2, n_head=2, embd_pdrop=0, resid_pdrop=0, attn_pdrop=0),
         "llama": dict(hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=40),
         "bert": dict(hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=40,
                      hidden_dropout_prob=0, attention_probs_dropout_prob=0),
         "t5": dict(d_model=8, d_kv=4, d_ff=12, num_layers=2, num_heads=2, dropout_rate=0),
         "bart": dict(d_model=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
                      encoder_ffn_dim=12, decoder_ffn_dim=12, max_position_embeddings=40, dropout=0)}
STD = {"gpt2": "initializer_range", "llama": "initializer_range", "bert": "initializer_range", "t5": "initializer_factor",
       "bart": "init_std"}


@cache
def model(family, head=None, labels=3, seed=5):
    """A model whose gradients are of the size that real ones have."""
    named = {"architectures": [head], "num_labels": labels} if head else {}
    return build({"model_type": family, "vocab_size": V, **SIZES[family], STD[family]: 0.4, **named}, seed=seed)


@dataclass(frozen=True)
class Case:
    """objective: its name in OBJECTIVES. rows: what a row's targets are: tokens, decoder, label or span."""

    name: str
    objective: str
    model: partial
    rows: str = "tokens"
    options: dict = field(default_factory=dict)


CASES = [
    Case("clm gpt2", "clm", partial(model, "gpt2"), options={"z_loss": 1e-3}),
    Case("clm llama", "clm", partial(model, "llama"), options={"label_smoothing": 0.1}),
    Case("mlm", "mlm", partial(model, "bert"), options={"label_smoothing": 0.1, "z_loss": 1e-3}),
    Case("seq2seq t5", "seq2seq", partial(model, "t5"), "decoder", {"label_smoothing": 0.1}),
    Case("seq2seq bart", "seq2seq", partial(model, "bart"), "decoder", {"z_loss": 1e-3}),
    Case("classify bert", "classify", partial(model, "bert", "BertForSequenceClassification"), "label",
         {"weights": [0.5, 1.0, 2.0], "label_smoothing": 0.1}),
    Case("classify llama", "classify", partial(model, "llama", "LlamaForSequenceClassification"), "label"),
    Case("classify_tokens", "classify_tokens", partial(model, "bert", "BertForTokenClassification"), options={"weights": [0.5, 1.0, 2.0]}),
    Case("distill", "distill", partial(model, "gpt2"), options={"teacher": model("gpt2", seed=9), "temperature": 2.0, "hidden": 0.3}),
    Case("distill t5", "distill", partial(model, "t5"), "decoder", {"teacher": model("t5", seed=9), "alpha": 0.7}),
    Case("span", "span", partial(model, "bert", "BertForQuestionAnswering"), "span"),
]


@dataclass(frozen=True)
class Example:
    """tokens (n,); targets (n,) or (m,), (), (2,); decoder_tokens (m,) or None."""

    tokens: np.ndarray
    targets: np.ndarray
    decoder_tokens: np.ndarray | None = None


def examples(case, seed=0, lengths=(5, 9, 3, 8)):
    """Rows of different lengths, some of their targets ignored."""
    draw = np.random.default_rng(seed)
    ids = lambda n, high=V: draw.integers(0, high, n).astype(np.int32)  # noqa: E731
    found = []
    for n in lengths:
        tokens, m = ids(n), n - 1
        if case.rows == "label":
            found.append(Example(tokens, ids(1, 3)[0]))
        elif case.rows == "span":
            found.append(Example(tokens, np.sort(ids(2, n))))
        else:
            targets = ids(m if case.rows == "decoder" else n, 3 if case.objective == "classify_tokens" else V)
            targets[draw.permutation(len(targets))[: len(targets) // 3]] = IGNORED
            found.append(Example(tokens, targets, ids(m) if case.rows == "decoder" else None))
    return found


def padded(rows, case, left=0, right=0):
    """One row an example; every row padded to the longest, then by `left` and `right` more, the padding holding any token."""
    def side(arrays, fill):
        width = max(map(len, arrays))
        at = lambda a: (left + width - len(a), right) if left else (0, right + width - len(a))  # noqa: E731
        return np.stack([np.pad(a, at(a), constant_values=fill) for a in arrays]).astype(np.int32), \
            np.stack([np.pad(np.ones(len(a), np.int32), at(a)) for a in arrays])

    tokens, segments = side([r.tokens for r in rows], 7)
    if case.rows == "label":
        return Batch(tokens, np.array([r.targets for r in rows], np.int32), segments)
    if case.rows == "span":
        return Batch(tokens, (segments.argmax(1)[:, None] + [r.targets for r in rows]).astype(np.int32), segments)
    targets = side([r.targets for r in rows], IGNORED)[0]
    if case.rows == "decoder":
        return Batch(tokens, targets, segments, *side([r.decoder_tokens for r in rows], 7))
    return Batch(tokens, targets, segments)


def packed(rows):
    """All examples in one row."""
    row = lambda arrays: np.concatenate(arrays)[None].astype(np.int32)  # noqa: E731
    numbers = lambda arrays: row([np.full(len(a), k) for k, a in enumerate(arrays, 1)])  # noqa: E731
    tokens, targets = [r.tokens for r in rows], [r.targets for r in rows]
    sides = [row([r.decoder_tokens for r in rows]), numbers(targets)] if rows[0].decoder_tokens is not None else []
    return Batch(row(tokens), row(targets), numbers(tokens), *sides)


def loss_of(case, batch, objectives):
    with no_grad():
        return objectives[case.objective](case.model(), batch, **case.options)
