"""What Slurm reads before it starts: slurm.conf, gres.conf, the key, the hosts, the GPUs' device files."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path

# Settings a real cluster has in minutes are seconds here: a job that is requeued waits until its credential expired,
# one that is killed has KillWait between TERM and KILL, and a node that is silent for SlurmdTimeout is down.
# JobRequeue=0 as some sites have it: a job has to ask for it that it may be queued again.
SLURM_CONF = """\
ClusterName={name}
SlurmctldHost=controller({subnet}.254)
CommunicationParameters=NoCtldInAddrAny
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/logs/slurmctld.log
SlurmdPidFile={folder}/%n.pid
SlurmdLogFile={folder}/logs/%n.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
PropagateResourceLimits=NONE
ReturnToService=2
MinJobAge=86400
JobRequeue=0
KillWait=2
SlurmdTimeout=8
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2,bf_continue
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
{node_lines}
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime={grace_s}
PartitionName=urgent Nodes=ALL MaxTime=INFINITE PriorityTier=10
"""


@dataclass(frozen=True)
class ClusterConfig:
    """The cluster's shape. subnet: the first three numbers of its addresses; grace_s: from a pre-emption's TERM on."""

    subnet: str
    num_nodes: int = 2
    cpus_per_node: int = 4
    gpus_per_node: int = 2
    memory_mib: int = 16_000
    grace_s: int = 30

    @property
    def name(self) -> str:
        """What jobs find as SLURM_CLUSTER_NAME: another one for each cluster of this machine."""
        return f"test-{self.subnet.rpartition('.')[2]}"

    @property
    def addresses(self) -> dict[str, str]:
        """The nodes' addresses by their names n1, n2, ..."""
        return {f"n{number}": f"{self.subnet}.{number}" for number in range(1, self.num_nodes + 1)}

    def write(self, folder: Path) -> None:
        """Write all that the daemons need into `folder`, an empty one."""
        for name in ("state", "logs", "jobs", *(f"spool/{node}" for node in self.addresses)):
            (folder / name).mkdir(parents=True)
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o600)
        hosts = {"localhost": "127.0.0.1", "controller": f"{self.subnet}.254", **self.addresses}
        (folder / "hosts").write_text("".join(f"{address} {name}\n" for name, address in hosts.items()))
        resources = f"CPUs={self.cpus_per_node} RealMemory={self.memory_mib} Gres=gpu:{self.gpus_per_node}"
        nodes = [f"NodeName={name} NodeAddr={address} {resources}" for name, address in self.addresses.items()]
        text = SLURM_CONF.format(
            name=self.name, folder=folder, subnet=self.subnet, node_lines="\n".join(nodes), grace_s=self.grace_s
        )
        (folder / "slurm.conf").write_text(text)
        (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        # Slurm takes only a device file for a GPU; these are /dev/null by another name.
        gpus = [folder / f"gpu{number}" for number in range(self.gpus_per_node)]
        for gpu in gpus:
            os.mknod(gpu, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        (folder / "gres.conf").write_text("".join(f"Name=gpu File={gpu}\n" for gpu in gpus))
