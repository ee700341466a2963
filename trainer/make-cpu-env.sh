#!/bin/sh
# usage: make-cpu-env.sh <directory>
# A virtual environment with the trainer's locked packages and without the CUDA ones, for tests and the local twin.
# Needs uv, gcc, nm and Python 3.11 or later. A second call with nothing changed does nothing.
set -eu

[ $# -eq 1 ] || { echo "usage: $0 <directory>" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
venv=$(cd "$1" && pwd)

stamp=$(cat "$here/pyproject.toml" "$here/uv.lock" "$here/cpu_stubs.py" "$here/make-cpu-env.sh" | sha256sum)
if [ -x "$venv/bin/torchrun" ] && [ "$(cat "$venv/.stamp" 2>/dev/null)" = "$stamp" ]; then
    exit 0
fi
rm -f "$venv/.stamp"

# Left out: what torch does not need to start on a CPU, and what cpu_stubs.py puts stand-ins for.
without=
for package in bitsandbytes triton cuda-bindings cuda-pathfinder nvidia-cublas nvidia-cuda-cccl nvidia-cuda-nvrtc nvidia-cudnn-cu13 \
    nvidia-cufft nvidia-cusolver nvidia-cusparse nvidia-cusparselt-cu13 nvidia-nccl-cu13 nvidia-nvjitlink \
    nvidia-nvshmem-cu13 nvidia-nvtx; do
    without="$without --no-install-package $package"
done

export UV_PROJECT_ENVIRONMENT="$venv" UV_PYTHON_DOWNLOADS=never
unset VIRTUAL_ENV
# --compile-bytecode: without it each process of each pod spends seconds compiling torch again.
# shellcheck disable=SC2086
uv sync --quiet --project "$here" --frozen --group dev --compile-bytecode $without
"$venv/bin/python" "$here/cpu_stubs.py" "$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
printf '%s\n' "$stamp" >"$venv/.stamp"
