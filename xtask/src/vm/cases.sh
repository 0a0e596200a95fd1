#!/bin/sh
# What must hold on a machine with systemd and cgroup v2 alone. Each case is a function; a failed one is named, and the
# rest goes on. Names of cases as arguments run those only.
set -u
SLOWNESS=${AMPHIPOD_SLOWNESS:-20}
failed=0

# ---- help ----

# Tries a command until it succeeds; the first argument is how long that takes on a real machine at most, in seconds.
within() {
    deadline=$(($(date +%s) + $1 * SLOWNESS)); shift
    while ! "$@" > /run/vm/last 2>&1; do
        if [ "$(date +%s)" -gt "$deadline" ]; then echo "  not in time: $*"; tail -n 5 /run/vm/last | sed 's/^/    /'; return 1; fi
        sleep 0.5
    done
}

say() { echo "  $*"; return 1; }
ready() { [ "$(kubectl get pod "$1" -o 'jsonpath={.status.conditions[?(@.type=="Ready")].status}')" = True ]; }
in_pod() { name=$1; shift; kubectl exec "$name" -- "$@"; }
container_of() { kubectl get pod "$1" -o 'jsonpath={.status.containerStatuses[0].containerID}'; }
uid_of() { kubectl get pod "$1" -o 'jsonpath={.metadata.uid}'; }

# A pod of the test image that sleeps; more of its specification as YAML flow mappings: the pod's, the container's.
sleeper() {
    kubectl apply -f - > /dev/null <<EOF
{apiVersion: v1, kind: Pod, metadata: {name: $1, labels: {app: $1}}, spec: {terminationGracePeriodSeconds: 1, ${2:-}
 containers: [{name: main, image: busybox, command: [sleep, "100000"], ${3:-} }]}}
EOF
}

# A unit of a file, not a transient one: what a killed server leaves in its cgroup (the keeper of DNS' sockets) would keep
# the name of that from being given again.
start() {
    cat > /run/systemd/system/amphipod.service <<EOF
[Service]
ExecStart=$(command -v amphipod) up --node-ip $NODE_IP --registries /run/vm/registries.yaml $*
Environment="PATH=$PATH"
Delegate=yes
KillMode=process
LimitNOFILE=65536
TasksMax=infinity
StandardError=append:/run/vm/amphipod.log
EOF
    systemctl daemon-reload && systemctl start amphipod
}

node_ready() { kubectl get nodes --no-headers 2> /dev/null | grep -q ' Ready '; }

# ---- cases ----

node_becomes_ready() {
    within 15 node_ready
}

# Of pods that begin at once none may trip over a folder that another has just made.
pods_started_at_once() {
    for number in 1 2 3 4 5 6; do sleeper "at-once-$number" & done; wait
    for number in 1 2 3 4 5 6; do within 20 ready "at-once-$number" || return 1; done
    kubectl get events | grep -E 'File exists|Failed ' && say 'a pod failed at first' && return 1
    kubectl delete pod -l 'app in (at-once-1,at-once-2,at-once-3,at-once-4,at-once-5,at-once-6)' > /dev/null
}

limits_are_set() {
    sleeper limits '' 'resources: {limits: {memory: 48Mi, cpu: 250m}}'
    within 15 ready limits || return 1
    group=$(find /sys/fs/cgroup -type d -path "*pod$(uid_of limits)/main-0")
    [ "$(cat "$group/memory.max")" = $((48 << 20)) ] || say "memory.max is $(cat "$group/memory.max")" || return 1
    [ "$(cat "$group/cpu.max")" = '25000 100000' ] || say "cpu.max is $(cat "$group/cpu.max")" || return 1
    in_pod limits sh -c 'echo max > /sys/fs/cgroup/memory.max' 2> /dev/null && say 'the container lifted its limit' && return 1
    # shellcheck disable=SC2016 # the container's shell reads it
    in_pod limits sh -c 'x=xxxxxxxx; while true; do x=$x$x; done' > /dev/null 2>&1
    [ $? = 137 ] || say 'want of memory did not end the process' || return 1
    kubectl delete pod limits > /dev/null
    [ ! -d "$group" ] || say "$group stays behind"
}

