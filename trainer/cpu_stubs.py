"""Stand-ins for the CUDA libraries, so that torch's CUDA wheel loads on a machine without them.

usage: python cpu_stubs.py <site-packages>        (needs gcc and nm)

There is no CPU wheel of torch in the package index, and the CUDA wheels are gigabytes. Torch binds every function of
the libraries below lazily, so an empty library of the right name that exports the right symbols satisfies the loader;
it is never called on a CPU. A stub that is called after all says so and aborts. For the CPU environment only: the image
has the real libraries.
"""

import collections
import pathlib
import subprocess
import sys
import tempfile

# The names and versions that torch 2.15.0+cu132 asks for: look at them again when torch moves.
# `ldd torch/lib/libtorch_cuda.so` lists what is missing.
STUBS = (
    "libcublas.so.13",
    "libcublasLt.so.13",
    "libcudnn.so.9",
    "libcufft.so.12",
    "libcusparse.so.12",
    "libcusparseLt.so.0",
    "libnccl.so.2",
    "libnvrtc.so.13",
    "libnvshmem_host.so.3",
)
READERS = ("libtorch_cuda.so", "libtorch_python.so", "libtorch_cpu.so", "libc10_cuda.so", "libtorch_nvshmem.so")

# Symbols without a version tell their library by their prefix.
PREFIXES = {
    "cufft": "libcufft.so.12",
    "cusparseLt": "libcusparseLt.so.0",
    "nccl": "libnccl.so.2",
    "nvrtc": "libnvrtc.so.13",
    "nvshmem": "libnvshmem_host.so.3",
}

# torch.backends.cudnn.version() asks these two at import of some modules, so they answer.
CUDNN_VERSION = 92600
ANSWERS = {
    "cudnnGetVersion": f"unsigned long cudnnGetVersion(void) {{ return {CUDNN_VERSION}; }}\n",
    "cudnnGetProperty": (
        "int cudnnGetProperty(int type, int *value) {\n"
        f"  int part[] = {{ {CUDNN_VERSION // 10000}, {CUDNN_VERSION // 100 % 100}, {CUDNN_VERSION % 100} }};\n"
        "  *value = part[type];\n"
        "  return 0;\n}\n"
    ),
}


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    libraries = pathlib.Path(sys.argv[1]) / "torch" / "lib"
    wanted = wanted_symbols(libraries)
    for soname in STUBS:
        compile_stub(libraries, soname, sorted(wanted[soname]))


def wanted_symbols(libraries: pathlib.Path) -> dict[str, set[tuple[str, str]]]:
    """Per stub, the (symbol, version) pairs that torch's own libraries leave undefined."""
    wanted: dict[str, set[tuple[str, str]]] = collections.defaultdict(set)
    for reader in READERS:
        command = ["nm", "-D", "--undefined-only", str(libraries / reader)]
        for line in subprocess.check_output(command, text=True).splitlines():
            symbol, _, version = line.split()[-1].partition("@")
            version = version.lstrip("@")
            if soname := owner(symbol, version):
                wanted[soname].add((symbol, version))
    return wanted


def owner(symbol: str, version: str) -> str | None:
    if version in STUBS:
        return version
    if version.startswith("NVSHMEM"):
        return "libnvshmem_host.so.3"
    return next((soname for prefix, soname in PREFIXES.items() if symbol.startswith(prefix)), None)


def compile_stub(libraries: pathlib.Path, soname: str, symbols: list[tuple[str, str]]) -> None:
    """Write one stub into torch/lib, where torch's own search path finds it."""
    source = "#include <stdio.h>\n#include <stdlib.h>\n" + "".join(definition(symbol) for symbol, _ in symbols)
    by_version = collections.defaultdict(list)
    for symbol, version in symbols:
        by_version[version].append(f"{symbol};")
    script = "".join(
        f"{version} {{ global: {' '.join(names)} }};\n" for version, names in by_version.items() if version
    )
    with tempfile.TemporaryDirectory() as directory:
        code, versions = pathlib.Path(directory, "stub.c"), pathlib.Path(directory, "stub.map")
        code.write_text(source)
        versions.write_text(script)
        command = ["gcc", "-w", "-shared", "-fPIC", f"-Wl,-soname,{soname}", str(code), "-o", str(libraries / soname)]
        if script:
            command.append(f"-Wl,--version-script={versions}")
        subprocess.check_call(command)


def definition(symbol: str) -> str:
    abort = f'void *{symbol}(void) {{ fprintf(stderr, "CUDA stub called: {symbol}\\n"); abort(); }}\n'
    return ANSWERS.get(symbol, abort)


if __name__ == "__main__":
    main()
