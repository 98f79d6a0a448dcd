"""What is learned of an example, token by token; the silent errors of fine-tuning, each forbidden by its test."""
import numpy as np
import pytest

from pyllm.data import IGNORED, collate, collate_packed, prepare, render, rendered, windows
from pyllm.data.render import Row
from pyllm.errors import FormatError
from pyllm.text import ByteLevelBPE, WordPiece

TEXT = ["question: what is it? answer: it is a small model, and it ends.\n\n the user said hello to the assistant\n"] * 3
CHATML = ("{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{{ m['content'] }}{{ '<|im_end|>\n' }}{% endfor %}"
          "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
SPECIALS = ["<|endoftext|>", "<s>", "<|im_start|>", "<|im_end|>"]


@pytest.fixture(scope="module")
def tokenizer():
    return chatml()


def chatml(template="chatml"):
    tokenizer = ByteLevelBPE.train(TEXT, 340, special_tokens=SPECIALS)
    tokenizer.chat_template = template
    return tokenizer


def example(**keys):
    return {**keys, "where": "a.jsonl:1"}


def pieces(tokenizer, row):
    """-> (what is not learned, what is), as text."""
    return tuple(tokenizer.decode(row.tokens[row.learned == flag]) for flag in (False, True))


def test_only_the_completion_is_learned_and_its_eos_with_it(tokenizer):
    row = render(example(prompt="what is it?", completion=" a model"), "completion", tokenizer)
    assert pieces(tokenizer, row) == ("what is it?", " a model<|endoftext|>")
    assert row.tokens[-1] == tokenizer.eos_id and row.learned[-1]
    written = render(example(prompt="what is it?", completion=" a model<|endoftext|>"), "completion", tokenizer)
    assert written.tokens.tolist() == row.tokens.tolist()


def test_eos_is_learned_also_where_the_pad_token_is_the_eos(tokenizer):
    """The habit pad = eos masks every id that is the padding's, the real end among them: the model then never stops."""
    tokenizer.pad_id = tokenizer.eos_id
    rows = [render(example(prompt="what", completion=c), "completion", tokenizer) for c in (" a", " a small model")]
    for side in ("left", "right"):
        batch = collate(rows, side=side)
        assert (batch.targets == tokenizer.eos_id).sum(1).tolist() == [1, 1]
        assert (batch.targets[batch.segments == 0] == IGNORED).all()


def test_every_assistant_turn_is_learned_up_to_its_end_token(tokenizer):
    messages = [{"role": r, "content": c} for r, c in (("system", "small"), ("user", "hello"), ("assistant", "it is"), ("user", "what?"),
                                                       ("assistant", "a model"))]
    row = render(example(messages=messages), "messages", tokenizer)
    assert pieces(tokenizer, row)[1] == "it is<|im_end|>a model<|im_end|>"
    assert pieces(tokenizer, row)[0].count("<|im_start|>assistant\n") == 2
    last = render(example(prompt=messages[:4], completion=messages[4:]), "completion", tokenizer)
    assert pieces(tokenizer, last)[1] == "a model<|im_end|>" and last.tokens.tolist() == row.tokens.tolist()


def test_template_drift_is_an_error(tokenizer):
    """A template that writes the turns so far otherwise, once there are more, gives a mask of the wrong tokens."""
    messages = [{"role": r, "content": c} for r, c in (("user", "hello"), ("assistant", "it is"), ("user", "what?"), ("assistant", "a"))]
    forgets = "{{ m['content'] if loop.last or m['role'] != 'assistant' else '...' }}"
    drifting = chatml(CHATML.replace("{{ m['content'] }}", forgets))
    with pytest.raises(FormatError, match=r"a.jsonl:1: template drift: message 1: .* up to its end has .*it is.*, the whole one .*\.\.\."):
        render(example(messages=messages), "messages", drifting)
    assert render(example(messages=messages[:2]), "messages", drifting).targets
    with pytest.raises(FormatError, match="begins with the assistant"):
        render(example(messages=messages[1:]), "messages", tokenizer)


def test_a_call_of_a_tool_is_learned_an_empty_answer_is_not():
    tokenizer = chatml(CHATML.replace("{{ m['content'] }}", "{{ m['content'] }}{{ m.tool_calls[0].function.name if m.tool_calls }}"))
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "what", "arguments": {}}}]}
    talk = [{"role": "user", "content": "hello"}, call, {"role": "tool", "content": "it is"}, {"role": "assistant", "content": ""}]
    assert pieces(tokenizer, render(example(messages=talk), "messages", tokenizer))[1] == "what<|im_end|>"


