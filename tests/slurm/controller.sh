# The cluster's controller, pid 1 of its own namespaces: a switch for the nodes' cables, munged and slurmctld.
# bash controller.sh FOLDER SUBNET. TERM, which also comes when the process that started the cluster dies, ends the
# controller and takes FOLDER with it.
set -eu
folder=$1 subnet=$2
end() {
    kill -KILL $(jobs -p) || true
    wait
    # Not once: the nodes end at the same time, and may write until they have.
    for _ in {1..50}; do rm -rf "$folder" && break; sleep 0.1; done
    exit
}
trap end TERM

hostname controller
mount --bind "$folder/hosts" /etc/hosts
ip link set lo up
ip link add switch type bridge
ip address add "$subnet.254/24" dev switch
ip link set switch up
echo ready

munged --foreground --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
    --seed-file="$folder/munge.seed" --log-file="$folder/logs/munged.log" &
until [ -S "$folder/munge.socket" ]; do sleep 0.02; done
slurmctld -D -f "$folder/slurm.conf" &
# Where one of the two ends, so does the controller; the folder stays then, for its logs.
wait -n
