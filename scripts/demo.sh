#!/usr/bin/env bash
# The whole chain on the embedded data set, from drawing it to action tubes on held-out videos: about 10 minutes on 2 cores.
#
#     bash scripts/demo.sh
#
# $DATA_ROOT (data), $CHECKPOINT_ROOT (checkpoint) and $THREADS (2) may be set.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$root"
data=${DATA_ROOT:-data} checkpoint=${CHECKPOINT_ROOT:-checkpoint} threads=${THREADS:-2}
python=$VENV/bin/python
folder=$checkpoint/synthetic/demo
common=(--dataset synthetic --data_root "$data" --checkpoint_root "$checkpoint")
machine=(--device "${DEVICE:-cpu}" --threads "$threads" --workers 1)
began=$SECONDS

stage() {
    echo
    echo "== $1"
    shift
    local since=$SECONDS
    "$@"
    echo "   ($((SECONDS - since)) s)"
}

stage "drawing people in eight actions" "$python" -m datasets.synthetic --data_root "$data" --n_train 120 --n_val 30 --workers "$threads"
for subset in train val; do
    stage "shards of $subset" "$python" -m datasets.make_shards --dataset synthetic --data_root "$data" --subset $subset --workers "$threads"
done
stage "the detector, from random weights" "$python" train_detr.py "${common[@]}" "${machine[@]}" --ex_name demo --detr scratch \
    --backbone resnet18 --stages 3 --norm bn --hidden_dim 128 --enc_layers 2 --dec_layers 3 --dim_feedforward 512 \
    --num_queries 10 --pre_norm --dropout 0 --image_size 128 --epochs 24 --clips_per_video 4 --n_frames 2 --sampling_rate 6 \
    --lr 5e-4 --lr_backbone 5e-4 --lr_schedule cosine --warmup_steps 40 --id_loss_coef 1 --action_loss_coef 1 --comet disabled
detr=$folder/detr/epoch_24.pth
stage "query matching" "$python" train_qmm.py "${common[@]}" "${machine[@]}" --qmm_name demo --detr "$detr" \
    --epochs 40 --clips_per_video 4 --lr_en 1e-3 --lr_schedule cosine --tau 0.2 --clip_max_norm 1 --save_epochs 40 --comet disabled
for subset in train val; do
    stage "following people in $subset" "$python" eval_qmm.py "${common[@]}" "${machine[@]}" --qmm_name demo --subset $subset
done
stage "the action head" "$python" train_action_head.py "${common[@]}" "${machine[@]}" --qmm_name demo --head_type time_ecd:cat \
    --epochs 20 --lr_schedule cosine --clip_max_norm 1 --save_epochs 20 --comet disabled
stage "action tubes on held-out videos" "$python" eval_map.py "${common[@]}" "${machine[@]}" --qmm_name demo --head_type time_ecd:cat
video=$(sed -n 2p "$data/synthetic/val.txt")
stage "an annotated video" "$python" predict.py "$data/synthetic/videos/$video.avi" "${machine[@]}" \
    --encoder "$folder/encoder/epoch_40.pth" --head "$folder/head/time_ecd:cat/epoch_20.pth" --out "$folder/results"
echo
"$python" -m scripts.report "$folder/results"
echo "annotated video: $folder/results/$video.mp4"
echo "in all: $((SECONDS - began)) s"