def test_plain_words_as_a_template_end_with_the_eos():
    tokenizer = chatml("alpaca")
    row = render(example(messages=[{"role": "user", "content": "hello"}, {"role": "assistant", "content": "it is"}]), "messages", tokenizer)
    assert pieces(tokenizer, row)[1] == "it is<|endoftext|>" and pieces(tokenizer, row)[0].endswith("\n\n### Response:\n")


def test_a_mask_that_the_template_declares_is_checked():
    """{% generation %} in the wrong place, or around nothing, gives a mask of zeros or of ones without a word."""
    talk = [{"role": r, "content": c} for r, c in (("user", "hello"), ("assistant", "it is"), ("user", "what?"), ("assistant", "a model"))]
    said = "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}"
    good = chatml(CHATML.replace("{{ m['content'] }}", said))
    row = render(example(messages=talk), "messages", good)
    assert row.tokens.tolist() == render(example(messages=talk), "messages", chatml()).tokens.tolist()
    declared = good.chat_declared(talk)
    assert good.decode(row.tokens[declared]) == "it isa model" and chatml().chat_declared(talk) is None
    assert not (np.array(declared) & ~row.learned).any()
    for wrong in (said.replace("'assistant'", "'user'"), said.replace("{{ m['content'] }}{% endgen", "{% endgen").replace(
            "{% endgeneration %}", "{% endgeneration %}{{ m['content'] }}")):
        with pytest.raises(FormatError, match="template drift: its {% generation %} blocks"):
            render(example(messages=talk), "messages", chatml(CHATML.replace("{{ m['content'] }}", wrong)))


@pytest.mark.parametrize("said", ["\n\nit is", "  it is", "\tit is", "it is\n"])
def test_a_turn_that_begins_with_blanks_begins_behind_what_the_model_is_asked(said):
    tokenizer = ByteLevelBPE.train([*TEXT, "\n\n\n  \n\n\t" * 9], 400, special_tokens=SPECIALS)
    tokenizer.chat_template = CHATML.replace("<|im_start|>' + m", "' + m").replace("'<|im_start|>assist", "'assist")
    talk = [{"role": r, "content": c} for r, c in (("user", "hello"), ("assistant", said), ("user", "what?"), ("assistant", said))]
    row = render(example(messages=talk), "messages", tokenizer)
    asked = tokenizer.chat(talk[:1])
    assert row.tokens[:len(asked)].tolist() == asked and tokenizer.decode(row.tokens) == tokenizer.chat_text(talk, False)
    assert tokenizer.decode(row.tokens[row.learned]) == f"{said}<|im_end|>" * 2
    assert row.drift == (tokenizer.chat(talk, False)[:len(asked)] != asked)


def test_a_token_over_the_border_of_prompt_and_completion_is_split_and_counted(tokenizer):
    """Joint tokens that differ from the prompt's own are never seen when the model is asked."""
    fits = render(example(prompt="it is", completion=" a small"), "completion", tokenizer)
    assert not fits.drift and fits.tokens[:-1].tolist() == tokenizer.encode("it is a small")
    row = render(example(prompt="it is a sm", completion="all"), "completion", tokenizer)
    asked = tokenizer.encode("it is a sm")
    assert row.drift and row.tokens[:len(asked)].tolist() == asked and pieces(tokenizer, row) == ("it is a sm", "all<|endoftext|>")


def test_one_bos(tokenizer):
    from pyllm.text.template import Template

    with_bos = chatml()
    with_bos._template = Template(single=((with_bos.bos_id, 0), ("A", 0)))
    for prompt in ("what is it?", "<s>what is it?"):
        row = render(example(prompt=prompt, completion=" a"), "completion", with_bos)
        assert (row.tokens == with_bos.bos_id).sum() == 1 and row.tokens[0] == with_bos.bos_id and not row.learned[0]
        cut = render(example(prompt=prompt, completion=" a"), "completion", with_bos, max_length=4, truncation="keep_end")
        assert cut.tokens[0] == with_bos.bos_id and cut.tokens[-1] == with_bos.eos_id and cut.cut == len(row) - 4


