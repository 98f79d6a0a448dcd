"""Models by name, with a library in place of huggingface_hub that has them: what is asked for, what is said where it fails."""
import sys
from types import SimpleNamespace

import pytest

import pyllm
from pyllm.cli import main
from pyllm.folders import build
from pyllm.io.hub import is_name

GPT2 = dict(model_type="gpt2", vocab_size=300, n_positions=16, n_embd=8, n_layer=2, n_head=2)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """-> the list of what was asked for; organisation/tiny is there, as a folder and as a file."""
    model, asked = build(GPT2, seed=1), []
    (tmp_path / "cache").mkdir()
    pyllm.save(model, None, tmp_path / "cache/folder")
    pyllm.save(model, None, tmp_path / "cache/m.gguf")

    def snapshot_download(name, allow_patterns):
        asked.append((name, allow_patterns))
        if name != "organisation/tiny":
            raise ConnectionError(f"no {name}")
        return str(tmp_path / "cache/folder")

    def hf_hub_download(name, file):
        asked.append((name, file))
        return str(tmp_path / "cache" / file)

    library = SimpleNamespace(snapshot_download=snapshot_download, hf_hub_download=hf_hub_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", library)
    monkeypatch.chdir(tmp_path)
    return asked


def test_a_name_is_fetched_where_no_such_path_exists(hub, tmp_path, capsys):
    expected = build(GPT2, seed=1).state()
    for name in ("organisation/tiny", "organisation/tiny/m.gguf"):
        state = pyllm.load(name)[0].state()
        assert all((state[n] == a).all() for n, a in expected.items())
    (folder, patterns), file = hub
    assert folder == "organisation/tiny" and file == ("organisation/tiny", "m.gguf")
    assert not [p for p in patterns if p.endswith(("bin", "pt", "pth", "*")) and "Pooling" not in p]  # no pickles
    assert main(["info", "organisation/tiny"]) == 0 and "gpt2" in capsys.readouterr().out
    pyllm.save(build(GPT2, seed=2), None, tmp_path / "organisation-here")
    (tmp_path / "organisation").mkdir()
    (tmp_path / "organisation-here").rename(tmp_path / "organisation/tiny")
    del hub[:]
    assert (pyllm.load("organisation/tiny")[0].state()["transformer.wte.weight"] != expected["transformer.wte.weight"]).any() and not hub


def test_what_cannot_be_fetched_is_said(hub, monkeypatch, capsys):
    with pytest.raises(FileNotFoundError, match="did not get a model of that name: ConnectionError: no organisation/other"):
        pyllm.load("organisation/other")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(FileNotFoundError, match=r"needs huggingface_hub. Hint: pip install \"pyllm\[hub\]\""):
        pyllm.load("organisation/tiny")
    assert main(["generate", "--model", "organisation/tiny", "--prompt", "x"]) == 3
    assert "huggingface_hub" in capsys.readouterr().err


@pytest.mark.parametrize("name, right", [("a/b", True), ("Qwen/Qwen3-0.6B", True), ("a/b/c.gguf", True), ("a", False), ("./a/b", False),
                                         ("/a/b", False), ("../b", False), ("a/b/c", False), ("a/../b", False), ("a b/c", False),
                                         ("", False)])
def test_names(name, right):
    assert is_name(name) is right
