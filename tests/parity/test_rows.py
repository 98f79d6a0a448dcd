"""Rows beside transformers and TRL: ids and masks of chats, implicit prompts, shifted answers, labels of padded batches.

pytest -m parity tests/parity/test_rows.py
"""
import numpy as np
import pytest

from pyllm.data import IGNORED, collate, render
from pyllm.data.formats import convert
from pyllm.text import ByteLevelBPE

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("default")]
TEXT = ["system user assistant what is it? it is a small model, and it ends.\n\n hello\n"] * 3
TEMPLATE = ("{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}{% if m['role'] == 'assistant' %}{% generation %}"
            "{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{{ '\\n' }}"
            "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")
TALKS = [[("user", "hello"), ("assistant", "it is")], [("system", "be a model"), ("user", "what?"), ("assistant", "a"), ("user", "so?\n"),
         ("assistant", "it ends.\n\nhello")], [("user", "h\u00e9llo \U0001f600"), ("assistant", "  it")]]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    from transformers import PreTrainedTokenizerFast

    ours = ByteLevelBPE.train(TEXT, 340, special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    ours.chat_template = TEMPLATE
    ours.save(tmp_path_factory.mktemp("t") / "t")
    path = next(tmp_path_factory.getbasetemp().glob("t*/t"))
    return ours, PreTrainedTokenizerFast.from_pretrained(path)


@pytest.mark.parametrize("talk", TALKS, ids=str)
def test_chats_are_the_ids_and_the_mask_of_transformers(both, talk):
    ours, theirs = both
    messages = [{"role": r, "content": c} for r, c in talk]
    expected = theirs.apply_chat_template(messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    assert ours.chat(messages, False) == expected["input_ids"]
    assert np.array(ours.chat_declared(messages)).tolist() == np.array(expected["assistant_masks"], bool).tolist()
    row = render({"messages": messages, "where": "x"}, "messages", ours)
    if not row.drift:  # there the first blank of an answer is learned by itself, as the model is asked for it
        assert row.tokens.tolist() == expected["input_ids"] and row.learned.tolist() == np.array(expected["assistant_masks"], bool).tolist()


def test_padded_batches_have_the_labels_of_trl(both):
    import torch
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    ours, _ = both
    rows = [render({"prompt": p, "completion": c, "where": "x"}, "completion", ours)
            for p, c in (("what is", " it?"), ("hello", " a model"))]
    batch = collate(rows)
    labels = DataCollatorForLanguageModeling(pad_token_id=0)([
        {"input_ids": r.tokens.tolist(), "labels": np.where(r.learned, r.tokens, IGNORED).tolist()} for r in rows])["labels"]
    assert torch.equal(torch.from_numpy(batch.targets[:, :-1]).long(), labels[:, 1:])  # theirs are shifted inside the model


def test_implicit_prompts_are_those_of_trl():
    from trl.data_utils import extract_prompt

    def turns(*said):
        return [{"role": r, "content": c} for r, c in zip(["user", "assistant"] * 3, said)]

    for chosen, rejected in ((turns("a", "b", "c", "d"), turns("a", "b", "c", "e")), (turns("a", "b"), turns("a", "c"))):
        expected = extract_prompt({"chosen": chosen, "rejected": rejected})
        _, found = convert({"chosen": chosen, "rejected": rejected}, ("chosen", "rejected"), "x")
        assert {k: found[k] for k in expected} == expected
    text = {"chosen": "The sky is blue.", "rejected": "The sky is green."}
    assert {k: v for k, v in convert(text, ("chosen", "rejected"), "x")[1].items() if k != "where"} == extract_prompt(text)


def test_answers_are_shifted_as_bart_shifts_them(both):
    import torch
    from transformers.models.bart.modeling_bart import shift_tokens_right

    ours, _ = both
    rows = [render({"prompt": "hello", "completion": c, "where": "x"}, "completion", ours, architecture="encoder-decoder")
            for c in ("it is", "a small model, and it ends.")]
    batch = collate(rows, start=2)
    expected = shift_tokens_right(torch.from_numpy(batch.targets).long(), 0, 2)
    real = batch.decoder_segments > 0
    assert (expected.numpy()[real] == batch.decoder_tokens[real]).all()
