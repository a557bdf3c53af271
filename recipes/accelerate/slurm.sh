#!/usr/bin/env bash
# One training over two machines of eight GPUs under Slurm, started from the checkout, its environment active:
#
#   sbatch recipes/accelerate/slurm.sh recipes/sft.py --config recipes/sft_llava_7b.yaml
#   sbatch --nodes 4 --export ALL,ACCELERATE=recipes/accelerate/zero2.yaml recipes/accelerate/slurm.sh recipes/sft.py …
#
# What folders must hold stands in multi_node.sh.
#SBATCH --job-name=popen
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
set -euo pipefail
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p) # and not head, whose early end would be an error
export MASTER_ADDR
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000)) # jobs that share a machine do not meet
export NODES=$SLURM_NNODES PROCESSES=${SLURM_GPUS_ON_NODE:-8}

# one task for each machine; when one fails, all are ended
srun --kill-on-bad-exit=1 bash -c 'NODE_RANK=$SLURM_NODEID exec recipes/accelerate/multi_node.sh "$@"' multi_node "$@"
