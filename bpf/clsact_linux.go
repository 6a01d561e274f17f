// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Kernels before 6.6 have no tcx. There the programs are filters of a clsact qdisc, which,
// unlike links, stay when their process is killed: their name tells whose they are, and the
// next capture on the interface removes those of dead processes.
const (
	filterName     = "tcbee-export/"
	filterPriority = 0xc000 // behind what others usually put there
)

// filterOf is a program attached as a filter.
type filterOf struct {
	ns      *namespace
	filter  *netlink.BpfFilter
	ownDisc bool // this capture made the qdisc
}

// attachFilter attaches a program to a device of the current namespace, which is ns.
func attachFilter(ns *namespace, index int, prog *ebpf.Program, at ebpf.AttachType) (*filterOf, error) {
	err := netlink.QdiscAdd(clsact(index))
	own := err == nil
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, fmt.Errorf("make a clsact qdisc: %w", err)
	}
	parent := uint32(netlink.HANDLE_MIN_INGRESS)
	if at == ebpf.AttachTCXEgress {
		parent = netlink.HANDLE_MIN_EGRESS
	}
	if err := removeStale(index, parent); err != nil {
		return nil, err
	}
	f := &filterOf{ns: ns, ownDisc: own, filter: &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: index, Parent: parent, Handle: uint32(os.Getpid()),
			Protocol: unix.ETH_P_ALL, Priority: filterPriority},
		Fd: prog.FD(), Name: filterName + strconv.Itoa(os.Getpid()), DirectAction: true,
	}}
	if err := netlink.FilterAdd(f.filter); err != nil {
		return nil, fmt.Errorf("add a bpf filter: %w", err)
	}
	return f, nil
}

func clsact(index int) netlink.Qdisc {
	return &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Handle: netlink.MakeHandle(0xffff, 0),
		Parent: netlink.HANDLE_CLSACT}}
}

// removeStale removes filters that dead captures left.
func removeStale(index int, parent uint32) error {
	filters, err := ourFilters(index, parent)
	if err != nil {
		return err
	}
	for _, f := range filters {
		pid, _ := strconv.Atoi(strings.TrimPrefix(f.Name, filterName))
		if _, err := os.Stat("/proc/" + strconv.Itoa(pid)); !errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err := netlink.FilterDel(f); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("remove the filter of a dead capture: %w", err)
		}
	}
	return nil
}

// ourFilters lists the filters of captures on one side of a device.
func ourFilters(index int, parent uint32) ([]*netlink.BpfFilter, error) {
	dev := &netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: index}}
	all, err := netlink.FilterList(dev, parent)
	if err != nil {
		return nil, fmt.Errorf("list the filters: %w", err)
	}
	var ours []*netlink.BpfFilter
	for _, f := range all {
		if b, ok := f.(*netlink.BpfFilter); ok && strings.HasPrefix(b.Name, filterName) {
			ours = append(ours, b)
		}
	}
	return ours, nil
}

// Close removes the filter, and the qdisc if this capture made it and nobody else uses it.
func (f *filterOf) Close() error {
	return f.ns.do(func() error {
		err := netlink.FilterDel(f.filter)
		if gone(err) {
			return nil // with its device
		}
		if err != nil {
			return fmt.Errorf("remove the filter: %w", err)
		}
		if !f.ownDisc {
			return nil
		}
		dev := &netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: f.filter.LinkIndex}}
		for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
			if others, err := netlink.FilterList(dev, parent); err != nil || len(others) > 0 {
				return nil //nolint:nilerr // what cannot be listed is not ours to remove
			}
		}
		if err := netlink.QdiscDel(clsact(f.filter.LinkIndex)); err != nil && !gone(err) {
			return fmt.Errorf("remove the clsact qdisc: %w", err)
		}
		return nil
	})
}

// gone tells whether an error says that a device, qdisc or filter is not there any more.
func gone(err error) bool {
	return errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL)
}
