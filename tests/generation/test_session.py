"""A session reads what is new alone, and gives the bits of a call without it."""
import numpy as np
import pytest

from pyllm import kernels as K
from pyllm.errors import ConfigError
from pyllm.generation import Session, generate, stream
from pyllm.text import CharTokenizer

pytestmark = pytest.mark.skipif(K.active() == "reference", reason="NumPy's products differ in their last bits")

TURNS = [[5, 9, 2, 7], [30, 31, 32], [8], [1, 2, 3, 4, 5, 6]]


def counted(model, monkeypatch):
    """-> a list that grows by the shape of the tokens of each call of the model."""
    calls, hidden = [], type(model).hidden
    counting = lambda self, tokens, **options: calls.append(tokens.shape) or hidden(self, tokens, **options)
    monkeypatch.setattr(type(model), "hidden", counting)
    return calls


def test_turns_of_a_chat_have_the_bits_of_fresh_calls(causal, monkeypatch):
    session, text = Session(causal), []
    for seed, turn in enumerate(TURNS):
        text = text + turn
        fresh = generate(causal, None, text, max_tokens=9, seed=seed, logprobs=True)
        calls = counted(causal, monkeypatch)
        kept = generate(causal, None, text, max_tokens=9, seed=seed, logprobs=True, session=session)
        monkeypatch.undo()
        assert kept == fresh
        assert calls[0] == (1, len(turn) + (seed > 0))  # and the token drawn last, which nobody has read
        text = text + kept.ids
    assert session.ids == text[:-1]


def test_a_turn_that_is_taken_back_is_read_anew(causal):
    session = Session(causal)
    generate(causal, None, [5, 9, 2, 7, 8, 8], max_tokens=20, session=session)
    for prompt in ([5, 9, 2, 30, 31], [5, 9, 2, 30, 31], [5], [6, 5, 9, 2]):
        got = generate(causal, None, prompt, max_tokens=6, logprobs=True, session=session)
        assert got == generate(causal, None, prompt, max_tokens=6, logprobs=True)
        assert session.ids[: len(prompt)] == prompt
    assert session.reused == 0


def test_a_stream_that_nobody_reads_to_its_end_keeps_what_was_read(causal):
    tokenizer, session = CharTokenizer.train([bytes(range(32, 127)).decode()]), Session(causal)
    pieces = stream(causal, tokenizer, [5, 9, 2], max_tokens=30, session=session)
    for _ in range(4):
        next(pieces)
    pieces.close()
    assert len(session.ids) >= 6
    got = generate(causal, tokenizer, [5, 9, 2, 4], max_tokens=6, session=session, logprobs=True)
    assert session.reused == 3 and got == generate(causal, tokenizer, [5, 9, 2, 4], max_tokens=6, logprobs=True)


@pytest.mark.parametrize("options", [{}, {"num_return_sequences": 2}, {"num_beams": 3}], ids=["rows", "copies", "beams"])
def test_many_rows_start_from_copies(causal, monkeypatch, options):
    session, system = Session(causal), list(range(20, 40))
    generate(causal, None, system, max_tokens=0, session=session)
    prompts = [system + tail for tail in ([3], [4, 5, 6], [7, 8], [9] * 12)]
    fresh = generate(causal, None, prompts, max_tokens=8, seed=5, **options)
    calls = counted(causal, monkeypatch)
    assert generate(causal, None, prompts, max_tokens=8, seed=5, session=session, **options) == fresh
    assert calls[0] == (4, 12) and session.reused == 20 and session.ids == system


def test_copies_of_a_prompt_are_rows_of_it(any_model):
    many = generate(any_model, None, [[5, 9, 2], [7]], max_tokens=8, seed=3, temperature=2.0, num_return_sequences=3, logprobs=True)
    rows = generate(any_model, None, [[5, 9, 2]] * 3 + [[7]] * 3, max_tokens=8, seed=3, temperature=2.0, logprobs=True)
    assert [g for row in many for g in row] == rows
    assert len({tuple(g.ids) for g in rows}) > 3


def test_what_a_session_cannot_hold_is_named(causal, model_of):
    session = Session(causal)
    with pytest.raises(ConfigError, match="a session with slide"):
        generate(causal, None, [1], session=session, slide=True)
    with pytest.raises(ConfigError, match="an encoder-decoder"):
        generate(model_of("t5"), None, [1], session=session)
    other = model_of("llama" if causal.config.model_type != "llama" else "gpt2")
    with pytest.raises(ValueError, match="another model"):
        generate(other, None, [1], session=session)
    with pytest.raises(ValueError, match="97 tokens, the model's context is 96"):
        generate(causal, None, [1] * 97, session=session)
    assert np.all(session.cache.lengths == 0)
