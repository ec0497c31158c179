#!/bin/bash
# Trains on three breast databases one after another, and a ControlNet on all of them:
#
#   DATA=/folder/of/databases sbatch slurm/curriculum.sh [KEY=VALUE ...]
#   DATA=/folder/of/databases sbatch --nodes=2 --gpus-per-node=4 slurm/curriculum.sh batch.global_size=32
#
# Account, partition and GPUs: options of sbatch as above, or SBATCH_* variables; the rest: slurm/site.sh.example.
#SBATCH --job-name=curriculum
#SBATCH --nodes=1
#SBATCH --time=24:00:00      # when it is over, the job saves, is queued again, and goes on at the very next sample
#SBATCH --signal=USR1@120    # seconds that saving has
#SBATCH --requeue            # likewise when a node fails, or a more urgent job takes it

source "${SLURM_SUBMIT_DIR:?submit this with sbatch, from the checkout}/slurm/job.sh" || exit 2

begin configs/curriculum.yaml "$@"
prepare_and_encode
on_all_nodes train
