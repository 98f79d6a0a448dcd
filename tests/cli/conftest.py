"""Models and data that the tests of the shell share; one thread, see tests/one_thread.py; charts are drawn where a test asks."""
from importlib.util import find_spec

import pytest

from tests.cli import small
from tests.one_thread import one_thread  # noqa: F401


@pytest.fixture(scope="session")
def here(tmp_path_factory):
    """A folder with models and data, see tests/cli/small.py."""
    return small.make(tmp_path_factory.mktemp("small"))


@pytest.fixture
def drawn():
    """A test that looks at charts asks for this."""


@pytest.fixture(autouse=True)
def composed(request, monkeypatch):
    """Elsewhere charts are composed to the last label and not drawn: a quarter of a second each, in every run of every verb."""
    if "drawn" not in request.fixturenames and find_spec("matplotlib"):
        monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, path, **options: path.touch())
