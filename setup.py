"""Builds the small extensions: the kernels (csrc/, pybind11) and the tokenizers' loops (Cython).

PYLLM_NO_OPENMP=1 builds the kernels without threads; PYLLM_SANITIZE=address,undefined builds them for the sanitizers;
PYLLM_NATIVE=1 makes a failing compiler an error (otherwise the NumPy reference runs, with a warning).
"""
import os
import sys
import sysconfig
import tempfile
from glob import glob
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

optional = os.environ.get("PYLLM_NATIVE") != "1"
sanitize = os.environ.get("PYLLM_SANITIZE")
STRIPPED = ["-Wl,-s"] if sys.platform == "linux" else []


def compiles(compiler, flag):
    """True if the compiler takes `flag` and links with it."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cpp")
        source.write_text("int main() { return 0; }\n")
        try:
            objects = compiler.compile([str(source)], output_dir=folder, extra_postargs=[flag])
            compiler.link_executable(objects, str(Path(folder, "probe")), extra_postargs=[flag])
        except Exception:
            return False
    return True


class BuildExt(build_ext):
    def build_extensions(self):
        header = Path(sysconfig.get_paths()["include"], "Python.h")
        if not header.exists():
            print(f"pyllm: {header} is missing; on Debian: apt install g++ python3-dev python3-venv", file=sys.stderr)
        openmp = [] if os.environ.get("PYLLM_NO_OPENMP") == "1" else ["-fopenmp"]
        if openmp and not compiles(self.compiler, openmp[0]):
            print("pyllm: the compiler has no -fopenmp; kernels will run on one thread", file=sys.stderr)
            openmp = []
        for ext in self.extensions:
            if ext.name == "pyllm._C":
                ext.extra_compile_args += openmp
                ext.extra_link_args += openmp
        super().build_extensions()


def kernels():
    from pybind11.setup_helpers import ParallelCompile, Pybind11Extension

    ParallelCompile("PYLLM_BUILD_JOBS", default=0).install()  # 0: one job a core
    # No -march and no -ffast-math: the ISA is chosen at run time, and fast-math flips FTZ/DAZ for the whole process.
    flags = ["-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-fvisibility=hidden"]
    if sanitize:
        flags += ["-O1", "-g1", "-fno-omit-frame-pointer", f"-fsanitize={sanitize}"]
        link = [f"-fsanitize={sanitize}"]
    else:
        flags += ["-O3", "-g0"]
        link = STRIPPED
    return Pybind11Extension(
        "pyllm._C", sorted(glob("csrc/*.cpp") + glob("csrc/isa/*.cpp")), include_dirs=["csrc"], cxx_std=17,
        depends=sorted(glob("csrc/**/*.h", recursive=True)), extra_compile_args=flags, extra_link_args=link, optional=optional)


extensions = [kernels()]
loops = [name for name in ("_bpe", "_pieces") if Path(f"pyllm/text/{name}.pyx").exists()]
if loops:
    from Cython.Build import cythonize

    options = dict(language="c++", optional=optional, extra_compile_args=["-O3", "-g0"], extra_link_args=STRIPPED)
    extensions += cythonize([Extension(f"pyllm.text.{name}", [f"pyllm/text/{name}.pyx"], **options) for name in loops],
                            language_level=3, build_dir="build")

setup(ext_modules=extensions, cmdclass={"build_ext": BuildExt})
