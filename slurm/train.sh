#!/bin/bash
# Trains the stages of any configuration whose databases are encoded (by encode.sh, say):
#
#   DATA=/folder/of/databases sbatch slurm/train.sh my.yaml [KEY=VALUE ...]
#
# With fewer nodes than it was submitted for it goes on as well, if it may: sbatch --nodes=1-4 slurm/train.sh ...
#SBATCH --job-name=train
#SBATCH --nodes=1
#SBATCH --time=24:00:00      # when it is over, the job saves, is queued again, and goes on at the very next sample
#SBATCH --signal=USR1@120    # seconds that saving has
#SBATCH --requeue            # likewise when a node fails, or a more urgent job takes it

source "${SLURM_SUBMIT_DIR:?submit this with sbatch, from the checkout}/slurm/job.sh" || exit 2

: "${1:?give a configuration, such as configs/busi.yaml}"
begin "$@"
on_all_nodes train
