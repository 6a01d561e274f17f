// SPDX-License-Identifier: Apache-2.0

//go:build linux

package netlab

import (
	"fmt"
	"math"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Commands of SIOCETHTOOL (include/uapi/linux/ethtool.h).
const (
	ethtoolSetTSO = 0x1f
	ethtoolSetGSO = 0x24
	ethtoolSetGRO = 0x2c
)

// offloadsOff makes the device send and receive one segment per skb.
func offloadsOff(link netlink.Link) error {
	name := link.Attrs().Name
	for _, cmd := range []uint32{ethtoolSetTSO, ethtoolSetGSO, ethtoolSetGRO} {
		if err := ethtoolSet(name, cmd, 0); err != nil {
			return fmt.Errorf("offload 0x%x of %s: %w", cmd, name, err)
		}
	}
	// What ethtool says is not all: TCP builds GSO packets anyway and they are cut
	// below the tc hook. This ends it.
	if err := netlink.LinkSetGSOMaxSegs(link, 1); err != nil {
		return fmt.Errorf("gso_max_segs of %s: %w", name, err)
	}
	return nil
}

func ethtoolSet(device string, cmd, value uint32) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	// struct ethtool_value and struct ifreq.
	arg := [2]uint32{cmd, value}
	var req struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}
	copy(req.name[:unix.IFNAMSIZ-1], device)
	req.data = unsafe.Pointer(&arg)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req)))
	if errno != 0 {
		return errno
	}
	return nil
}

// limit puts a token bucket at the device's egress: rate in bits/s, queue in bytes.
func limit(link netlink.Link, rate uint64, queue uint32) error {
	bytesPerSecond := rate / 8
	// 2 ms of the rate, but at least some full packets. Larger super-packets are
	// segmented by tbf itself.
	burst := max(bytesPerSecond/500, 16<<10)
	if queue == 0 {
		queue = uint32(min(max(bytesPerSecond/50, 64<<10), math.MaxUint32))
	}
	// The kernel wants the bucket as a time: ticks of 64 ns (PSCHED_SHIFT 6).
	ticks := burst * 1_000_000_000 / bytesPerSecond / 64
	q := &netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{
			LinkIndex: link.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT,
		},
		Rate: bytesPerSecond, Limit: queue, Buffer: uint32(min(ticks, math.MaxUint32)),
	}
	if err := netlink.QdiscReplace(q); err != nil {
		return fmt.Errorf("tbf on %s: %w", link.Attrs().Name, err)
	}
	return nil
}
