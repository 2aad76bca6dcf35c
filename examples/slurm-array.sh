#!/bin/sh
# sbatch --array=1-8 slurm-array.sh; when all have ended: lipcert merge shards/* --output results
#SBATCH --cpus-per-task=4
#SBATCH --mem=8G
#SBATCH --time=04:00:00
set -eu
shard="$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT"
folder="shards/$SLURM_ARRAY_TASK_ID"

# A job that was requeued goes on where it was.
resume=""
for journal in "$folder"/journal*.jsonl; do
    [ -e "$journal" ] && resume="--resume"
done
lipcert certify model.onnx --data digits --eps 0.1,0.3 --shard "$shard" --output "$folder" \
    --workers "$SLURM_CPUS_PER_TASK" $resume
