"""What ranks speak to each other over: NCCL or gloo, network interfaces, the host's name. Nothing is sent."""

import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

from tools.doctor.finding import Finding, fine, mend, note
from tools.doctor.gpus import torch_facts
from tools.doctor.subprocesses import answer_of

INFINIBAND = Path("/sys/class/infiniband")
SHARED_MEMORY = Path("/dev/shm")
MIN_SHARED_BYTES = 256 << 20  # docker gives 64 MB, which NCCL outgrows at a few ranks


def check_collectives() -> Iterator[Finding]:
    """Check that torch has NCCL for its GPUs, or gloo where there are none."""
    facts = torch_facts()
    if "problem" in facts:
        yield note("NCCL", "torch does not load, so it cannot be asked")
    elif facts["gpus"] and not facts["has_nccl"]:
        yield mend("NCCL", "this torch has none, and GPUs speak through it", "install torch from PyTorch's own index")
    elif facts["gpus"]:
        yield fine("NCCL", facts["nccl"])
    elif not facts["has_gloo"]:
        yield mend(
            "gloo", "this torch has none, and ranks without a GPU speak through it", "install PyTorch's own build"
        )
    else:
        is_there = (
            "there, too, and is asked on a GPU" if facts["has_nccl"] else "not in this torch, and not needed here"
        )
        yield fine("gloo", f"there, for ranks without a GPU; NCCL is {is_there}")


def check_interfaces() -> Iterator[Finding]:
    """Check that the interfaces which NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME name are here."""
    names = [name for _, name in socket.if_nameindex()]
    here = ", ".join(names) or "none"
    is_wrong = False
    for variable in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"):
        value = os.environ.get(variable, "")
        if value.startswith("^") or not value:
            continue
        wanted = value.removeprefix("=").split(",")
        is_exact = variable.startswith("GLOO") or value.startswith("=")  # else NCCL takes the beginning of a name
        found = [want for want in wanted if any(n == want or (not is_exact and n.startswith(want)) for n in names)]
        if not found or (is_exact and len(found) < len(wanted)):
            is_wrong = True
            yield mend("interfaces", f"{variable}={value}, but here are: {here}", f"unset it, or name one of {here}")
    if not is_wrong:
        yield fine("interfaces", here)


def check_infiniband() -> Iterator[Finding]:
    """Say whether there is InfiniBand."""
    cards = sorted(path.name for path in INFINIBAND.iterdir()) if INFINIBAND.is_dir() else []
    if cards:
        yield fine("InfiniBand", ", ".join(cards))
    elif num_nodes() > 1:
        yield note("InfiniBand", "none: nodes speak over Ethernet", "zero.stage 1 or 2 sends less than 3")
    else:
        yield fine("InfiniBand", "none; only a job of several nodes would gain by it")


def check_host_name() -> Iterator[Finding]:
    """Check, in a job of several nodes, that others can reach this one by the address that its name has."""
    name = socket.gethostname()
    if num_nodes() == 1:
        yield fine("host name", f"{name}; its address matters only in a job of several nodes")
        return
    answer = answer_of(["getent", "ahosts", name])  # what the C library, and so gloo, takes the name for
    addresses = list(dict.fromkeys(line.split()[0] for line in answer.stdout.splitlines() if line.strip()))
    if not addresses:
        yield mend("host name", f"{name} has no address", "ask for an entry in the cluster's DNS or /etc/hosts")
    elif all(re.match(r"127\.|::1$", address) for address in addresses):
        advice = "export GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME, the interface between nodes, or mend /etc/hosts"
        is_set = bool(os.environ.get("GLOO_SOCKET_IFNAME"))
        found = f"{name} is {', '.join(addresses)}, which no other node can reach"
        yield note("host name", f"{found}; GLOO_SOCKET_IFNAME is set") if is_set else mend("host name", found, advice)
    else:
        yield fine("host name", f"{name} is {', '.join(addresses)}")


def check_shared_memory() -> Iterator[Finding]:
    """Check the size of /dev/shm, through which NCCL joins the GPUs of a node."""
    if not SHARED_MEMORY.is_dir():
        yield note("/dev/shm", "not there", "NCCL needs it between the GPUs of one node")
        return
    about = os.statvfs(SHARED_MEMORY)
    found = f"{about.f_bavail * about.f_frsize / 1e9:.1f} GB free"
    if about.f_bavail * about.f_frsize < MIN_SHARED_BYTES:
        yield note("/dev/shm", found, "NCCL needs more between GPUs of one node; in docker: --shm-size=8g")
    else:
        yield fine("/dev/shm", found)


def num_nodes() -> int:
    """Return how many nodes this job has; 1 outside a job."""
    value = os.environ.get("SLURM_JOB_NUM_NODES", "1")
    return int(value) if value.isdecimal() else 1
