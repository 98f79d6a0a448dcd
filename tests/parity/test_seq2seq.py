"""T5 and BART beside transformers: logits, loss, every gradient, padding sides, folders in both directions.

pytest -m parity tests/parity
"""
import numpy as np
import pytest

import pyllm
from pyllm.autograd import no_grad, ops
from pyllm.folders import build, load_weights
from pyllm.models.seq2seq import Memory
from pyllm.nn import Cache

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("default")]

T5 = dict(model_type="t5", vocab_size=67, d_model=24, d_kv=6, d_ff=40, num_layers=2, num_heads=4, dropout_rate=0.0)
BART = dict(model_type="bart", vocab_size=67, d_model=24, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
            decoder_attention_heads=4, encoder_ffn_dim=40, decoder_ffn_dim=36, max_position_embeddings=40, dropout=0.0, init_std=0.2)
CONFIGS = {
    "t5": T5,
    "t5-1.1": {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "t5-odd": {**T5, "d_kv": 5, "num_heads": 3, "num_decoder_layers": 3, "num_layers": 1, "layer_norm_epsilon": 1e-3},
    "t5-buckets": {**T5, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 12, "feed_forward_proj": "gated-silu"},
    "bart": BART,
    "bart-odd": {**BART, "d_model": 21, "encoder_attention_heads": 3, "decoder_attention_heads": 7, "encoder_layers": 1,
                 "decoder_layers": 3},
    "bart-scaled": {**BART, "scale_embedding": True, "activation_function": "relu", "vocab_size": 101},
}


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS)
def pair(request):
    """-> (peer in float64, ours) with the same random weights."""
    import torch
    from transformers import AutoConfig, AutoModelForSeq2SeqLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(**request.param)
    peer = AutoModelForSeq2SeqLM.from_config(config, attn_implementation="sdpa").double().eval()
    with torch.no_grad():
        for p in peer.parameters():
            p += 0.1 * torch.randn_like(p)
            p.copy_(p.float())
        if config.model_type == "bart":
            peer.final_logits_bias.copy_(torch.randn_like(peer.final_logits_bias).float())
    ours = build(config.to_dict())
    load_weights(ours, {n: t.float().numpy() for n, t in peer.state_dict().items()})
    return peer, ours


def draw(ours, padding, rows=3, length=17, out=9):
    rng = np.random.default_rng(0)
    tokens, targets = rng.integers(3, ours.config.vocab_size, (rows, length)), rng.integers(3, ours.config.vocab_size, (rows, out))
    mask = np.ones_like(tokens)
    if padding != "none":
        mask[1:, slice(0, 5) if padding == "left" else slice(length - 5, length)] = 0
    return tokens, mask, targets


def run_peer(peer, tokens, mask, targets):
    import torch

    return peer(input_ids=torch.from_numpy(tokens), attention_mask=torch.from_numpy(mask), decoder_input_ids=torch.from_numpy(targets),
                use_cache=False).logits


def close(got, expected, tolerance, what=""):
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * max(1.0, np.abs(expected).max()), err_msg=what)


@pytest.mark.parametrize("padding", ["none", "left", "right"])
def test_logits_loss_and_every_gradient(pair, padding):
    import torch

    peer, ours = pair
    if padding == "left" and ours.config.model_type == "bart":
        pytest.skip("the peer counts positions from the padding")
    tokens, mask, targets = draw(ours, padding)
    expected = run_peer(peer, tokens, mask, targets)
    got = ours(tokens, targets, mask)
    close(got.data, expected.detach().numpy(), 3e-6)
    peer.zero_grad()
    torch.nn.functional.cross_entropy(expected.flatten(0, 1), torch.from_numpy(targets).flatten(), reduction="sum").backward()
    ops.cross_entropy(got, targets.astype(np.int32)).backward()
    grads = {n: p.grad for n, p in ours.named_parameters()}
    for name, p in peer.named_parameters():
        close(grads[name], p.grad.numpy(), 2e-5, name)


def test_left_padding_changes_nothing(pair):
    _, ours = pair
    tokens, _, targets = draw(ours, "none")
    plain = ours(tokens, targets).data
    for pad in ((4, 0), (0, 4), (2, 1)):
        padded, mask = (np.pad(x, ((0, 0), pad)) for x in (tokens, np.ones_like(tokens)))
        close(ours(padded, targets, mask).data, plain, 2e-6)


def test_cached_decoding_equals_the_full_forward(pair):
    _, ours = pair
    tokens, mask, targets = draw(ours, "right")
    with no_grad():
        full = ours.hidden(tokens, targets, mask).data
        cache, parts = Cache(3, capacity=2), []
        cache.memory = Memory(ours.encode(tokens, mask.astype(np.int32)), mask)
        for begin, end in ((0, 3), (3, 4), (4, 5), (5, 9)):
            parts.append(ours.continued(targets[:, begin:end], cache).data)
            cache.advance(np.full(3, end - begin))
    close(np.concatenate(parts, 1), full, 2e-6)


def test_greedy_generation(pair):
    import torch

    peer, ours = pair
    if ours.config.model_type == "t5" and ours.config.decoder_layers != ours.config.num_layers:
        pytest.skip("the peer's cache has as many layers as its encoder")
    tokens, mask, _ = draw(ours, "right")
    start = ours.config.starts
    options = dict(decoder_start_token_id=start[0], forced_bos_token_id=None, forced_eos_token_id=None, eos_token_id=None, pad_token_id=1)
    expected = peer.generate(input_ids=torch.from_numpy(tokens), attention_mask=torch.from_numpy(mask), max_new_tokens=12, do_sample=False,
                             num_beams=1, **options)[:, 1:].tolist()
    rows = [row[: m.sum()].tolist() for row, m in zip(tokens, mask)]
    ours.config.extra.pop("eos_token_id", None)
    results = pyllm.generate(ours, None, rows, max_tokens=12, temperature=0, forced_eos_token_id=None)
    assert [g.ids for g in results] == expected


def test_folders_in_both_directions(pair, tmp_path):
    import torch

    peer, ours = pair
    batch = draw(ours, "right")
    pyllm.save(ours, None, tmp_path / "ours")
    opened, report = type(peer).from_pretrained(tmp_path / "ours", dtype=torch.float64, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    with torch.no_grad():
        close(run_peer(opened.eval(), *batch).numpy(), run_peer(peer, *batch).numpy(), 1e-6)
    peer.float().save_pretrained(tmp_path / "theirs")
    again, _ = pyllm.load(tmp_path / "theirs")
    assert np.array_equal(again(batch[0], batch[2], batch[1]).data, ours(batch[0], batch[2], batch[1]).data)
