#!/usr/bin/env bash
# Shared by the scripts that run the whole chain; sourced. Sets up the environment, then defines
# `stage NAME COMMAND...`, which runs a command and notes its time, and `summary FOLDER`.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$root"
set +u # before bash 4.4 an empty array counts as unset
python=$VENV/bin/python
machine=(--device "${DEVICE:-cpu}" ${THREADS:+--threads "$THREADS"})
amp=()
if grep -qE 'avx512_bf16|amx_bf16' /proc/cpuinfo 2>/dev/null; then amp=(--amp bf16); fi # half again as fast
# A detector small enough to be trained from scratch on a CPU in minutes.
small_detr=(--detr scratch --backbone resnet18 --stages 2 --norm bn --hidden_dim 128 --enc_layers 2 --dec_layers 3
    --dim_feedforward 512 --num_queries 10 --pre_norm --dropout 0 --position_in_features --temperature 0.05 --image_size 128
    --eos_coef 0.3 --lr 5e-4 --lr_backbone 2e-3 --lr_schedule cosine --warmup_steps 40)
# What makes the queries of a detector that was trained from scratch tell people and actions apart.
query_losses=(--id_loss_coef 2 --action_loss_coef 2 --place_loss_coef 3)
# The later stages on the synthetic data.
small_qmm=(--epochs 60 --clips_per_video 2 --lr_en 5e-4 --lr_schedule cosine --weight_decay 0.05 --dropout 0.3 --tau 0.1
    --clip_max_norm 1 --save_epochs 20 --detr_batch 32)
small_link=(--linker robust)
head=time_ecd:cat
small_head=(--head_type $head --n_layers 1 --dropout 0.5 --dim_feedforward 512 --epochs 16 --lr 2e-3 --lr_schedule cosine
    --weight_decay 0.05 --iter_update 8 --clip_max_norm 1 --save_epochs 4)
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
    "$python" -m scripts.reproduce table "$1"
    times+=("in all	$((SECONDS - began))")
    printf '\nseconds of each stage\n'
    printf '%s\n' "${times[@]}" | tee -a "$1/times.tsv"
}
