// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/cilium/ebpf"
)

// Bits of cfg_filter in filter.h.
const (
	filterPorts       = 1
	filterNotPorts    = 2
	filterPrefixes    = 4
	filterNotPrefixes = 8
	filterSample      = 16
	filterCgroup      = 32
)

// flags tells which parts of the filter the programs have to look at. f is valid.
func (f Filter) flags() (bits uint32) {
	for _, s := range f.Ports {
		if r, _ := parsePorts(s); r.not {
			bits |= filterNotPorts
		} else {
			bits |= filterPorts
		}
	}
	for _, s := range f.Prefixes {
		if p, _ := parsePrefix(s); p.not {
			bits |= filterNotPrefixes
		} else {
			bits |= filterPrefixes
		}
	}
	if f.Sample > 1 {
		bits |= filterSample
	}
	if f.Cgroup != "" {
		bits |= filterCgroup
	}
	return bits
}

// cgroupID returns the id of the filter's cgroup, 0 if there is none.
func (f Filter) cgroupID() (uint64, error) {
	if f.Cgroup == "" {
		return 0, nil
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(f.Cgroup, &fs); err != nil {
		return 0, fmt.Errorf("capture.filter.cgroup: %s: %w", f.Cgroup, err)
	}
	if fs.Type != unix.CGROUP2_SUPER_MAGIC {
		return 0, hint(fmt.Errorf("capture.filter.cgroup: %s is not a version 2 cgroup", f.Cgroup),
			"\"mount -t cgroup2\" shows where they are; sockets belong to no others")
	}
	var st unix.Stat_t
	if err := unix.Stat(f.Cgroup, &st); err != nil {
		return 0, fmt.Errorf("capture.filter.cgroup: %s: %w", f.Cgroup, err)
	}
	return st.Ino, nil
}

// fill writes the filter's lists into the programs' maps.
func (f Filter) fill(ports, prefixes *ebpf.Map) error {
	words := map[uint32]uint64{}
	for _, s := range f.Ports {
		r, err := parsePorts(s)
		if err != nil {
			return err
		}
		base := uint32(0)
		if r.not {
			base = 1024
		}
		for p := int(r.first); p <= int(r.last); p++ {
			words[base+uint32(p>>6)] |= 1 << (p & 63)
		}
	}
	for i, w := range words {
		if err := ports.Put(i, w); err != nil {
			return fmt.Errorf("capture.filter.ports: %w", err)
		}
	}
	for i, s := range f.Prefixes {
		p, err := parsePrefix(s)
		if err != nil {
			return err
		}
		value := uint32(1)
		if p.not {
			value = 2
		}
		err = prefixes.Put(programsPrefix{Bits: p.bits, Addr: p.addr}, value)
		if errors.Is(err, unix.ENOSPC) {
			return fmt.Errorf("capture.filter.prefixes: there is room for %d", prefixes.MaxEntries())
		}
		if err != nil {
			return fmt.Errorf("capture.filter.prefixes[%d]: %w", i, err)
		}
	}
	return nil
}
