#!/bin/sh
# Installs what building, testing, the demo and the benchmarks need, on Debian and its kin.
#
# Asks the machine for the tools and libraries themselves, not for packages, so that a compiler or Python from elsewhere counts.
# When nothing is missing it says nothing and takes a few hundredths of a second. Else it prints what it installs, and asks for
# root only then. `tests/deps.sh --list` prints all packages, `--missing` those that are not here; both install nothing. With --vm before those, or
# alone, it is about what the guest suite (tests/vm) needs and nothing else does.
set -eu

# what is asked for, and the package that brings it
commands="gcc:gcc make:make pkg-config:pkg-config protoc-c:protobuf-c-compiler clang:clang clang-format:clang-format
mandoc:mandoc redis-server:redis-server python3:python3 pip3:python3-pip strace:strace ps:procps git:git setpriv:util-linux
taskset:util-linux fio:fio zstd:zstd"
libraries="libsystemd:libsystemd-dev liburing:liburing-dev libprotobuf-c:libprotobuf-c-dev libsodium:libsodium-dev libxxhash:libxxhash-dev libzstd:libzstd-dev inih:libinih-dev
jansson:libjansson-dev cmocka:libcmocka-dev openblas:libopenblas-dev hiredis:libhiredis-dev"
# any file that matches one of the patterns
files="/usr/lib/llvm-*/lib/clang/*/lib/linux/libclang_rt.fuzzer-*.a|/usr/lib*/clang/*/lib/*/libclang_rt.fuzzer*.a:libclang-rt-dev
/usr/include/stdio.h:libc6-dev /etc/ssl/certs/ca-certificates.crt|/etc/pki/tls/certs/ca-bundle.crt:ca-certificates"
if [ "${1-}" = --vm ]; then
	commands="qemu-system-x86_64:qemu-system-x86 mmdebstrap:mmdebstrap mke2fs:e2fsprogs"
	libraries=
	files=
	PATH=$PATH:/usr/sbin:/sbin # where mke2fs is
	shift
fi

list() {
	for pair in $commands $libraries $files; do
		echo "${pair##*:}"
	done | sort -u
}

missing() {
	for pair in $commands; do
		command -v "${pair%:*}" > /dev/null || echo "${pair#*:}"
	done
	names=
	for pair in $libraries; do
		names="$names ${pair%:*}"
	done
	# shellcheck disable=SC2086
	if ! pkg-config --exists $names 2> /dev/null; then
		for pair in $libraries; do
			pkg-config --exists "${pair%:*}" 2> /dev/null || echo "${pair#*:}"
		done
	fi
	set +f
	for pair in $files; do
		found=
		for f in $(echo "${pair%:*}" | tr '|' ' '); do
			if [ -e "$f" ]; then
				found=1
			fi
		done
		[ -n "$found" ] || echo "${pair##*:}"
	done
	set -f
}

set -f # patterns in $files stay as they are until missing() asks
case ${1-} in
--list)
	list
	exit 0
	;;
--missing)
	missing | sort -u
	exit 0
	;;
'') ;;
*)
	echo "usage: tests/deps.sh [--vm] [--list | --missing]" >&2
	exit 2
	;;
esac

want=$(missing | sort -u | tr '\n' ' ')
want=${want% }
[ -n "$want" ] || exit 0

say() {
	echo "deps: $*" >&2
}

if ! command -v apt-get > /dev/null; then
	say "not a Debian system. Install what these Debian packages hold, then try again: $want"
	exit 1
fi
root=
if [ "$(id -u)" != 0 ]; then
	if ! command -v sudo > /dev/null; then
		say "run as root: apt-get install $want"
		exit 1
	fi
	root=sudo
	# without a terminal nobody can type a password
	[ -t 0 ] || root="sudo -n"
	if [ "$root" = "sudo -n" ] && ! sudo -n true 2> /dev/null; then
		say "sudo asks for a password and there is no terminal. Run as root: apt-get install $want"
		exit 1
	fi
fi

apt() {
	# RUNLEVEL=1: packages must not start services, such as redis-server
	$root env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get -q "$@" >&2
}
install() {
	# shellcheck disable=SC2086
	apt install -y --no-install-recommends $want
}

say "installing $want"
set +f
set -- /var/lib/apt/lists/*_Packages*
set -f
updated=
if [ ! -e "$1" ]; then
	say "there are no package lists yet"
	apt update || say "apt-get update failed"
	updated=1
fi
if ! install; then
	if [ -n "$updated" ]; then
		say "apt-get could not install $want"
		exit 1
	fi
	say "trying again with fresh package lists"
	apt update || say "apt-get update failed"
	if ! install; then
		say "apt-get could not install $want"
		exit 1
	fi
fi
case " $want " in
*" redis-server "*)
	# the benchmarks start a server of their own; the package's service is not wanted
	if [ -d /run/systemd/system ]; then
		$root systemctl disable --now redis-server.service > /dev/null 2>&1 || say "could not disable redis-server.service"
	fi
	;;
esac

left=$(missing | sort -u | tr '\n' ' ')
if [ -n "$left" ]; then
	say "still missing after the installation: $left"
	exit 1
fi
