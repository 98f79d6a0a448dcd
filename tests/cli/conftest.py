"""Models and data that the tests of the shell share; one thread, see tests/one_thread.py."""
import pytest

from tests.cli import small
from tests.one_thread import one_thread  # noqa: F401


@pytest.fixture(scope="session")
def here(tmp_path_factory):
    """A folder with models and data, see tests/cli/small.py."""
    return small.make(tmp_path_factory.mktemp("small"))
