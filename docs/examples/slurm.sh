#!/usr/bin/env bash
# Records over the GPUs of several nodes: sbatch docs/examples/slurm.sh --cfg expcfg/longbench_llama2_16k_dpi.toml
# The same command goes on where a job ended. Checkout, .venv, models' cache and results are on a shared file system.
#SBATCH --job-name=gali
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=12:00:00
#SBATCH --signal=TERM@60
set -euo pipefail
cd "$SLURM_SUBMIT_DIR"

GPUS=${SLURM_GPUS_ON_NODE:-8}
export MAIN_ADDRESS MAIN_PORT GPUS
MAIN_ADDRESS=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MAIN_PORT=$((20000 + SLURM_JOB_ID % 20000))

# One launcher a node; SLURM_NODEID is the node's own, so it is read there.
exec srun --kill-on-bad-exit=1 bash -c '
    exec .venv/bin/accelerate launch \
        --multi_gpu --mixed_precision no --dynamo_backend no \
        --num_machines "$SLURM_NNODES" --num_processes "$((SLURM_NNODES * GPUS))" --machine_rank "$SLURM_NODEID" \
        --main_process_ip "$MAIN_ADDRESS" --main_process_port "$MAIN_PORT" --rdzv_backend static \
        pred.py "$@"' pred "$@"
