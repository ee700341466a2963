"""A stand-in for Lambda's base image, where no registry can be reached: made of this machine's own files.

Holds a shell, the two programs with which the SAM CLI adds its emulator, the libraries of these and of the functions,
and the authorities of Python's certifi. It is not Amazon Linux: what the real image holds or lacks is not shown by it.
"""

import io
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import certifi

# Those of the real image that a function or the SAM CLI looks at.
SETTINGS = [
    "ENV PATH=/usr/local/bin:/usr/bin/:/bin:/opt/bin",
    "ENV LD_LIBRARY_PATH=/lib64:/usr/lib64:/var/runtime:/var/runtime/lib:/var/task:/var/task/lib:/opt/lib",
    "ENV LAMBDA_TASK_ROOT=/var/task",
    "ENV LAMBDA_RUNTIME_DIR=/var/runtime",
    "WORKDIR /var/task",
]
PROGRAMS = ["sh", "mv", "chmod"]


def make(docker: str, tag: str, functions: list[Path]) -> None:
    """Imports the image; `functions` are programs that must find their libraries in it."""
    programs = {Path("/bin") / name: Path(shutil.which(name) or name) for name in PROGRAMS}
    found = [library for program in (*programs.values(), *functions) for library in libraries(program)]
    files = {
        **programs,
        **{library: library for library in found},
        Path("/etc/pki/tls/certs/ca-bundle.crt"): Path(certifi.where()),
    }
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", dereference=True) as tar:
        for folder in ("tmp", "var/task", "var/runtime", "var/rapid", "opt"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if folder == "tmp" else 0o755
            tar.addfile(entry)
        for path, source in files.items():
            tar.add(source, str(path))
    changes = [word for setting in SETTINGS for word in ("--change", setting)]
    subprocess.run(
        [docker, "import", *changes, "-", tag], input=archive.getvalue(), check=True, stdout=subprocess.DEVNULL
    )


def libraries(program: Path) -> list[Path]:
    """The shared libraries that a program loads, its loader among them."""
    output = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
    return [Path(path) for path in re.findall(r"(?:=> |^\s+)(/\S+)", output, re.MULTILINE)]
