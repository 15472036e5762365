#!/usr/bin/env bash
# The weights in weights/synthetic: the chain from scratch on the synthetic data of seed 1, then exported in half precision.
#
#     bash scripts/make_weights.sh
#
# Eighty minutes on one core with AVX2. In float32 on every processor, so that the same machine gives the same weights. $DATA_ROOT
# (data/weights), $CHECKPOINT_ROOT (checkpoint), $DEVICE (cpu) and $THREADS (all cores) may be set.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/stages.sh"
data=${DATA_ROOT:-data/weights} checkpoint=${CHECKPOINT_ROOT:-checkpoint}
folder=$checkpoint/synthetic/weights
common=(--dataset synthetic --data_root "$data" --checkpoint_root "$checkpoint" --comet disabled "${machine[@]}")
qmm=("${common[@]}" --qmm_name weights)

stage "rendering videos" "$python" -m datasets.synthetic --data_root "$data" --n_train 400 --seed 1
for subset in train val; do
    stage "shards, $subset" "$python" -m datasets.make_shards --dataset synthetic --data_root "$data" --subset $subset
done
stage "train_detr" "$python" train_detr.py "${common[@]}" "${small_detr[@]}" "${query_losses[@]}" --ex_name weights \
    --epochs 36 --clips_per_video 2 --n_frames 2 --sampling_rate 8 --batch_size 16 --save_epochs 12
stage "train_qmm" "$python" train_qmm.py "${qmm[@]}" "${small_qmm[@]}" --detr "$folder/detr/epoch_36.pth"
for subset in train val; do
    stage "eval_qmm, $subset" "$python" eval_qmm.py "${qmm[@]}" "${small_link[@]}" --n_frames 32 --subset $subset
done
stage "train_action_head" "$python" train_action_head.py "${qmm[@]}" "${small_link[@]}" "${small_head[@]}"
stage "eval_map" "$python" eval_map.py "${qmm[@]}" "${small_link[@]}" --head_type $head
stage "export" "$python" -m scripts.export_weights "$folder" --name synthetic --made_by "bash scripts/make_weights.sh"
summary "$folder"
