# A node of the cluster, pid 1 of its own namespaces: slurmd and the jobs. bash node.sh FOLDER NAME ADDRESS
set -eu
folder=$1 name=$2 address=$3

hostname "$name"
mount --bind "$folder/hosts" /etc/hosts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
ip link set lo up
echo ready
# The cable can be plugged in only once the namespace is there: the cluster answers when it is.
read -r _
ip address add "$address/24" dev eth0
ip link set eth0 up
# Not exec: pid 1 must reap what the jobs leave behind, which bash does and slurmd does not.
slurmd -D -f "$folder/slurm.conf" </dev/null &
wait
