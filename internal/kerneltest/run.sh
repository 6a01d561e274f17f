#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Runs the capture tests in guests of other kernels: qemu, by KVM where the host has it, else emulated; a throw-away
# initramfs, Debian's kernel packages (downloaded and unpacked, not installed).
#
#   run.sh [KERNEL]…      6.1 6.1-rt 6.12 newest; all of them if none is named
#
# Needs Debian with root, Go, and from apt: qemu-system-x86 busybox-static cpio kmod.
# KERNELTEST_CACHE keeps the downloads (default: the user's cache directory).
# KERNELTEST_RUN and KERNELTEST_PACKAGES narrow down what runs; KERNELTEST_COMMAND runs before it.
set -euo pipefail

cd "$(dirname "$0")/../.."
cache=${KERNELTEST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/tcbee-export/kernels}
packages=${KERNELTEST_PACKAGES:-./bpf ./bpf/netlab}
run=${KERNELTEST_RUN:-.}
# A shell command for the guest before the tests; the binary is /tests/tcbee-export.
command=${KERNELTEST_COMMAND:-true}
# Seconds for each package. Timing inside is that of an emulator: what needs speed is no test of a kernel.
timeout=${KERNELTEST_TIMEOUT:-1800}
modules='veth tun ipip dummy 8021q sch_tbf sch_ingress cls_bpf act_mirred tcp_bbr inet_diag tcp_diag af_packet wireguard virtio_pci'
kernels=("$@")
[ ${#kernels[@]} -gt 0 ] || kernels=(6.1 6.1-rt 6.12 newest)

for tool in qemu-system-x86_64 cpio depmod modprobe apt-get dpkg-deb go; do
	command -v "$tool" >/dev/null || {
		echo "kerneltest: $tool is missing: apt-get install qemu-system-x86 busybox-static cpio kmod" >&2
		exit 1
	}
done
busybox=$(command -v busybox || true)
[ -n "$busybox" ] || { echo "kerneltest: busybox is missing: apt-get install busybox-static" >&2; exit 1; }

mkdir -p "$cache"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The newest kernel is in the backports of the release after this one: apt with a state of its own.
newer=(-o "Dir::State=$cache/apt" -o Dir::State::status=/dev/null -o "Dir::Cache=$cache/apt/cache"
	-o "Dir::Etc::sourcelist=$cache/apt/sources.list" -o Dir::Etc::sourceparts=- -o APT::Sandbox::User=root)
refresh_newer() {
	mkdir -p "$cache"/apt/{lists/partial,cache/archives/partial}
	echo "deb $(apt-get indextargets --format '$(REPO_URI)' | grep -v security | head -n 1) trixie-backports main" >"$cache/apt/sources.list"
	apt-get "${newer[@]}" -q update >&2
}

# depends PACKAGE PATTERN [APT OPTION]…: what it depends on, by name.
depends() {
	local package=$1 pattern=$2
	shift 2
	apt-cache "$@" depends "$package" | sed -n "s/^ *Depends: \\($pattern\\)\$/\\1/p"
}

# fetch_kernel NAME: unpacks the kernel to $cache/NAME and prints its release.
fetch_kernel() {
	local name=$1 meta image dir=$cache/$1 options=(-o APT::Sandbox::User=root)
	case $name in
	6.1) meta=linux-image-cloud-amd64 ;;
	6.1-rt) meta=linux-image-rt-amd64 ;;
	6.12) meta=linux-image-6.12-cloud-amd64 ;;
	newest) meta=linux-image-cloud-amd64 options=("${newer[@]}") ;;
	*) echo "kerneltest: unknown kernel $name: 6.1 6.1-rt 6.12 newest" >&2; return 1 ;;
	esac
	if [ ! -e "$dir/done" ]; then
		[ "$name" != newest ] || refresh_newer
		image=$(depends "$meta" 'linux-image-[0-9].*' "${options[@]}" | head -n 1)
		[ -n "$image" ] || { echo "kerneltest: $name: no package behind $meta: apt-get update?" >&2; return 1; }
		rm -rf "$dir"
		mkdir -p "$dir/deb"
		# Newer releases keep the kernel and its modules in packages of their own.
		(cd "$dir/deb" && for p in "$image" $(depends "$image" 'linux-\(binary\|modules\)-.*' "${options[@]}"); do
			apt-get "${options[@]}" -q download "$p" >&2
		done)
		for p in "$dir"/deb/*.deb; do dpkg-deb -x "$p" "$dir"; done
		[ -d "$dir/lib/modules" ] || ln -s usr/lib "$dir/lib"
		rm -rf "$dir/deb"
		depmod -b "$dir" "$(ls "$dir/lib/modules")"
		touch "$dir/done"
	fi
	ls "$dir/lib/modules"
}

# KVM without the processor's virtualization, as nested in another machine, does not boot every kernel.
accel=tcg
if [ -w /dev/kvm ] && grep -qwE 'vmx|svm' /proc/cpuinfo; then
	accel=kvm
fi

# Test binaries, once for all kernels.
mkdir -p "$work/tests"
for p in $packages; do
	name=$(echo "${p#./}" | tr / _)
	CGO_ENABLED=0 go test -c -o "$work/tests/$name.test" "$p"
	mkdir -p "$work/tests/$name"
	[ ! -d "$p/testdata" ] || cp -r "$p/testdata" "$work/tests/$name/"
	# Tests that look at the committed objects find them where the package is.
	cp "$p"/*.o "$work/tests/$name/" 2>/dev/null || true
done
if [ -d cmd/tcbee-export ]; then
	CGO_ENABLED=0 go build -o "$work/tests/tcbee-export" ./cmd/tcbee-export
fi

# guest NAME RELEASE: builds the initramfs, runs it, leaves the console's text in $work/NAME.log.
guest() {
	local name=$1 release=$2 root=$work/root-$1 kernel
	kernel=$(find "$cache/$name/" -name "vmlinuz*" -type f | head -n 1)
	mkdir -p "$root"/{bin,dev,proc,sys,tmp,run,etc,root,tests} "$root/lib/modules/$release"
	cp "$busybox" "$root/bin/busybox"
	cp -r "$work/tests/." "$root/tests/"
	local m path
	for m in $modules; do
		{ modprobe -d "$cache/$name" -S "$release" --show-depends "$m" 2>/dev/null || true; } | sed -n 's/^insmod \([^ ]*\).*/\1/p'
	done | awk '!seen[$0]++' >"$root/modules"
	while read -r path; do cp "$path" "$root/lib/modules/"; done <"$root/modules"
	sed -i 's|.*/||' "$root/modules"
	cat >"$root/init" <<-INIT
		#!/bin/busybox sh
		/bin/busybox --install -s /bin
		export PATH=/bin HOME=/root TMPDIR=/tmp GOTRACEBACK=all
		mount -t proc proc /proc
		mount -t sysfs sys /sys
		mount -t devtmpfs dev /dev
		mount -t tmpfs tmp /tmp
		mount -t tmpfs run /run
		mount -t tracefs trace /sys/kernel/tracing 2>/dev/null
		mount -t bpf bpf /sys/fs/bpf 2>/dev/null
		mount -t cgroup2 cg /sys/fs/cgroup 2>/dev/null
		# No tunl0 in every namespace: the tests count interfaces.
		echo 2 >/proc/sys/net/core/fb_tunnels_only_for_init_net
		while read m; do
			case \$m in
			*.xz) xz -dc /lib/modules/\$m >/tmp/m.ko && insmod /tmp/m.ko ;;
			*) insmod /lib/modules/\$m ;;
			esac 2>/dev/null
		done </modules
		ip link set lo up
		mkdir -p /dev/net; [ -e /dev/net/tun ] || mknod /dev/net/tun c 10 200
		echo "kernel \$(uname -r)"
		[ ! -x /tests/tcbee-export ] || { echo '=== doctor'; /tests/tcbee-export doctor; }
		$command
		for t in /tests/*.test; do
			n=\${t##*/}
			echo "=== package \${n%.test}"
			cd /tests/\${n%.test}
			TCBEE_KERNELTEST=1 \$t -test.v -test.short -test.timeout ${timeout}s -test.run '$run'
			echo "=== exit \$?"
		done
		poweroff -f
	INIT
	chmod +x "$root/init"
	(cd "$root" && find . | cpio -o -H newc --quiet | gzip -1) >"$work/$name.img"
	# The emulator can run into an instruction that the guest's kernel is just patching on another CPU.
	for _ in 1 2 3; do
		boot
		grep -aq 'Oops: int3' "$work/$name.log" || break
		echo "$name: the emulator met a half patched instruction: once more"
	done
}

