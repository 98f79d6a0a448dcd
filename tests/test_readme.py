"""What README says works: its Python example runs, its tree is the tree."""
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_python_example_runs(tmp_path):
    code = re.search(r"```python\n(.*?)```", README, re.S)[1]
    assert 15 <= len(code.splitlines()) <= 24
    (tmp_path / "corpus.txt").write_text("the quick brown fox jumps over the lazy dog. " * 200)
    short = code.replace("steps=500", "steps=3").replace("% 100", "% 1")
    assert short != code
    done = subprocess.run([sys.executable, "-c", short], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) >= 4 and (tmp_path / "my-model/model.safetensors").is_file()


def test_the_tree_names_every_file():
    tree = re.findall(r"```\n(pyproject.*?)```", README, re.S)[0]
    files = [p.name for folder in ("csrc", "pyllm", "benchmarks", "examples", "tests/native") for p in (ROOT / folder).rglob("*")
             if p.suffix in (".py", ".pyx", ".h", ".cpp") and p.name != "__init__.py" and p != ROOT / "benchmarks/__main__.py"]
    words = set(re.findall(r"[\w.]+", tree))
    assert not [f for f in files if f not in words], "not in README's tree"
    named = {w for w in words if re.fullmatch(r"\w+\.(py|pyx|h|cpp)", w)}
    assert not named - {*files, "__init__.py", "setup.py", "test_architecture.py"}, "in README's tree, but not there"
