#!/bin/bash
# Encodes a configuration's databases into latent shards, as a job array; each of its tasks takes a share:
#
#   DATA=/folder/of/databases sbatch slurm/encode.sh configs/curriculum.yaml [KEY=VALUE ...]
#
# The databases must have been prepared (`sonoshard prepare CONFIG`, on a login node: it needs no GPU). A task that was
# killed may be submitted again, and does only what is missing.
#SBATCH --job-name=encode
#SBATCH --array=0-3
#SBATCH --nodes=1
#SBATCH --time=04:00:00
#SBATCH --signal=USR1@60
#SBATCH --requeue

source "${SLURM_SUBMIT_DIR:?submit this with sbatch, from the checkout}/slurm/job.sh" || exit 2

: "${1:?give a configuration, such as configs/busi.yaml}"
begin "$@"
on_all_nodes encode
