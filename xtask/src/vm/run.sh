#!/bin/sh
# On each machine of a run: its address, the registry, then the command on the first.
set -u
stty -F /dev/ttyS1 raw
export PATH=/opt/amphipod/bin:$PATH HOME=/root KUBECONFIG=/var/lib/amphipod/admin.kubeconfig
number=$(hostname | tr -dc 0-9)
export NODE_IP=10.91.0.$number

ip link set lo up
ip address add "$NODE_IP/24" dev eth0 && ip link set eth0 up || exit 120
for other in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; do echo "10.91.0.$other node$other"; done >> /etc/hosts

mkdir -p /run/vm
cat > /run/vm/registry.yml <<EOF
version: 0.1
log: {level: warn, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: /opt/amphipod/registry}, maintenance: {readonly: {enabled: true}}}
http: {addr: "127.0.0.1:5000"}
EOF
cat > /run/vm/registries.yaml <<EOF
registries:
  docker.io:
    endpoints: ["http://127.0.0.1:5000"]
EOF
docker-registry serve /run/vm/registry.yml > /run/vm/registry.log 2>&1 &

# The others are there to be talked to, until the emulator ends them.
if [ "$number" != 1 ]; then exec sleep infinity; fi
set -a
. /opt/amphipod/command
