"""What a run will take, before it starts: --dry-run."""


def report(config):
    """Prints parameters, memory and time of a Config -> exit code 0. The time: two measured steps, or the FLOPs of a large model."""
    from pyllm import measure
    from pyllm.cli.pretrain import KINDS, build_model, loss_of, make_tokenizer, row_length

    kind = config.tokenizer.kind
    vocab_size = config.tokenizer.vocab_size if kind in KINDS and kind != "chars" else make_tokenizer(config).vocab_size
    model = build_model(config, vocab_size)
    t, length = config.train, row_length(config, model)
    tokens = t.batch * length
    flops = step_flops(model, t.batch, length) * t.accumulate
    gflops = product_gflops(tokens, model.config.size("width"), t.precision)
    seconds, how = flops / gflops / 1e9, f"from FLOP at {gflops:.0f} GFLOP/s, this model's products"
    if seconds / t.accumulate < 5:
        step = stepper(model.initialize(0), t.batch, length, t.precision, loss_of(t.objective))
        step()  # the first one asks the system for memory
        seconds, how = measure.seconds(step) * t.accumulate, "from two measured steps"
    n = model.num_parameters()
    state = 4 * n * (4 + bool(t.ema))
    print(f"model      {model.config.model_type}, {n:,} parameters, vocabulary {vocab_size}, rows of {length} tokens")
    print(f"step       {tokens * t.accumulate:,} tokens, {flops / 1e9:,.1f} GFLOP")
    activations = activation_bytes(model, tokens)
    print(f"memory     about {(state + activations) / 1e6:,.0f} MB (estimate): "
          f"weights, gradients, moments {state / 1e6:,.0f} MB, activations {activations / 1e6:,.0f} MB")
    print(f"time       about {duration(seconds * t.steps)} for {t.steps:,} steps (estimate {how}), evaluations not counted")
    return 0


def step_flops(model, rows, length):
    """-> FLOP of forward and backward: 6 a weight that multiplies and token, 6 T C a layer for the half of attention seen."""
    from pyllm.nn import Embedding

    tables = {id(m.weight) for _, m in model.named_modules() if isinstance(m, Embedding)}
    weights = sum(p.size for p in model.parameters() if p.ndim == 2 and id(p) not in tables)
    if model.lm_head is None:
        weights += model.head_weight().size
    layers, width = model.config.size("layers"), model.config.size("width")
    return 6.0 * rows * length * (weights + layers * length * width)


def activation_bytes(model, tokens):
    """-> what one micro-batch keeps for its backward, roughly: 12 arrays of (tokens, width) a layer, 3 outside, float32."""
    return 4 * tokens * model.config.size("width") * (12 * model.config.size("layers") + 3)


def product_gflops(tokens, width, precision="f32"):
    """-> measured GFLOP/s of (tokens, C) @ (C, 4 C)."""
    import numpy as np

    from pyllm import kernels as K
    from pyllm import measure

    rows = min(tokens, 2048)
    x, w = np.ones((rows, width), np.float32), np.ones((4 * width, width), np.float32)
    return 8 * rows * width * width / measure.median_seconds(lambda: K.matmul(x, w, tb=True, reduced=precision == "bf16"), 0.3) / 1e9


def stepper(model, rows, length, precision="f32", objective="clm"):
    """-> () -> None: one more step of a training run on random tokens."""
    from itertools import repeat

    import numpy as np

    from pyllm import training
    from pyllm.data.batch import Batch
    from pyllm.objectives import OBJECTIVES

    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, (rows, length + 1)).astype(np.int32)
    tokens, targets = ids[:, :-1].copy(), ids[:, 1:].copy()
    batch = Batch(tokens, targets, decoder_tokens=tokens if objective == "seq2seq" else None)
    records = training.train(model, OBJECTIVES[objective], repeat(batch), training.AdamW(model), steps=10**9, lr=1e-4, precision=precision)
    return lambda: next(records)


def duration(seconds):
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.1f} days"
