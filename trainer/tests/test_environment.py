"""The variables that a request may not set: each name's known trick works on the programs of this machine. The control
plane refuses the same names, by the same table."""

import json
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TABLE = json.loads((ROOT / "tests" / "contract" / "environment.json").read_text(encoding="utf-8"))
ROWS = TABLE["refused"] + TABLE["refused_values"]
BIN = Path(sys.executable).parent
# Where images have their programs.
PATH = f"{BIN}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# What a checkout needs anyway, so that no trick of theirs is passed over.
PRESENT = ["bash", "cc", "curl", "git", "make", "node", "python", "script", "sh", "tar", "torchrun", "{base-python}"]
BASE_PYTHON = sys._base_executable
PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"

# Each leaves the marker, and needs nothing that its program does not have by itself.
PAYLOAD = "import posix\nposix.close(posix.open(posix.environ[b'MARKER'], posix.O_CREAT | posix.O_WRONLY))\n"
SHELL = '#!/bin/sh\n: > "$MARKER"\n'
LIBRARY = """
#include <fcntl.h>
#include <stdlib.h>
__attribute__((constructor)) static void leave(void) { open(getenv("MARKER"), O_CREAT | O_WRONLY, 0600); }
unsigned la_version(unsigned version) { return version; }
"""
EVIL = {
    "evil.py": PAYLOAD,
    "sitecustomize.py": PAYLOAD,
    "evil.pm": 'open(my $marker, ">", $ENV{MARKER});\n1;\n',
    "evil.js": "require('fs').writeFileSync(process.env.MARKER, '')\n",
    ".gitconfig": "[alias]\n\tevil = !{program}\n",
}
# Names under which other programs look for the shell script.
PROGRAMS = ["as", "gcc", "git-remote-http"]


@pytest.fixture(scope="session")
def library(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("library")
    (folder / "library.c").write_text(LIBRARY)
    command = ["cc", "-shared", "-fPIC", "-o", folder / "library.so", folder / "library.c"]
    subprocess.run(command, check=True)
    return folder / "library.so"


@pytest.fixture
def server():
    """The attacker's: its URL, and what came there. It turns everything down."""
    came = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.settimeout(5)
                    came.append(connection.recv(65536).decode(errors="replace"))
                    connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", came
        listener.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def play(tmp_path, library, server):
    """Run a row's program, with its variables or without; whether it shows what it should."""
    folder, marker, script = tmp_path / "evil", tmp_path / "marker", tmp_path / "script.py"
    url, came = server
    places = {
        "{dir}": folder,
        "{program}": folder / "program",
        "{library}": folder / "library.so",
        "{url}": url,
        "{script}": script,
        "{trainer}": ROOT / "trainer",
        "{payload}": PAYLOAD,
        "{python}": PYTHON,
        "{base-python}": BASE_PYTHON,
    }

    def put(text):
        for place, value in places.items():
            text = text.replace(place, str(value))
        return text

    def run(row, **variables):
        for path, text in (EVIL | row.get("files", {})).items():
            (folder / put(path)).parent.mkdir(parents=True, exist_ok=True)
            (folder / put(path)).write_text(put(text))
        (folder / "bin").mkdir(exist_ok=True)
        for path in [folder / "program", *(folder / "bin" / name for name in PROGRAMS)]:
            path.write_text(SHELL)
            path.chmod(0o755)
        shutil.copy(library, folder)
        (tmp_path / "home").mkdir(exist_ok=True)
        script.write_text("")
        environment = {
            "PATH": PATH,
            "HOME": str(tmp_path / "home"),
            "MARKER": str(marker),
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        words = [put(word) for word in row["run"]]
        ended = subprocess.run(
            [shutil.which(words[0], path=PATH), *words[1:]],
            env=environment | {name: put(value) for name, value in variables.items()},
            cwd=folder,
            input=row.get("input", ""),
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=120,
        )
        kind, _, text = row["shows"].partition(" ")
        if kind == "marker":
            return marker.exists(), ended
        if kind == "request":
            return any(text in request for request in came), ended
        return put(row["shows"]) in ended.stdout, ended

    return run


def is_here(row):
    program = row["run"][0]
    return program == "{base-python}" or shutil.which(program, path=PATH) is not None


def parameter(row):
    """Programs that import torch take seconds each, so most are the soak's."""
    imports_torch = any("torch" in argument or "transformers" in argument for argument in row["run"])
    in_soak = imports_torch and row["name"] not in ("PYTHONWARNINGS", "BROWSER", "TORCHINDUCTOR_CPP_MARCH")
    return pytest.param(row, id=row["name"], marks=pytest.mark.soak if in_soak else ())


@pytest.mark.parametrize("row", [parameter(row) for row in ROWS if "run" in row and is_here(row)])
def test_a_refused_name_does_what_it_is_refused_for(play, row):
    others = row.get("with", {})
    # What names the attacker's folder or reaches his server comes from nowhere else, and would ask a real one instead.
    if not row["shows"].startswith("request") and "{" not in row["shows"]:
        shown, ended = play(row, **others)
        assert not shown, f"it comes without {row['name']} too: {ended}"
    shown, ended = play(row, **others, **{row["name"]: row["value"]})
    assert shown, ended


def test_no_trick_of_a_program_that_every_checkout_needs_is_passed_over():
    played = {row["run"][0] for row in ROWS if "run" in row and is_here(row)}
    assert played >= set(PRESENT)


def test_a_name_stands_in_one_list_and_has_a_trick_or_a_source():
    names = [row["name"] for row in TABLE["refused"]] + TABLE["allowed"]
    assert len(names) == len(set(names))
    for row in ROWS:
        assert {"value", "run", "shows"} <= row.keys() or row.keys() == {"name", "source"}, row["name"]


def test_no_variable_turns_a_report_on_or_says_where_code_and_tokens_lie(play):
    """HF_HOME stays a request's to set: what lies there is models and data."""
    script = (
        "import sys; sys.path += ['{trainer}', '{trainer}/tests']; import train; train.settle_environment();"
        "import os; from pathlib import Path; from huggingface_hub import get_token;"
        "from transformers.dynamic_module_utils import HF_MODULES_CACHE, init_hf_modules as init; init();"
        "from huggingface_hub.constants import HF_HUB_CACHE;"
        "from training import settings; from alone import ALONE; from training.runners.hf import arguments;"
        "found = arguments(settings.parse('{}'), ALONE, Path('out'), 1);"
        "print(HF_MODULES_CACHE.startswith('{dir}'), get_token(), found.report_to, HF_HUB_CACHE)"
    )
    row = {
        "run": ["python", "-c", script],
        "files": {"modules/attackers.py": "", "token": "another-token"},
        "shows": "False the-hub-token [] {dir}/hub",
    }
    variables = {"KUBEFLOW_TRAINER_SERVER_URL": "{url}", "HF_TOKEN": "the-hub-token"}
    chosen = {"HF_MODULES_CACHE": "{dir}/modules", "HF_TOKEN_PATH": "{dir}/token", "DISABLE_KUBEFLOW_INTEGRATION": "0"}
    shown, ended = play(row, HF_HOME="{dir}", **variables, **chosen)
    assert shown, ended
    shown, ended = play(row | {"shows": "False None [] {dir}/hub"}, HF_HOME="{dir}")
    assert shown, ended
