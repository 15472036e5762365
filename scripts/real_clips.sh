#!/usr/bin/env bash
# The whole chain on real videos of UCF101-24, a few of them, for training and evaluation alike: it shows that the chain
# runs on real video, not how well it generalises (the detector starts from random weights).
#
#     bash scripts/real_clips.sh DATA VIDEO...
#     bash scripts/real_clips.sh data/ucf101-24 SoccerJuggling/v_SoccerJuggling_g23_c01 SoccerJuggling/v_SoccerJuggling_g24_c01
#
# DATA holds pyannot.pkl (or finalAnnots.mat) and videos/<class>/<name>.avi. Everything goes to $OUT (checkpoint/real_clips).
set -euo pipefail
[ $# -ge 2 ] || { echo "usage: bash scripts/real_clips.sh DATA VIDEO..." >&2; exit 2; }
fail() { echo "error: $*" >&2; exit 2; }
data=$(cd "$1" 2>/dev/null && pwd) || fail "$1: no such folder; 'Data sets' in README.md says what it holds and where to get it"
shift
[ -f "$data/pyannot.pkl" ] || [ -f "$data/finalAnnots.mat" ] ||
    fail "$data: holds neither pyannot.pkl nor finalAnnots.mat; 'Data sets' in README.md says where to get them"
for video in "$@"; do [ -f "$data/videos/$video.avi" ] || fail "$data/videos/$video.avi: no such video"; done
source "$(dirname "${BASH_SOURCE[0]}")/stages.sh"
out=${OUT:-$root/checkpoint/real_clips}
mkdir -p "$out"
printf '%s\n' "$@" > "$out/videos.txt"
cat > "$out/real_clips.yml" <<YML
name: real_clips
root: "$data"
format: ucf101-24
annotations: $([ -f "$data/pyannot.pkl" ] && echo pyannot.pkl || echo finalAnnots.mat)
frames: videos/{name}.avi
splits: {all: "$out/videos.txt"}
labels: $(sed -n '/^labels:/,/\]/p' "$root/datasets/projects/ucf101-24.yml" | sed '1s/^labels: //')
defaults: {qmm_psn_score_th: 0.75, qmm_iou_th: 0.2, psn_score_th: 0.5, iou_th: 0.2, sim_th: 0.25, filter_length: 16, time_cycle: 800}
YML
common=(--dataset "$out/real_clips.yml" --checkpoint_root "$out" --comet disabled) folder=$out/real_clips/qmm

stage "shards" "$python" -m datasets.make_shards --dataset "$out/real_clips.yml" --subset all --shards_path "$out/shards"
stage "the detector, from random weights" "$python" train_detr.py "${common[@]}" "${machine[@]}" "${small_detr[@]}" ${amp[@]+"${amp[@]}"} \
    --subset all --val_subset all --shards_path "$out/shards" --ex_name qmm --epochs 8 --clips_per_video 192 --batch_size 8
stage "query matching" "$python" train_qmm.py "${common[@]}" "${machine[@]}" --subset all \
    --detr "$folder/detr/epoch_8.pth" --clips_per_video 32
stage "following people" "$python" eval_qmm.py "${common[@]}" "${machine[@]}" --subset all
stage "the action head" "$python" train_action_head.py "${common[@]}" "${machine[@]}" --subset all --val_subset all
stage "action tubes" "$python" eval_map.py "${common[@]}" "${machine[@]}" --subset all
for video in "$@"; do
    stage "an annotated video" "$python" predict.py "$data/videos/$video.avi" "${machine[@]}" \
        --encoder "$folder/encoder/epoch_20.pth" --head "$folder/head/vanilla/epoch_20.pth" --out "$folder/results"
done
summary "$folder"
