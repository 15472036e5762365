#!/usr/bin/env bash
# The whole chain on the embedded data set, from drawing it to action tubes on held-out videos: about 11 minutes on 2 cores.
#
#     bash scripts/demo.sh
#
# $DATA_ROOT (data), $CHECKPOINT_ROOT (checkpoint), $DEVICE (cpu) and $THREADS (2) may be set.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/stages.sh"
data=${DATA_ROOT:-data} checkpoint=${CHECKPOINT_ROOT:-checkpoint}
folder=$checkpoint/synthetic/demo head=time_ecd:cat
common=(--dataset synthetic --data_root "$data" --checkpoint_root "$checkpoint" --comet disabled)
qmm=("${common[@]}" "${machine[@]}" --qmm_name demo)

stage "drawing videos" "$python" -m datasets.synthetic --data_root "$data" --n_train 240 --workers "${THREADS:-2}"
for subset in train val; do
    stage "shards, $subset" "$python" -m datasets.make_shards --dataset synthetic --data_root "$data" --subset $subset
done
stage "train_detr" "$python" train_detr.py "${common[@]}" "${machine[@]}" "${small_detr[@]}" --ex_name demo \
    --epochs 35 --clips_per_video 2 --n_frames 2 --sampling_rate 8 --batch_size 16 \
    --id_loss_coef 2 --action_loss_coef 2 --place_loss_coef 3 --save_epochs 7
stage "train_qmm" "$python" train_qmm.py "${qmm[@]}" ${amp[@]+"${amp[@]}"} --detr_batch 32 --detr "$folder/detr/epoch_35.pth" --epochs 60 \
    --clips_per_video 2 --lr_en 5e-4 --lr_schedule cosine --weight_decay 0.05 --dropout 0.3 --tau 0.1 --clip_max_norm 1 --save_epochs 20
for subset in train val; do
    stage "eval_qmm, $subset" "$python" eval_qmm.py "${qmm[@]}" ${amp[@]+"${amp[@]}"} --n_frames 32 --subset $subset --end_consecutive_frames 4
done
stage "train_action_head" "$python" train_action_head.py "${qmm[@]}" --head_type $head --n_layers 1 --dropout 0.5 \
    --dim_feedforward 512 --epochs 16 --lr 2e-3 --lr_schedule cosine --weight_decay 0.05 --iter_update 8 --clip_max_norm 1 --save_epochs 4
stage "eval_map" "$python" eval_map.py "${qmm[@]}" --head_type $head
video=val_0009 # held out; three people, as in the README's picture
stage "predict" "$python" predict.py "$data/synthetic/videos/$video.avi" "${machine[@]}" --out "$folder/results" \
    --encoder "$folder/encoder/epoch_60.pth" --head "$folder/head/$head/epoch_16.pth"
summary "$folder"
echo "annotated video: $folder/results/$video.mp4"