def test_a_row_without_a_target_left_is_dropped_and_counted(tokenizer):
    """Otherwise its loss is 0 of 0 and the run "succeeds"."""
    class Data(list):
        kind = "completion"

    data = Data([example(prompt="what is it? " * 9, completion=" a"), example(prompt="what", completion=" a small model"),
                 example(prompt="what", completion="")])
    rows, counts = prepare(data, tokenizer, max_length=8)
    assert len(rows) == 1 and rows[0].targets and counts.dropped == 2 and counts.examples == 3
    assert "2 dropped: no target left" in str(counts) and counts.learned == rows[0].targets
    rows, counts = prepare(data, tokenizer, max_length=8, truncation="keep_end")
    assert len(rows) == 2 and counts.dropped == 1 and all(row.tokens[-1] == tokenizer.eos_id for row in rows)
    with pytest.raises(FormatError, match="no row is left: 1 examples, .*1 dropped: no target left.*larger max_length"):
        prepare(Data(data[:1]), tokenizer, max_length=8)


def test_pairs_share_their_prompt_also_when_it_is_cut(tokenizer):
    pair = render(example(prompt="what is it? " * 5, chosen=" a small model, and it ends", rejected=" a"), "preference", tokenizer,
                  max_length=20, truncation="keep_end")
    prompts = [row.tokens[~row.learned].tolist() for row in pair]
    assert prompts[0] == prompts[1] and max(map(len, pair)) == 20 and all(row.tokens[-1] == tokenizer.eos_id for row in pair)
    batch = collate([pair, pair])
    assert batch.tokens.shape[0] == 4 and (batch.tokens[0] == batch.tokens[2]).all() and (batch.targets[1] != IGNORED).sum() == 2


def test_unpaired_labels_come_in_extra(tokenizer):
    rows = [render(example(prompt="what", completion=" a", label=flag), "unpaired", tokenizer) for flag in (True, False)]
    assert collate(rows).extra["label"].tolist() == [1, 0]


def test_prompts_are_asked_and_nothing_of_them_is_learned(tokenizer):
    row = render(example(prompt=[{"role": "user", "content": "hello"}]), "prompt", tokenizer)
    assert tokenizer.decode(row.tokens).endswith("<|im_start|>assistant\n") and not row.learned.any()
    assert tokenizer.decode(render(example(prompt="what"), "prompt", tokenizer, prompt_format="Q: {prompt}\nA:").tokens) == "Q: what\nA:"


def test_encoder_decoder_rows_end_each_side_and_shift_the_answer(tokenizer):
    rows = [render(example(prompt="hello", completion=c), "completion", tokenizer, architecture="encoder-decoder")
            for c in ("it", "a model")]
    batch = collate(rows, start=tokenizer.bos_id)
    assert batch.tokens[0].tolist() == [*tokenizer.encode("hello"), tokenizer.eos_id]
    n = len(rows[0].decoder)
    assert batch.targets[0, :n].tolist() == [*tokenizer.encode("it"), tokenizer.eos_id] and (batch.targets[0, n:] == IGNORED).all()
    assert batch.decoder_tokens[0, :n].tolist() == [tokenizer.bos_id, *batch.targets[0, :n - 1]]
    with pytest.raises(ValueError, match="decoder_start_token_id"):
        collate(rows)


@pytest.fixture(scope="module")
def wordpiece():
    return WordPiece.train([t.lower() for t in TEXT], 200)


def test_classes_and_cut_texts_keep_the_template(wordpiece):
    labels = ["bad", "good"]
    row = render(example(text="it is a small model, and it ends", label="good"), "classification", wordpiece, architecture="encoder",
                 max_length=6, labels=labels)
    assert len(row) == 6 and row.tokens[0] == wordpiece.cls_id and row.tokens[-1] == wordpiece.sep_id and row.cut > 0 and row.label == 1
    assert collate([row]).targets.tolist() == [1]
    with pytest.raises(FormatError, match="label 'bda' is not among"):
        render(example(text="it", label="bda"), "classification", wordpiece, labels=labels)


def test_what_the_tokenizers_file_says_about_cutting_does_not_cut_here(wordpiece):
    wordpiece.truncation = {"max_length": 4, "strategy": "LongestFirst", "direction": "Right", "stride": 0}
    row = render(example(text="it is a small model", label="x"), "classification", wordpiece, labels=["x"])
    assert len(row) > 4 and row.cut == 0 and wordpiece.truncation["max_length"] == 4
    window, = windows(example(question="what is it?", context="it is a small model", answers=[]), wordpiece)
    assert wordpiece.decode(window.tokens[window.first:]).strip().startswith("it is a small model")
    wordpiece.truncation = None


