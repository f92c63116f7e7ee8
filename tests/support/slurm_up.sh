#!/usr/bin/env bash
# slurm_up.sh DIR: a two-node Slurm on 127.0.0.1 for tests, as root: no systemd, no cgroups, no
# munge. Then: export SLURM_CONF=DIR/slurm.conf. A fresh DIR for each cluster.
set -eu
dir=${1:?folder}
host=$(hostname -s)
mkdir -p "$dir"/{state,log,spool.n1,spool.n2}
chmod 755 "$dir"
read -r controller node1 node2 < <(python3 - <<'PYTHON'
import socket

sockets = [socket.socket() for _ in range(3)]
for one in sockets:
    one.bind(("127.0.0.1", 0))
print(*[one.getsockname()[1] for one in sockets])
PYTHON
)
cat >"$dir/slurm.conf" <<CONF
ClusterName=t
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$controller
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
# a requeued job waits until its old credential has expired
AuthInfo=cred_expire=5
CredType=cred/none
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool.%n
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.%n.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd.%n.log
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
MpiDefault=none
SwitchType=switch/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=2,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
KillWait=30
InactiveLimit=0
MinJobAge=300
SlurmdTimeout=10
SlurmctldTimeout=10
MessageTimeout=10
JobRequeue=1
SlurmdParameters=config_overrides
NodeName=n[1-2] NodeHostname=$host NodeAddr=127.0.0.1 Port=[$node1,$node2] CPUs=2 RealMemory=2000
PartitionName=main Nodes=n[1-2] Default=YES MaxTime=60 State=UP
CONF
export SLURM_CONF=$dir/slurm.conf
slurmctld -c
for node in n1 n2; do slurmd -N "$node"; done
for _ in $(seq 200); do
    [ "$(sinfo -h -N -o %t 2>/dev/null | sort -u | tr -d '\n')" = idle ] && exit 0
    sleep 0.1
done
sinfo -N >&2
exit 1
