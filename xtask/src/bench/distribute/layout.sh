#!/bin/bash
# Measures one transfer in network namespaces: COUNT servers behind one downlink.
#
#   layout.sh BINARY COUNT MIB DOWNLINK_MBIT NIC_MBIT [EVENT]
#
# One namespace is the switch (a bridge), one the mirror, one each server; every end of a link has a
# `tc tbf`. The mirror's own end is the zone's downlink: what it has sent is what crossed it.
# EVENT, after a third of the time: kill-head, kill-leader, slow (the last server gets a tenth of the
# NIC from the start).
# Prints the time until all have the verified file, divided by max(size ÷ downlink, size ÷ NIC), and
# the bytes through the downlink divided by the size. Files are kept in memory.
set -eu
binary=$1 count=$2 mib=$3 downlink=$4 nic=$5 event=${6:-none}
tag=cw$$
dir=$(mktemp -d /dev/shm/$tag.XXXXXX)
pids=""
clean() {
    for pid in $pids; do kill -9 "$pid" 2>/dev/null || true; done
    for ns in $(ip netns list | awk '{print $1}' | grep "^$tag-" || true); do ip netns del "$ns"; done
    rm -rf "$dir"
}
trap clean EXIT
tbf() { ip netns exec "$1" tc qdisc add dev "$2" root tbf rate "$3"mbit burst 32kb latency 40ms; }
# join NAMESPACE ADDRESS RATE_TO_SWITCH RATE_FROM_SWITCH
join() {
    ip netns add "$1"
    ip -n "$tag-sw" link add "p${2##*.}" type veth peer name eth0 netns "$1"
    ip -n "$tag-sw" link set "p${2##*.}" master br0 up
    ip -n "$1" addr add "$2/24" dev eth0
    ip -n "$1" link set eth0 up
    ip -n "$1" link set lo up
    tbf "$1" eth0 "$3"
    tbf "$tag-sw" "p${2##*.}" "$4"
}
ip netns add "$tag-sw"
ip -n "$tag-sw" link add br0 type bridge
ip -n "$tag-sw" link set br0 up
join "$tag-m" 10.77.0.250 "$downlink" 1000
for i in $(seq 1 "$count"); do
    rate=$nic
    if [ "$event" = slow ] && [ "$i" = "$count" ]; then rate=$((nic / 10)); fi
    join "$tag-$i" "10.77.0.$i" "$rate" "$rate"
    echo "s$i=10.77.0.$i:7417" >>"$dir/peers"
done
"$binary" make "$dir" $((mib * 1048576))
ip netns exec "$tag-m" "$binary" mirror "$dir" 10.77.0.250:80 2>"$dir/mirror.log" &
pids="$pids $!"
for i in $(seq 1 "$count"); do
    ip netns exec "$tag-$i" "$binary" node "$dir" "s$i" "10.77.0.$i:7417" \
        http://10.77.0.250/ 2>"$dir/s$i.log" &
    pids="$pids $!"
    eval "pid_$i=$!"
done
echo s1 >"$dir/leader"
for _ in $(seq 400); do
    if [ "$(ls "$dir" | grep -c '^ready-')" -ge "$count" ]; then break; fi
    sleep 0.05
done
if [ "$(ls "$dir" | grep -c '^ready-')" -lt "$count" ]; then
    echo "the servers do not start:"
    tail -n 3 "$dir"/*.log
    exit 1
fi
sent() { ip netns exec "$tag-m" tc -s qdisc show dev eth0 | awk '/Sent/ {print $2; exit}'; }
before=$(sent)
start=$(date +%s%3N)
touch "$dir/go"
limit=$(awk "BEGIN {d=$downlink<$nic?$downlink:$nic; print $mib*1048576*8/(d*1e3)}")
gone=0
case "$event" in kill-*)
    sleep "$(awk "BEGIN {print $limit/3000}")"
    # A head is a server that speaks with the mirror. The leader is another one, unless it is to die.
    for i in $(seq 1 "$count"); do
        if ip netns exec "$tag-$i" ss -Htn state established dst 10.77.0.250 | grep -q .; then
            head=$i
        fi
    done
    if [ "$event" = kill-leader ]; then victim=1; else victim=$head; fi
    if [ "$event" = kill-head ] && [ "$head" = 1 ]; then
        # Leadership goes elsewhere first.
        echo s2 >"$dir/leader"
        sleep 1.5
    fi
    eval "kill -9 \$pid_$victim"
    gone=1
    echo "killed s$victim (head s$head) at $(($(date +%s%3N) - start)) ms"
    if [ "$event" = kill-leader ]; then
        # An election.
        sleep 1
        echo s2 >"$dir/leader"
    fi
    ;;
esac
while [ "$(ls "$dir" | grep -c '^done-s[0-9]*$')" -lt $((count - gone)) ]; do
    sleep 0.05
    if [ $(($(date +%s%3N) - start)) -gt 120000 ]; then
        echo "late: $(ls "$dir" | grep '^done-' | tr '\n' ' ')"
        tail -n 3 "$dir"/*.log
        exit 1
    fi
done
after=$(sent)
ends=$(for i in $(seq 1 "$count"); do
    [ -f "$dir/done-s$i" ] && echo $(($(cat "$dir/done-s$i") - start)); done | sort -n | tr '\n' ' ')
last=${ends% }; last=${last##* }
cpu=$(ps -o cputimes= -p "$(echo $pids | tr ' ' ',')" 2>/dev/null | awk '{s+=$1} END {print s}')
awk "BEGIN {printf \"servers %d  %s/%s Mbit/s  %s MiB  %s: ratio %.3f  wan %.4f  cpu %s s  last %d ms  limit %d ms\n\",
    $count, \"$downlink\", \"$nic\", \"$mib\", \"$event\", $last/$limit, ($after-$before)/($mib*1048576), \"$cpu\", $last, $limit}"
echo "ends: $ends"
if [ -n "${KEEP_LOGS:-}" ]; then cp "$dir"/*.log "$KEEP_LOGS"/; fi
