// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
)

// Filter says which connections are recorded; the kernel's programs decide, and count what
// they leave out as filtered. All parts must agree. A connection is recorded whole or not at all, with one
// exception: until connect() has chosen a local port, a filter by port sees only the peer's.
type Filter struct {
	// Ports are numbers or ranges ("443", "8000-8999") of which one end must have one; an entry
	// with "!" in front leaves out connections of which an end has one.
	Ports []string `mapstructure:"ports"`
	// Prefixes are addresses or prefixes ("192.0.2.0/24", "2001:db8::1") of which one end must
	// be in one; with "!" in front, connections with an end in it are left out. The longest prefix
	// that matches an address decides.
	Prefixes []string `mapstructure:"prefixes"`
	// Cgroup is the directory of a version 2 cgroup: only sockets made in it or below are
	// recorded. Packets without a local socket are left out then.
	Cgroup string `mapstructure:"cgroup"`
	// Sample records one connection of so many, chosen by a hash of its addresses and ports; 1: all.
	Sample int `mapstructure:"sample"`
}

// portRange is a range of ports, listed or excluded.
type portRange struct {
	first, last uint16
	not         bool
}

func parsePorts(s string) (r portRange, err error) {
	s, r.not = strings.CutPrefix(s, "!")
	a, b, isRange := strings.Cut(s, "-")
	if !isRange {
		b = a
	}
	first, err1 := strconv.ParseUint(a, 10, 16)
	last, err2 := strconv.ParseUint(b, 10, 16)
	if err1 != nil || err2 != nil {
		return r, fmt.Errorf("%q is neither a port nor a range such as 8000-8999", s)
	}
	if first > last {
		return r, fmt.Errorf("%q ends before it begins", s)
	}
	r.first, r.last = uint16(first), uint16(last)
	return r, nil
}

// addrPrefix is a prefix of addresses, listed or excluded.
type addrPrefix struct {
	bits uint32 // of addr as IPv6 or mapped IPv4
	addr [16]byte
	not  bool
}

func parsePrefix(s string) (p addrPrefix, err error) {
	s, p.not = strings.CutPrefix(s, "!")
	prefix, err := netip.ParsePrefix(s)
	if err != nil {
		addr, aerr := netip.ParseAddr(s)
		if aerr != nil {
			return p, fmt.Errorf("%q is neither an address nor a prefix such as 192.0.2.0/24", s)
		}
		prefix = netip.PrefixFrom(addr, addr.BitLen())
	}
	prefix = prefix.Masked()
	p.bits, p.addr = uint32(prefix.Bits()), prefix.Addr().As16()
	if prefix.Addr().Is4() {
		p.bits += 96
	}
	return p, nil
}

// validate appends the faults of f to errs.
func (f Filter) validate() error {
	var errs []error
	for i, s := range f.Ports {
		if _, err := parsePorts(s); err != nil {
			errs = append(errs, fmt.Errorf("capture.filter.ports[%d]: %w", i, err))
		}
	}
	for i, s := range f.Prefixes {
		if _, err := parsePrefix(s); err != nil {
			errs = append(errs, fmt.Errorf("capture.filter.prefixes[%d]: %w", i, err))
		}
	}
	if f.Cgroup != "" && !filepath.IsAbs(f.Cgroup) {
		errs = append(errs, fmt.Errorf("capture.filter.cgroup: %q is not an absolute path such as /sys/fs/cgroup/system.slice", f.Cgroup))
	}
	if f.Sample < 1 || f.Sample > 1<<20 {
		errs = append(errs, fmt.Errorf("capture.filter.sample: %d is not between 1 (all connections) and %d", f.Sample, 1<<20))
	}
	return errors.Join(errs...)
}
