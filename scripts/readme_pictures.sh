#!/usr/bin/env bash
# The README's pictures in docs/images, from a finished demo: bash scripts/readme_pictures.sh [VIDEO]
#
# VIDEO is a held-out video's name (default: val_0025, with three people). $DATA_ROOT and
# $CHECKPOINT_ROOT as in demo.sh; $RUN (demo) names the run and $HEAD (time_ecd:cat) its head.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/stages.sh"
data=${DATA_ROOT:-data} checkpoint=${CHECKPOINT_ROOT:-checkpoint} run=${RUN:-demo}
folder=$checkpoint/synthetic/$run
newest() { ls -t "$@" | head -n 1; }
video=${1:-val_0025}
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

flags=(--dataset synthetic --data_root "$data" --checkpoint_root "$checkpoint" --qmm_name "$run" --threads 1 --comet disabled)
flags+=("${amp[@]}" --linker robust) # as in the demo
"$python" eval_qmm.py "${flags[@]}" --linker published --link_cues iou
"$python" eval_qmm.py "${flags[@]}" --linker published --plot # both link cues by one linker
cp "$(newest -d "$folder"/results/eval_qmm-val-*-feature*/)/motion_recall@0.5.png" docs/images/motion_recall.png
"$python" eval_qmm.py "${flags[@]}" --plot --plot_video "$video"
cp "$(newest -d "$folder"/results/eval_qmm-val-*-feature-robust*/)/tubes.png" docs/images/tubes.png

"$python" predict.py "$data/synthetic/videos/$video.avi" "${amp[@]}" --threads 1 --out "$out" \
    --encoder "$(newest "$folder"/encoder/epoch_*.pth)" --head "$(newest "$folder/head/${HEAD:-time_ecd:cat}"/epoch_*.pth)"
"$python" -m scripts.gif "$out/$video.mp4" docs/images/predicted.gif
ls -l docs/images