def test_spans_are_the_tokens_of_the_answer(wordpiece):
    context = "hello, it is a small model"
    data = example(question="what is it?", context=context, answers=[("small model", context.index("small"))], references=["small model"])
    row = render(data, "question", wordpiece, architecture="encoder")
    first, last = row.label
    assert wordpiece.decode(row.tokens[first:last + 1]).strip() == "small model"
    short = render(data, "question", wordpiece, architecture="encoder", max_length=len(row) - 2)
    assert short.label == (0, 0) and short.cut == 2
    batch = collate([row, render(data, "question", wordpiece, architecture="encoder", max_length=len(row) - 3)], side="left")
    assert batch.targets[0].tolist() == [first, last] and batch.extra["types"].shape == batch.tokens.shape
    answered = render(data, "question", wordpiece)
    assert answered.targets


def test_a_long_text_is_learned_to_its_end_window_by_window(wordpiece):
    """Cut at the length, an answer near the end would teach that there is none."""
    words = ["hello", "user", "model"] * 40
    words[100] = "small"
    context = " ".join(words)
    data = example(question="what is it?", context=context, answers=[("small model", context.index("small"))], references=["small model"])
    options = dict(architecture="encoder", max_length=40)
    rows, parts = rendered(data, "question", wordpiece, stride=15, **options), windows(data, wordpiece, 40, 15)
    held = [row for row in rows if row.label != (0, 0)]
    assert 1 <= len(held) < len(rows) == len(parts) and all(len(row) <= 40 and row.cut == 0 for row in rows)
    for row in held:
        assert wordpiece.decode(row.tokens[row.label[0]:row.label[1] + 1]).strip() == "small model"
    seen = np.zeros(len(context), bool)
    for part in parts:
        for a, b in part.places:
            seen[a:b] = True
    assert all(seen[k] or context[k] == " " for k in range(len(context)))
    steps = np.diff([part.places[0, 0] for part in parts])
    assert len(set(parts[0].places[15:16, 0] - parts[0].places[:1, 0]) | {steps[0]}) == 1  # fifteen tokens on
    found, counts = prepare(Kind([data, data], "question"), wordpiece, stride=15, **options)
    assert len(found) == 2 * len(rows) and counts.windows == len(found) and "windows of long contexts" in str(counts)
    assert render(data, "question", wordpiece, **options).cut > 0  # of one row it is told


def test_an_answer_that_no_window_holds_is_dropped_not_taught_as_none(wordpiece):
    words = ["hello", "user", "model"] * 20
    context = " ".join(words)
    long = example(question="what is it?", context=context, answers=[(" ".join(words[:30]), 0)], references=["x"])
    none = example(question="what is it?", context=context, answers=[], references=[])
    found, counts = prepare(Kind([long, none], "question"), wordpiece, architecture="encoder", max_length=20, stride=5)
    assert counts.dropped == 1 and found and all(row.label == (0, 0) for row in found)
    with pytest.raises(FormatError, match="a.jsonl:1: the question 'what is it.*' leaves no room"):
        rendered(none, "question", wordpiece, architecture="encoder", max_length=6)


class Kind(list):
    def __init__(self, examples, kind):
        super().__init__(examples)
        self.kind = kind


def test_options_are_checked(tokenizer):
    with pytest.raises(ValueError, match="architecture is 'gpt', .*; truncation is 'left', .*; max_length is 1, .*; prompt_format is 'x'"):
        render(example(text="a"), "text", tokenizer, architecture="gpt", truncation="left", max_length=1, prompt_format="x")


def row(tokens, learned):
    return Row(np.array(tokens, np.int32), np.array(learned, bool))


def test_padding_is_by_segments_on_both_sides():
    rows = [row([5, 6, 7], [0, 0, 1]), row([8, 9, 5, 6, 7], [1, 1, 0, 1, 1])]
    right, left = collate(rows, multiple=4), collate(rows, side="left", length=6)
    assert right.tokens.shape == (2, 8) and left.tokens.shape == (2, 6)
    assert right.targets[:, :5].tolist() == [[IGNORED, 7, IGNORED, IGNORED, IGNORED], [9, IGNORED, 6, 7, IGNORED]]
    assert left.targets[0].tolist() == [IGNORED] * 4 + [7, IGNORED] and left.segments[0].tolist() == [0, 0, 0, 1, 1, 1]
    with pytest.raises(ValueError, match="a row has 5 tokens, length is 4"):
        collate(rows, length=4)
    packed = collate_packed(rows, 6)
    assert packed.targets.tolist() == [[9, IGNORED, 6, 7, IGNORED, 7]] and packed.segments.tolist() == [[1, 1, 1, 1, 2, 2]]
    assert packed.count == right.count == left.count == 4
