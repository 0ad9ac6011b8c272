#!/usr/bin/env bash
# Packages that a GPU machine without network lacks, as wheels in a folder: `gpu_wheels.sh [FOLDER]`.
# It is to have Python 3.12, PyTorch with CUDA 13, transformers, accelerate, tokenizers, torchmetrics,
# numpy, scipy, pandas, psutil, rich, pytest and hypothesis. There, in a clone of this repository:
#   python3 -m pip install --no-index --no-deps --target SITE FOLDER/*.whl
#   export PYTHONPATH=SITE:src:.
#   python3 -m pytest tests/test_gpu.py -m gpu && python3 -m benchmarks.gpu --output RESULTS
# Two wheels are made smaller, and all together stay below 60 MB: bitsandbytes keeps the library for
# CUDA 13.0 (set CUDA=cuda126, for example, for another), and polars loses its debugging symbols.
set -euo pipefail
folder=$(realpath -m "${1:-.whl}")
keep=${CUDA:-cuda130}
mkdir -p "$folder"
rm -f "$folder"/*.whl

platforms=()
for version in manylinux_2_28 manylinux_2_27 manylinux_2_24 manylinux_2_17 manylinux2014 manylinux1; do
  platforms+=(--platform "${version}_x86_64")
done
python3 -m pip download --quiet --no-deps --only-binary=:all: --implementation cp \
  --python-version 3.12 "${platforms[@]}" --dest "$folder" \
  lightning==2.6.6 lightning-utilities==0.15.3 \
  jsonargparse==4.53.0 docstring-parser==0.18.0 typeshed-client==2.15.0 omegaconf==2.4.0 \
  polars==2.1.0 polars-runtime-32==2.1.0 \
  peft==0.21.2 bitsandbytes==0.50.2 \
  pooch==1.9.0 platformdirs==4.14.8 filelock==4.2.12

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Repack a wheel after running a command inside it.
repack() {
  local wheel=$1
  shift
  mkdir "$work/parts"
  unzip -q "$wheel" -d "$work/parts"
  (cd "$work/parts" && "$@" && rm "$wheel" && zip -q -9 -r "$wheel" .)
  rm -rf "$work/parts"
}

repack "$(echo "$folder"/bitsandbytes-*.whl)" \
  find bitsandbytes -name 'libbitsandbytes_*' ! -name "*_$keep.so" ! -name '*_cpu.so' -delete
repack "$(echo "$folder"/polars_runtime_32-*.whl)" \
  strip --strip-unneeded _polars_runtime_32/_polars_runtime.abi3.so

du -cb "$folder"/*.whl
