#!/usr/bin/env bash
# The whole chain on synthetic videos, with the small detector that comes with the code.
#
#     bash scripts/demo.sh                   an annotated video within a minute, then every stage: 5 minutes on 2 cores
#     bash scripts/demo.sh --from_scratch    trains the detector too: 12 minutes, fewer actions are found
#
# $DATA_ROOT (data), $CHECKPOINT_ROOT (checkpoint), $DEVICE (cpu) and $THREADS (all cores) may be set.
set -euo pipefail
case "${1:-}" in
"" | --from_scratch) ;;
*) echo "usage: bash scripts/demo.sh [--from_scratch]" >&2 && exit 2 ;;
esac
source "$(dirname "${BASH_SOURCE[0]}")/stages.sh"
data=${DATA_ROOT:-data} checkpoint=${CHECKPOINT_ROOT:-checkpoint}
folder=$checkpoint/synthetic/demo
common=(--dataset synthetic --data_root "$data" --checkpoint_root "$checkpoint" --comet disabled "${machine[@]}")
qmm=("${common[@]}" "${amp[@]}" --qmm_name demo)

# A first video: of a seed that the weights were not trained on.
stage "rendering a video" "$python" -m datasets.synthetic --data_root "$data/first" --n_train 0 --n_val 1 --seed 7
stage "predict" "$python" predict.py "$data/first/synthetic/videos/val_0000.avi" "${machine[@]}" --out "$folder/first" \
    --encoder synthetic --head synthetic --linker robust
echo "annotated video after $((SECONDS - began)) s: $folder/first/val_0000.mp4"

# The chain, on data of another seed.
n_train=120 scratch=${1:-}
if [ -n "$scratch" ]; then n_train=240; fi # a detector from scratch learns actions from more people
stage "rendering videos" "$python" -m datasets.synthetic --data_root "$data" --n_train $n_train --seed 2
for subset in train val; do
    stage "shards, $subset" "$python" -m datasets.make_shards --dataset synthetic --data_root "$data" --subset $subset
done
if [ -z "$scratch" ]; then
    detr=$folder/detr/epoch_1.pth
    qmm_frames=(--mirror_frames)
    stage "train_detr" "$python" train_detr.py "${common[@]}" "${amp[@]}" --detr synthetic --ex_name demo \
        --epochs 1 --clips_per_video 2 --n_frames 2 --sampling_rate 8 --batch_size 16 --lr 2e-5 --lr_backbone 2e-5 --eos_coef 0.3
else # most epochs on smaller images, which cost half; no time for DETR over mirrored frames
    detr=$folder/detr/epoch_16.pth
    qmm_frames=()
    recipe=("${common[@]}" "${amp[@]}" "${small_detr[@]}" "${query_losses[@]}" --clips_per_video 1 --n_frames 2
        --mirror_frames --sampling_rate 8 --batch_size 16 --save_epochs 10)
    stage "train_detr, 96 pixels" "$python" train_detr.py "${recipe[@]}" --ex_name demo_96 --image_size 96 --epochs 28
    stage "train_detr, 128 pixels" "$python" train_detr.py "${recipe[@]}" --ex_name demo --epochs 16 --lr 2e-4 --lr_backbone 5e-4 \
        --detr "$checkpoint/synthetic/demo_96/detr/epoch_28.pth"
fi
stage "train_qmm" "$python" train_qmm.py "${qmm[@]}" "${small_qmm[@]}" "${qmm_frames[@]}" --detr "$detr"
for subset in train val; do
    stage "eval_qmm, $subset" "$python" eval_qmm.py "${qmm[@]}" "${small_link[@]}" --n_frames 32 --subset $subset
done
stage "eval_qmm, val, IoU" "$python" eval_qmm.py "${qmm[@]}" --n_frames 32 --link_cues iou
stage "train_action_head" "$python" train_action_head.py "${qmm[@]}" "${small_link[@]}" "${small_head[@]}"
stage "eval_map" "$python" eval_map.py "${qmm[@]}" "${small_link[@]}" --head_type $head
video=val_0009 # held out
stage "predict" "$python" predict.py "$data/synthetic/videos/$video.avi" "${machine[@]}" "${amp[@]}" --out "$folder/results" \
    --encoder "$folder/encoder/epoch_60.pth" --head "$folder/head/$head/epoch_16.pth"
summary "$folder"
echo "annotated video: $folder/results/$video.mp4"
