#!/usr/bin/env bash
# Builds what run.py measures beside loglinear, from public packages, into build/peers. README.md says what and why.
#   bench/peers/prepare.sh          ggml out of the source package of llama-cpp-python
#   bench/peers/prepare.sh torch    PyTorch of PyPI in an environment of its own too (3 GB of downloads), and the
#                                   chunked reference of the authors of log-linear attention
set -euo pipefail

here=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
peers=$here/../../build/peers
package=llama_cpp_python-0.3.36
mkdir -p "$peers"
cd "$peers"

if [ ! -e ggml/lib/libggml-cpu.so ]; then
  [ -e $package.tar.gz ] || python3 -m pip download --no-deps --no-binary llama-cpp-python llama-cpp-python==0.3.36
  tar xzf $package.tar.gz $package/vendor/llama.cpp/ggml
  touch $package/vendor/llama.cpp/ggml/ggml.pc.in # ggml's CMake file asks for it, the package leaves it out
  cmake -S $package/vendor/llama.cpp/ggml -B ggml-build -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON \
    -DBUILD_SHARED_LIBS=ON -DGGML_BUILD_TESTS=OFF -DGGML_BUILD_EXAMPLES=OFF -DCMAKE_INSTALL_PREFIX="$PWD/ggml"
  cmake --build ggml-build --parallel "$(nproc)"
  cmake --install ggml-build
fi
g++ -O2 -std=c++20 -Wall -Wextra "$here/ggml.cpp" -Iggml/include -Lggml/lib -lggml-cpu -lggml-base \
  -Wl,-rpath,"$PWD/ggml/lib" -o bench_ggml

[ "${1-}" = torch ] || exit 0
[ -x torch/bin/python ] || python3 -m venv torch
torch/bin/python -m pip install torch numpy einops jaxtyping
reference=log-linear-attention
[ -d $reference ] || git clone https://github.com/HanGuo97/$reference
git -C $reference checkout --quiet 7f86441
