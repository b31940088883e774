#!/bin/bash
# Boots the guest with a folder as /payload, runs its run.sh there as root, and exits with its status (124: it never ended, 125: it never began).
# tests/vm/run.sh IMAGE PAYLOAD OUT
#
# IMAGE: what mkroot.sh printed. OUT: gets console.log (kernel), result.log (output of run.sh) and data.raw, the device under test; a data.raw that is
# there is used as it is, so that a second boot finds what the first wrote. Emulation only (TCG): it works everywhere, and timing inside means nothing.
#
# Inside: /dev/nvme0n1 is the root, /dev/nvme0n2 the payload. The device under test has a controller of its own with serial KVTIERDATA, so that it can
# be pulled out; both have a poll queue. From the environment:
#   VM_SYSTEMD=1      systemd as PID 1 (5 seconds more); else a script that only mounts
#   VM_DATA_BYTES     size of a new data.raw (256M)
#   VM_BLKDEBUG       errors that qemu's blkdebug driver injects over data.raw, by spaces, each such as event=write_aio,iotype=write,errno=5
#   VM_TIMEOUT        seconds until it is killed (300)
set -u
image=$1 payload=$2 out=$3
PATH=$PATH:/usr/sbin:/sbin
mkdir -p "$out"
rm -f "$out/payload.ext4" "$out/console.log" "$out/result.log"
[ -e "$out/data.raw" ] || truncate -s "${VM_DATA_BYTES:-256M}" "$out/data.raw" || exit 125
truncate -s 128M "$out/payload.ext4" || exit 125
mke2fs -q -t ext4 -O ^has_journal -m 0 -L PAYLOAD -E root_owner=0:0 -d "$payload" "$out/payload.ext4" || exit 125

data=driver=raw,if=none,id=data,discard=unmap,cache.direct=off,cache.no-flush=off,file.driver=file,file.filename=$out/data.raw
if [ -n "${VM_BLKDEBUG-}" ]; then
	data=driver=raw,if=none,id=data,discard=unmap,file.driver=blkdebug,file.image.driver=file,file.image.filename=$out/data.raw
	i=0
	for rule in $VM_BLKDEBUG; do
		data=$data,file.inject-error.$i.${rule//,/,file.inject-error.$i.}
		i=$((i + 1))
	done
fi
append="root=/dev/nvme0n1 rw console=ttyS0 panic=-1 quiet loglevel=4 random.trust_cpu=on mitigations=off nvme.poll_queues=1"
if [ -n "${VM_SYSTEMD-}" ]; then
	append="$append init=/lib/systemd/systemd systemd.show_status=0 systemd.log_target=console"
else
	append="$append init=/usr/local/sbin/vminit"
fi

timeout -k 5 "${VM_TIMEOUT:-300}" qemu-system-x86_64 -name kvtier-vm -M q35 -accel tcg,thread=multi,tb-size=256 -cpu max \
	-nodefaults -no-user-config -display none -no-reboot -smp 2 -m 1G \
	-drive "file=$image/root.ext4,format=raw,if=none,id=root,snapshot=on" \
	-drive "file=$out/payload.ext4,format=raw,if=none,id=payload,cache=unsafe" \
	-drive "$data" \
	-device nvme,id=nvme0,serial=KVTIERROOT,max_ioqpairs=8 \
	-device nvme-ns,drive=root,bus=nvme0,nsid=1 -device nvme-ns,drive=payload,bus=nvme0,nsid=2 \
	-device nvme,id=nvme1,serial=KVTIERDATA,max_ioqpairs=8 -device nvme-ns,drive=data,bus=nvme1,nsid=1 \
	-object rng-random,id=rng0,filename=/dev/urandom -device virtio-rng-pci,rng=rng0 \
	-kernel "$image/vmlinuz" -append "$append" -serial "file:$out/console.log" -serial "file:$out/result.log" < /dev/null > "$out/qemu.log" 2>&1
sed -i 's/\r$//' "$out/result.log" 2> /dev/null
rc=$(sed -n 's/^VMTEST-EXIT=\([0-9]*\)$/\1/p' "$out/result.log" 2> /dev/null | tail -n 1)
exit "${rc:-124}"
