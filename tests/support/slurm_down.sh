#!/usr/bin/env bash
# slurm_down.sh DIR: ends what slurm_up.sh DIR started, by its pid files.
dir=${1:?folder}
export SLURM_CONF=$dir/slurm.conf
timeout 10 scancel --me 2>/dev/null
for file in "$dir"/slurmd.n1.pid "$dir"/slurmd.n2.pid "$dir"/slurmctld.pid; do
    [ -s "$file" ] || continue
    pid=$(cat "$file")
    kill "$pid" 2>/dev/null
    for _ in $(seq 200); do
        kill -0 "$pid" 2>/dev/null && [ "$(ps -o stat= -p "$pid" | cut -c1)" != Z ] || break
        sleep 0.05
    done
done
