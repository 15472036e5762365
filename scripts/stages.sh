#!/usr/bin/env bash
# What the scripts that run the whole chain share; sourced. Sets up the environment, then defines:
# `stage NAME COMMAND...`, which runs a command and notes its time; `summary FOLDER`; and flags for a small machine.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$root"
python=$VENV/bin/python
machine=(--device "${DEVICE:-cpu}" --threads "${THREADS:-2}" --workers 1)
amp=() # used as ${amp[@]+...}, since before bash 4.4 an empty array counts as unset
if grep -qE 'avx512_bf16|amx_bf16' /proc/cpuinfo 2>/dev/null; then amp=(--amp bf16); fi # half again as fast
# A detector small enough to be trained from nothing on a CPU in minutes.
small_detr=(--detr scratch --backbone resnet18 --stages 2 --norm bn --hidden_dim 128 --enc_layers 2 --dec_layers 3
    --dim_feedforward 512 --num_queries 10 --pre_norm --dropout 0 --position_in_features --temperature 0.05 --image_size 128
    --eos_coef 0.3 --lr 5e-4 --lr_backbone 2e-3 --lr_schedule cosine --warmup_steps 40 ${amp[@]+"${amp[@]}"})
began=$SECONDS
times=()

stage() {
    local name=$1 since=$SECONDS
    shift
    echo
    echo "== $name"
    "$@"
    times+=("$name	$((SECONDS - since))")
}

summary() {
    echo
    times+=("in all	$((SECONDS - began))")
    printf '%s\n' "${times[@]}" | "$python" -m scripts.report "$1/results"
}
