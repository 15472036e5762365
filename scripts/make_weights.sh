#!/usr/bin/env bash
# The weights in weights/synthetic: a detector from scratch on the synthetic data of seeds 1 and 21 to 28, the last five of up
# to six people a video; person encoder and action head on those of seed 3, whose people the detector does not know; then
# exported in half precision.
#
#     bash scripts/make_weights.sh
#
# Some fourteen hours on one core with AVX2; started again, trainers go on where they stopped. In float32 on every processor, so that the
# same machine and number of threads give the same weights. $DATA_ROOT (data/weights), $CHECKPOINT_ROOT (checkpoint),
# $DEVICE (cpu) and $THREADS (all cores) may be set.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/stages.sh"
data=${DATA_ROOT:-data/weights} checkpoint=${CHECKPOINT_ROOT:-checkpoint}
folder=$checkpoint/synthetic/weights
common=(--dataset synthetic --checkpoint_root "$checkpoint" --comet disabled "${machine[@]}")
boxes=("${common[@]}" --clips_per_video 1 --sampling_rate 8 --batch_size 16 "${query_losses[@]}" --resume)
qmm=("${common[@]}" --data_root "$data" --qmm_name weights)

for seed in 1 21 22 23 24 25 26 27 28; do
    videos=(--n_train 1600)
    case $seed in
    24 | 25 | 28) videos=(--n_train 3200 --max_people 6) ;;
    26 | 27) videos=(--n_train 1600 --max_people 6) ;;
    esac
    stage "rendering the detector's videos, seed $seed" "$python" -m datasets.synthetic --data_root "$data/detector$seed" "${videos[@]}" \
        --seed $seed
    for subset in train val; do
        stage "shards, seed $seed, $subset" "$python" -m datasets.make_shards --dataset synthetic --data_root "$data/detector$seed" \
            --subset $subset
    done
done
stage "rendering videos" "$python" -m datasets.synthetic --data_root "$data" --n_train 400 --seed 3
stage "train_detr" "$python" train_detr.py "${boxes[@]}" --data_root "$data/detector1" "${small_detr[@]}" --ex_name weights_boxes \
    --n_frames 2 --epochs 18 --save_epochs 6
apart=("${boxes[@]}" --n_frames 4 --id_loss_same_clip 3 --eos_coef 0.3 --dropout 0 --lr 4e-4 --lr_backbone 1.5e-3
    --lr_schedule cosine --warmup_steps 40)
stage "train_detr, who is who" "$python" train_detr.py "${apart[@]}" --data_root "$data/detector1" --ex_name weights_apart --epochs 10 \
    --detr "$checkpoint/synthetic/weights_boxes/detr/epoch_18.pth"
stage "train_detr, by looks" "$python" train_detr.py "${apart[@]}" --data_root "$data/detector1" --ex_name weights_looks --epochs 8 \
    --mirror_frames --detr "$checkpoint/synthetic/weights_apart/detr/epoch_10.pth"
detr=$checkpoint/synthetic/weights_looks/detr/epoch_8.pth
for seed in 21 22 23 24 25 26 27 28; do
    name=weights_$seed epochs=8 views=(--mirror_frames)
    if [ $seed = 21 ]; then epochs=10; fi
    if [ $seed -ge 26 ]; then views+=(--erase_people); fi
    if [ $seed = 28 ]; then name=weights; fi
    stage "train_detr, other people, seed $seed" "$python" train_detr.py "${apart[@]}" --data_root "$data/detector$seed" --ex_name $name \
        --epochs $epochs "${views[@]}" --detr "$detr"
    detr=$checkpoint/synthetic/$name/detr/epoch_$epochs.pth
done
stage "train_qmm" "$python" train_qmm.py "${qmm[@]}" "${small_qmm[@]}" --mirror_frames --erase_people --detr "$detr" --resume
for subset in train val; do
    stage "eval_qmm, $subset" "$python" eval_qmm.py "${qmm[@]}" "${small_link[@]}" --n_frames 32 --subset $subset
done
stage "train_action_head" "$python" train_action_head.py "${qmm[@]}" "${small_link[@]}" "${small_head[@]}" --resume
stage "eval_map" "$python" eval_map.py "${qmm[@]}" "${small_link[@]}" --head_type $head
stage "export" "$python" -m scripts.export_weights "$folder" --name synthetic --made_by "bash scripts/make_weights.sh"
summary "$folder"
