"""Finds a compiled module of the package, also when the source folder hides the installed package that holds it."""
import importlib
import importlib.machinery
import importlib.util
import sys
from pathlib import Path


def load(name):
    """'pyllm._C' -> the module, or None where it was never compiled. The newest look-alike of another version is refused."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
    for folder in sys.path:
        for suffix in importlib.machinery.EXTENSION_SUFFIXES:
            file = Path(folder, *name.split(".")).with_suffix(suffix)
            if file.is_file() and _same_version(file):
                spec = importlib.util.spec_from_file_location(name, file)
                module = importlib.util.module_from_spec(spec)
                sys.modules[name] = module
                spec.loader.exec_module(module)
                return module
    return None


def _same_version(file):
    """Whether the installed package beside `file` is of the version that is running."""
    from pyllm import __version__

    package = next(p for p in file.parents if p.name == "pyllm")
    return any(d.name == f"pyllm-{__version__}.dist-info" for d in package.parent.glob("pyllm-*.dist-info"))
