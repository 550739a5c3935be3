#!/usr/bin/env bash
# Measures everything that benchmarks/results keeps, on the GPU at hand: bash benchmarks/measure.sh [FOLDER] [NAME …]
# Without names all of it; transformers, which compiles for minutes, comes last.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
folder=${1:-benchmarks/results}
shift || true
wanted=("$@")
infernum=$(command -v .venv/bin/infernum || command -v infernum)

measure() {
  local name=$1
  shift
  if [ ${#wanted[@]} -gt 0 ] && [[ " ${wanted[*]} " != *" $name "* ]]; then return; fi
  echo "== $name"
  "$infernum" "$@" --output "$folder/$name.json"
}

for size in 1b 8b; do
  model=llama
  [ $size = 8b ] && model=llama-3.1-8b
  latency=(bench latency --model $model --load-format dummy)
  measure llama-$size-fused "${latency[@]}" --repeats 5
  measure llama-$size-unfused "${latency[@]}" --no-fuse
  measure llama-$size-sampled "${latency[@]}" --temperature 0.8 --top-k 50 --top-p 0.95 --repeats 5
  measure llama-$size-top-p "${latency[@]}" --temperature 0.8 --top-p 0.95
  measure llama-$size-context-8k "${latency[@]}" --prompt 7936
  measure llama-$size-context-32k "${latency[@]}" --prompt 32512
  measure llama-$size-prompt-2048 "${latency[@]}" --prompt 2048 --tokens 64
  for batch in 2 4 8; do
    measure llama-$size-batch-$batch "${latency[@]}" --batch $batch
  done
done
for size in 1b 8b; do
  model=llama
  [ $size = 8b ] && model=llama-3.1-8b
  measure llama-$size-throughput bench throughput --model $model --load-format dummy --batch 8,64,256 --mixed --rate 4,16
done
measure llama-1b-repeated bench latency --model llama --load-format dummy --tokens 1000 --repeats 1 --identical 18
measure llama-1b-kernels bench kernels --model llama --load-format dummy
measure llama-8b-kernels bench kernels --model llama-3.1-8b --load-format dummy
for size in 1b 8b; do
  model=llama
  [ $size = 8b ] && model=llama-3.1-8b
  measure llama-$size-prompt-attention bench kernels --model $model --load-format dummy --tokens 4096 --context 16384 \
    --kernel attention_prefill_wgmma
done
mkdir -p "$folder/families"
family() { measure "families/$1" bench latency --load-format dummy --model "${@:2}"; }
for model in llama qwen3-0.6b gemma-3-1b llama-3.1-8b qwen3-8b mistral-7b granite-3.3-8b gemma-2-9b phi-4; do
  family $model $model
done
for model in llama-3.1-8b qwen3-8b gemma-2-9b; do
  family $model-prompt-2048 $model --prompt 2048 --tokens 32
done
for model in mistral-7b gemma-3-4b; do
  family $model-context-32k $model --prompt 32512 --tokens 128 --repeats 2
done
# The picture in README: infernum bench plot FOLDER/llama-{1b,8b}-against.json --output docs/latency.svg
measure llama-1b-against bench latency --model llama --load-format dummy --against transformers
measure llama-8b-against bench latency --model llama-3.1-8b --load-format dummy --against transformers