# The disk of this machine has a driver: whoever may open it reads it.
devices_are_refused() {
    sleeper devices
    within 15 ready devices || return 1
    numbers=$(stat -c '%Hr %Lr' /dev/vda)
    said=$(in_pod devices sh -c "mknod /tmp/disk b $numbers && dd if=/tmp/disk bs=512 count=1 2>&1 >/dev/null" 2> /dev/null)
    case $said in *'not permitted'*) ;; *) say "a default container opened the disk: $said" || return 1 ;; esac
    in_pod devices sh -c 'echo x > /dev/null; head -c 1 /dev/zero /dev/urandom /dev/full > /dev/null' || return 1
    sleeper privileged '' 'securityContext: {privileged: true}'
    within 15 ready privileged || return 1
    in_pod privileged sh -c "mknod /tmp/disk b $numbers; dd if=/tmp/disk of=/dev/null bs=512 count=1 2>/dev/null" \
        || say 'a privileged container cannot open the disk' || return 1
    kubectl delete pod devices privileged > /dev/null
}

exec_and_logs() {
    kubectl run talker --image=busybox --restart=Never -- sh -c 'echo from the log; sleep 100000' > /dev/null
    within 15 ready talker || return 1
    [ "$(in_pod talker sh -c 'echo $((6 * 7))')" = 42 ] || return 1
    [ "$(echo through | kubectl exec -i talker -- cat)" = through ] || return 1
    in_pod talker sh -c 'exit 7' 2> /dev/null; [ $? = 7 ] || return 1
    [ "$(kubectl logs talker)" = 'from the log' ] || say "$(kubectl logs talker)" || return 1
    # shellcheck disable=SC2009 # its words are what is looked for
    ps ax -o args | grep -q '^amphipod-pod default/talker$' || say 'ps does not say whose the process is'
}

