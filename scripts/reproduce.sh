#!/usr/bin/env bash
# A data set's whole chain, from videos and annotations to tables: recall by motion for both link cues, v-mAP and
# motion-AP for every head type and several top-k.
#
#     bash scripts/reproduce.sh jhmdb21|ucf101-24|ava [--published]
#
# --published: by the preset of the published runs (docs/protocol.md), else by this project's defaults. It says first
# what it will cost. Started again, it goes on where it stopped. All GPUs are used; of trainers 1, 2, 4 or 8, which
# share one batch, so that the settings are the same on any number.
#
# $DATA_ROOT (data), $CHECKPOINT_ROOT (checkpoint), $GPUS (all; 0: the CPU), $HEADS (all types), $TOPK ("1 3 5", of
# ava "1 3 60"), $DETR_RATE (frames/s of one device; else measured), and further flags of all stages in $EXTRA, of
# train_detr.py in $DETR_FLAGS, train_qmm.py $QMM_FLAGS, the stages that link $LINK_FLAGS, train_action_head.py
# $HEAD_FLAGS and eval_map.py $MAP_FLAGS may be set.
set -euo pipefail
if [[ ! "${1:-}" =~ ^[^-] ]] || [[ ! "${2:-}" =~ ^(--published)?$ ]]; then
    echo "usage: bash scripts/reproduce.sh jhmdb21|ucf101-24|ava [--published]" >&2
    exit 2
fi
source "$(dirname "${BASH_SOURCE[0]}")/stages.sh"
dataset=$1 data=${DATA_ROOT:-data} checkpoint=${CHECKPOINT_ROOT:-checkpoint}
run=reproduce preset=() tuned=() published=()
if [ -n "${2:-}" ]; then run=reproduce_published preset=(--preset published) published=(--published); fi
if [ "$dataset" != jhmdb21 ]; then tuned=(--tuned); fi # on JHMDB21 COCO's detector is used as it is
gpus=${GPUS:-$({ nvidia-smi -L 2>/dev/null || true; } | wc -l)}
sharing=1 # processes of a trainer, whose batches are of 32 frames, 8 clips, 64 tracks in all
while [ $((2 * sharing)) -le "$gpus" ] && [ $sharing -lt 8 ]; do sharing=$((2 * sharing)); done
launch=("$python") train=("$python")
if [ "$gpus" -gt 1 ]; then
    launch=("$python" -m torch.distributed.run --standalone --nproc_per_node "$gpus")
    train=("$python" -m torch.distributed.run --standalone --nproc_per_node $sharing)
fi
where=()
if [ "$gpus" -eq 0 ]; then where=(--device cpu); fi
read -r -a extra <<<"${EXTRA:-}"
read -r -a detr_flags <<<"${DETR_FLAGS:-}"
read -r -a qmm_flags <<<"${QMM_FLAGS:-}"
read -r -a link_flags <<<"${LINK_FLAGS:-}"
read -r -a head_flags <<<"${HEAD_FLAGS:-}"
read -r -a map_flags <<<"${MAP_FLAGS:-}"
metrics=(v-mAP motion-AP) some="1 3 5"
if [ "$dataset" = ava ]; then # 60: all classes, as the official metric counts
    metrics=(frame-mAP) some="1 3 60" map_flags=(--protocol ava "${map_flags[@]}")
fi
read -r -a heads <<<"${HEADS:-vanilla time_ecd:add time_ecd:cat x3d res}"
read -r -a topks <<<"${TOPK:-$some}"

"$python" -m scripts.reproduce cost --dataset "$dataset" --data_root "$data" --gpus "$((gpus > 0 ? gpus : 1))" \
    "${where[@]}" "${tuned[@]}" "${published[@]}" ${DETR_RATE:+--detr_rate "$DETR_RATE"}

common=(--dataset "$dataset" --data_root "$data" --checkpoint_root "$checkpoint" --comet offline "${where[@]}"
    "${preset[@]}" "${extra[@]}")
qmm=("${common[@]}" --qmm_name "$run")
detr=()
if [ ${#tuned[@]} -gt 0 ] || [ ${#preset[@]} -gt 0 ]; then
    for subset in train val; do
        stage "shards, $subset" "$python" -m datasets.make_shards --dataset "$dataset" --data_root "$data" --subset $subset
    done
fi
if [ ${#tuned[@]} -gt 0 ]; then
    stage "train_detr" "${train[@]}" train_detr.py "${common[@]}" --ex_name "$run" --resume \
        --batch_size $((32 / sharing)) "${detr_flags[@]}"
    detr=(--detr "$(ls -v "$checkpoint/$dataset/$run"/detr/epoch_*.pth | tail -n 1)")
fi
stage "train_qmm" "${train[@]}" train_qmm.py "${qmm[@]}" "${detr[@]}" --val_subset val --resume \
    --batch_size $((8 / sharing)) "${qmm_flags[@]}"
for cue in feature iou; do
    for subset in train val; do
        stage "eval_qmm, $subset, $cue" "${launch[@]}" eval_qmm.py "${qmm[@]}" --subset $subset --link_cues $cue "${link_flags[@]}"
    done
    for head in "${heads[@]}"; do
        stage "train_action_head, $head, $cue" "${train[@]}" train_action_head.py "${qmm[@]}" --link_cues $cue \
            --head_type "$head" --resume --iter_update $((64 / sharing)) \
            "${link_flags[@]}" "${head_flags[@]}"
        for topk in "${topks[@]}"; do
            for metric in "${metrics[@]}"; do
                stage "eval_map, $head, $cue, top $topk, $metric" "$python" eval_map.py "${qmm[@]}" --link_cues $cue \
                    --head_type "$head" --topk "$topk" --metric "$metric" "${link_flags[@]}" "${map_flags[@]}"
            done
        done
    done
done
summary "$checkpoint/$dataset/$run"
