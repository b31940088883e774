#!/bin/bash
# Makes the guest's kernel and root file system, once: prints the folder that holds vmlinuz and root.ext4.
#
# All of it comes from Debian packages, by name, so it needs the network that once (about 100 MB). It is kept in
# ${XDG_CACHE_HOME:-~/.cache}/kvtier/vm-VERSION, where VERSION follows from this script: change it, and another image is made. Older ones
# are left alone. Two that run at once do not disturb each other: the folder appears whole. Root is not needed where users may make
# namespaces (mmdebstrap finds out).
#
# Needs mmdebstrap and mke2fs (tests/deps.sh --vm).
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
suite=bookworm
kernel=linux-image-cloud-amd64 # small, NVMe and ext4 built in: no initrd
# what the binaries link, what the cases call, and systemd for those that want it as PID 1
packages=systemd,dbus,e2fsprogs,udev,procps,util-linux,jq,libsystemd0,libprotobuf-c1,libsodium23,libinih1,libjansson4,liburing2,libxxhash0,libzstd1,liblz4-1

version=$(sha256sum < "$0" | cut -c 1-12)
dest=${XDG_CACHE_HOME:-$HOME/.cache}/kvtier/vm-$version
if [ -e "$dest/root.ext4" ]; then
	echo "$dest"
	exit 0
fi

say() {
	echo "vm: $*" >&2
}
say "making the guest's image in $dest (once, half a minute)"
mkdir -p "$(dirname "$dest")"
work=$(mktemp -d "${TMPDIR:-/tmp}/kvtier-vm.XXXXXX")
part=$(mktemp -d "$dest.XXXXXX")
trap 'rm -rf "$work" "$part"' EXIT
# in a user namespace the hook is another user: it may pass through here, and write what is there
chmod 711 "$work"
: > "$work/vmlinuz"
truncate -s 1G "$work/root.ext4"
chmod 666 "$work/vmlinuz" "$work/root.ext4"

# What boots without systemd (init=/usr/local/sbin/vminit), and the test under systemd (else). Both run /payload/run.sh with its output on the
# second serial line, say how it ended, and power off.
cat > "$work/vmtest" << 'GUEST'
#!/bin/sh
mount -o noatime /dev/nvme0n2 /payload || { echo "VMTEST-EXIT=125"; exit 0; }
cd /payload || exit 0
sh ./run.sh
rc=$?
cd /
sync
umount /payload
echo "VMTEST-EXIT=$rc"
GUEST
cat > "$work/vminit" << 'GUEST'
#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2> /dev/null
mkdir -p /dev/shm
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
mount -t cgroup2 cgroup /sys/fs/cgroup
exec < /dev/null > /dev/ttyS1 2>&1
/usr/local/sbin/vmtest
echo o > /proc/sysrq-trigger
sleep 60
GUEST
cat > "$work/vmtest.service" << 'GUEST'
[Unit]
Requires=basic.target
After=basic.target
SuccessAction=poweroff-force
FailureAction=poweroff-force
[Service]
Type=oneshot
ExecStart=/usr/local/sbin/vmtest
Environment=HOME=/root
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS1
TimeoutStartSec=900
GUEST
cat > "$work/vmtest.target" << 'GUEST'
[Unit]
Requires=basic.target vmtest.service
After=basic.target
AllowIsolate=yes
GUEST
chmod 644 "$work"/vmtest.*
chmod 755 "$work/vmtest" "$work/vminit"

# runs as the guest's root: $1 is its root directory
cat > "$work/hook" << 'HOOK'
#!/bin/sh
set -eu
root=$1 work=$2 kernel=$3
cd "$work"
# the package that the metapackage stands for; only the kernel itself is wanted, no modules and no initrd
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
real=$(apt-cache depends "$kernel" | awk '/Depends: linux-image-/ {print $2; exit}')
mkdir "$root/tmp/kernel"
(cd "$root/tmp/kernel" && apt-get -qq -o APT::Sandbox::User=root download "$real" && dpkg-deb -x ./*.deb . && cat boot/vmlinuz-* > "$work/vmlinuz")
rm -rf "$root/tmp/kernel" "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/usr/share/doc "$root"/usr/share/locale "$root"/usr/share/man
echo kvtier-vm > "$root/etc/hostname"
echo 0123456789abcdef0123456789abcdef > "$root/etc/machine-id"
: > "$root/etc/fstab"
mkdir -p "$root/payload"
install -m 755 vmtest vminit "$root/usr/local/sbin/"
install -m 644 vmtest.service vmtest.target "$root/etc/systemd/system/"
ln -sf vmtest.target "$root/etc/systemd/system/default.target"
# /proc, /sys and more are mounted there: copied is what lies below
unshare -m sh -euc 'mount --bind "$1" "$1/mnt" && exec mke2fs -q -F -t ext4 -O ^has_journal -E root_owner=0:0 -m 0 -L ROOT -d "$1/mnt" root.ext4' \
	sh "$root"
HOOK
chmod 755 "$work/hook"

mmdebstrap --quiet --variant=essential --aptopt='APT::Install-Recommends "false"' --include="$packages" --format=null \
	--customize-hook="$work/hook \"\$1\" $work $kernel" $suite /dev/null >&2
[ -s "$work/vmlinuz" ]
mkdir -p "$part"
chmod 755 "$part"
cp --sparse=always "$work/vmlinuz" "$work/root.ext4" "$part/"
chmod 644 "$part"/*
# another run may have been faster; then its image is as good
mv -T "$part" "$dest" 2> /dev/null || [ -e "$dest/root.ext4" ]
say "made: $(du -sh "$dest" | cut -f 1)"
echo "$dest"