# What a daemon opens ends with it: neither the pod processes nor what they start may inherit anything.
descriptors_close_on_exec() {
    for pid in $(systemctl show -p MainPID --value amphipod) $(pgrep -f '^amphipod-pod '); do
        for info in "/proc/$pid/fdinfo/"*; do
            number=${info##*/}
            flags=$(sed -n 's/^flags:[[:space:]]*//p' "$info" 2> /dev/null)
            # The octal digit before the last six holds O_CLOEXEC as its second bit.
            [ "$number" -lt 3 ] || [ -z "$flags" ] || [ $((0$flags & 02000000)) != 0 ] \
                || say "$pid: descriptor $number stays open: $(readlink "/proc/$pid/fd/$number")" || return 1
        done
    done
}

apparmor_confines() {
    sleeper confined
    within 15 ready confined || return 1
    for who in 1 self; do
        profile=$(in_pod confined cat "/proc/$who/attr/current")
        [ "$profile" = 'amphipod-default (enforce)' ] || say "$who: $profile" || return 1
    done
    sleeper bare 'securityContext: {appArmorProfile: {type: Unconfined}},'
    within 15 ready bare || return 1
    [ "$(in_pod bare cat /proc/self/attr/current)" = unconfined ] || return 1
    printf 'profile only-tmp flags=(attach_disconnected) { file, deny /tmp/no* w, }\n' | apparmor_parser --replace || return 1
    sleeper named '' 'securityContext: {appArmorProfile: {type: Localhost, localhostProfile: only-tmp}}'
    within 15 ready named || return 1
    in_pod named touch /tmp/no 2> /dev/null && say 'the named profile does not hold' && return 1
    in_pod named touch /tmp/yes || return 1
    kubectl delete pod confined bare named > /dev/null
}

users_of_its_own() {
    kubectl create configmap words --from-literal=word=hello > /dev/null
    sleeper own 'hostUsers: false, volumes: [{name: e, emptyDir: {}}, {name: c, configMap: {name: words}}],' \
        'volumeMounts: [{name: e, mountPath: /e}, {name: c, mountPath: /c}, {name: e, mountPath: /s, subPath: part}],
         securityContext: {procMount: Unmasked}'
    within 20 ready own || { kubectl describe pod own | tail -n 8; return 1; }
    map=$(in_pod own cat /proc/self/uid_map | tr -s ' ')
    first=${map# 0 }; first=${first% 65536}
    [ "$first" -ge 65536 ] || say "uid_map: $map" || return 1
    [ "$(in_pod own sh -c 'id -u; cat /c/word; echo mine > /e/file; stat -c %u /e/file /etc/hosts /bin/busybox /s')" = "0
hello0
0
0
0" ] || say "$(in_pod own stat -c '%u %n' /e/file /etc/hosts /bin/busybox /s 2>&1)" || return 1
    [ "$(stat -c %u "/var/lib/amphipod/volumes/$(uid_of own)/e/file")" = 0 ] || say 'the volume is not mapped' || return 1
    # shellcheck disable=SC2009
    ps ax -o uid,args | grep -q "^ *$first sleep 100000" || say 'its root is somebody on the host' || return 1
    in_pod own sh -c 'echo x > /proc/sys/kernel/core_pattern' 2> /dev/null && say 'core_pattern was written' && return 1
    kubectl delete pod own > /dev/null; kubectl delete configmap words > /dev/null
}

services_by_address_and_name() {
    kubectl create deployment web --image=nginx:1.10 --replicas=2 > /dev/null
    kubectl expose deployment web --port=80 > /dev/null
    within 30 kubectl rollout status deployment/web --timeout=1s || return 1
    sleeper client
    within 15 ready client || return 1
    address=$(kubectl get service web -o 'jsonpath={.spec.clusterIP}')
    for target in "$address" web web.default.svc.cluster.local; do
        within 10 sh -c "kubectl exec client -- wget -q -O - http://$target/ | grep -q 'Welcome to nginx'" || return 1
    done
    within 10 sh -c "curl -fsS http://$address/ | grep -q 'Welcome to nginx'" || return 1
}

# The agent dies; pods run on, and the next one takes them over.
kill_and_take_over() {
    before=$(container_of client)
    kill -KILL "$(systemctl show -p MainPID --value amphipod)"
    within 5 sh -c '! systemctl is-active amphipod'
    pgrep -f '^amphipod-pod default/client' > /dev/null || say 'a pod process died with the agent' || return 1
    start
    within 20 node_ready || return 1
    within 20 ready client || return 1
    [ "$(container_of client)" = "$before" ] || say 'its container began anew' || return 1
    within 10 sh -c "kubectl exec client -- wget -q -O - http://web/ | grep -q 'Welcome to nginx'"
}

# Nothing of it stays: no process, cgroup, mount, link.
reset_leaves_nothing() {
    systemctl stop amphipod || return 1
    amphipod reset > /run/vm/reset 2>&1 || { cat /run/vm/reset; return 1; }
    pgrep -f '^amphipod-pod' && say 'processes stay behind' && return 1
    find /sys/fs/cgroup -type d \( -name 'pod*-*' -o -name kubepods -o -name amphipod \) | grep . && say 'cgroups stay behind' && return 1
    grep -E 'amphipod/(pods|containers|volumes)| /run/amphipod' /proc/self/mounts && say 'mounts stay behind' && return 1
    ip -o link | grep amphi && say 'links stay behind' && return 1
    tc qdisc show | grep clsact && say 'filters stay behind' && return 1
    return 0
}

# ---- run ----

ALL='node_becomes_ready pods_started_at_once limits_are_set devices_are_refused exec_and_logs
     descriptors_close_on_exec apparmor_confines
     users_of_its_own services_by_address_and_name kill_and_take_over reset_leaves_nothing'
start
for case in ${*:-$ALL}; do
    began=$(date +%s)
    if "$case"; then verdict=ok; else verdict=FAILED; failed=$((failed + 1)); fi
    echo "$verdict $case ($(($(date +%s) - began)) s)"
done
if [ "$failed" != 0 ]; then echo "--- the daemon's last words:"; tail -n 30 /run/vm/amphipod.log; fi
exit "$failed"
