#!/usr/bin/env bash
# One training over several machines. Run it on each of them, NODE_RANK counting from 0:
#
#   NODES=2 NODE_RANK=0 MASTER_ADDR=10.0.0.1 recipes/accelerate/multi_node.sh recipes/sft.py --config recipes/sft_llava_7b.yaml
#
# PROCESSES per machine are its GPUs (8), MASTER_PORT is 29500. ACCELERATE=recipes/accelerate/zero2.yaml launches with
# that file (also zero3.yaml, fsdp2.yaml), otherwise each process holds a whole copy (DDP).
#
# No folder needs to be shared: paths are each machine's own, so that model, data and preferences must be there, byte for
# byte the same, on each. Machine 0 alone writes the trained model. To resume, every machine needs the checkpoint: add
# --save_on_each_node true from the start, or give an output_dir that all of them share, without that option.
set -euo pipefail
: "${NODES:?of how many machines}" "${NODE_RANK:?which of them this is, from 0}" "${MASTER_ADDR:?where machine 0 is}"
port=${MASTER_PORT:-29500}
processes=${PROCESSES:-8}

if [[ -n ${ACCELERATE:-} ]]; then
    exec accelerate launch --config_file "$ACCELERATE" --num_machines "$NODES" --machine_rank "$NODE_RANK" \
        --main_process_ip "$MASTER_ADDR" --main_process_port "$port" --num_processes $((NODES * processes)) "$@"
fi
exec python -m torch.distributed.run --nnodes "$NODES" --node_rank "$NODE_RANK" --nproc_per_node "$processes" \
    --master_addr "$MASTER_ADDR" --master_port "$port" "$@"
