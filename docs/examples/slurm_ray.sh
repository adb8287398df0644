#!/usr/bin/env bash
# A Ray cluster for one run on several nodes: sbatch docs/examples/slurm_ray.sh --cfg expcfg/paper.toml
# The same command goes on where a job ended. Checkout, .venv, home, models' cache and results are shared.
#SBATCH --job-name=gali-ray
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=12:00:00
#SBATCH --signal=B:TERM@60
set -euo pipefail
cd "$SLURM_SUBMIT_DIR"

HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
PORT=$((20000 + SLURM_JOB_ID % 20000))
export RAY_ADDRESS=$HEAD:$PORT RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
[ -f ~/.ray/auth_token ] || .venv/bin/ray get-auth-token --generate > /dev/null

srun --nodes=1 --ntasks=1 --nodelist="$HEAD" --overlap \
    .venv/bin/ray start --head --port="$PORT" --include-dashboard=false --block &
sleep 20
if [ "$SLURM_NNODES" -gt 1 ]; then
    srun --nodes=$((SLURM_NNODES - 1)) --ntasks=$((SLURM_NNODES - 1)) --exclude="$HEAD" --overlap \
        .venv/bin/ray start --address="$RAY_ADDRESS" --block &
    sleep 20
fi

# The run is on the head's node. SLURM's signal before the job's end ends it; the cluster ends with this script.
srun --nodes=1 --ntasks=1 --nodelist="$HEAD" --overlap .venv/bin/python pred.py --launcher ray "$@" &
RUN=$!
trap 'kill -TERM "$RUN"' TERM
wait "$RUN" || wait "$RUN" # the first one may have been interrupted by the signal