# boot: one run of the guest, with what guest has set.
boot() {
	# Without mitigations a system call does not flush the emulator's TLB: half the time.
	timeout $((timeout * $(wc -w <<<"$packages") + 120)) qemu-system-x86_64 -accel "$accel" -M q35 -cpu max -m 2048 -smp 2 -nographic -no-reboot -nic none \
		-kernel "$kernel" -initrd "$work/$name.img" \
		-append 'console=ttyS0 panic=-1 quiet loglevel=3 mitigations=off' </dev/null >"$work/$name.log" 2>&1 || true
}

failed=0
printf '%-8s %-32s %6s %6s %6s  %s\n' kernel release pass skip fail result >"$work/table"
for k in "${kernels[@]}"; do
	release=$(fetch_kernel "$k")
	echo "== $k ($release)"
	guest "$k" "$release"
	tr -d '\r' <"$work/$k.log" | awk '/^=== doctor/ { doctor = 1 } /^=== package/ { doctor = 0 }
		doctor || /^(=== (package|exit)|kernel |--- |    --- |ok|FAIL|PASS|panic)|_test.go:/'
	log=$(tr -d '\r' <"$work/$k.log")
	pass=$(grep -ac '^ *--- PASS' <<<"$log" || true)
	skip=$(grep -ac '^ *--- SKIP' <<<"$log" || true)
	fail=$(grep -ac '^ *--- FAIL' <<<"$log" || true)
	exits=$(grep -ac '^=== exit 0' <<<"$log" || true)
	want=$(find "$work/tests" -maxdepth 1 -name '*.test' | wc -l)
	result=ok
	cp "$work/$k.log" "$cache/$k.log"
	if [ "$exits" -ne "$want" ] || [ "$pass" -eq 0 ]; then
		result=FAILED
		failed=1
		echo "the whole console: $cache/$k.log"
	fi
	printf '%-8s %-32s %6d %6d %6d  %s\n' "$k" "$release" "$pass" "$skip" "$fail" "$result" >>"$work/table"
done
echo
cat "$work/table"
exit $failed
