// SPDX-License-Identifier: Apache-2.0

//go:build linux

package netlab

import (
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
)

// Firings counts how often a tracepoint fired for the sockets of a namespace, as a program sees it: what another
// program at the same tracepoint has to have seen too. The kernel itself may know of more: some have been met
// that now and then run none of the programs at a tracepoint, and count nothing then.
type Firings struct {
	counts *ebpf.Map // array, one value: uint64
	prog   *ebpf.Program
	link   link.Link
}

// Firings attaches a counter to a tracepoint whose first argument is a socket. It counts from now on until the lab
// is closed.
func (l *Lab) Firings(n *Namespace, tracepoint string) (*Firings, error) {
	f := &Firings{}
	if err := f.open(n, tracepoint); err != nil {
		return nil, fmt.Errorf("count firings of %s: %w", tracepoint, errors.Join(err, f.Close()))
	}
	l.firings = append(l.firings, f)
	return f, nil
}

func (f *Firings) open(n *Namespace, tracepoint string) error {
	cookie, err := n.Cookie()
	if err != nil {
		return err
	}
	net, err := fieldOffset("sock", "__sk_common", "skc_net", "net")
	if err != nil {
		return err
	}
	netCookie, err := fieldOffset("net", "net_cookie")
	if err != nil {
		return err
	}
	if err := rlimit.RemoveMemlock(); err != nil {
		return fmt.Errorf("RLIMIT_MEMLOCK: %w", err)
	}
	f.counts, err = ebpf.NewMap(&ebpf.MapSpec{Name: "lab_firings", Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		return err
	}
	f.prog, err = ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "lab_firings", Type: ebpf.Tracing, AttachType: ebpf.AttachTraceRawTp, AttachTo: tracepoint, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{
			asm.LoadMem(asm.R1, asm.R1, 0, asm.DWord),
			asm.LoadMem(asm.R1, asm.R1, net, asm.DWord),
			asm.LoadMem(asm.R1, asm.R1, netCookie, asm.DWord),
			asm.LoadImm(asm.R2, int64(cookie), asm.DWord),
			asm.JNE.Reg(asm.R1, asm.R2, "out"),
			asm.LoadMapValue(asm.R3, f.counts.FD(), 0),
			asm.Mov.Imm(asm.R1, 1),
			asm.AddAtomic.Mem(asm.R3, asm.R1, asm.DWord, 0),
			asm.Mov.Imm(asm.R0, 0).WithSymbol("out"),
			asm.Return(),
		},
	})
	if err != nil {
		return err
	}
	f.link, err = link.AttachTracing(link.TracingOptions{Program: f.prog, AttachType: ebpf.AttachTraceRawTp})
	return err
}

// fieldOffset returns where a field of a kernel struct lies; path leads through structs that are in one another.
func fieldOffset(name string, path ...string) (int16, error) {
	kernel, err := btf.LoadKernelSpec()
	if err != nil {
		return 0, err
	}
	var t *btf.Struct
	if err := kernel.TypeByName(name, &t); err != nil {
		return 0, err
	}
	offset := uint32(0)
	for i, field := range path {
		at := slices.IndexFunc(t.Members, func(m btf.Member) bool { return m.Name == field })
		if at < 0 {
			return 0, fmt.Errorf("struct %s has no %s", t.Name, field)
		}
		offset += t.Members[at].Offset.Bytes()
		if i == len(path)-1 {
			break
		}
		inner, ok := btf.UnderlyingType(t.Members[at].Type).(*btf.Struct)
		if !ok {
			return 0, fmt.Errorf("%s of struct %s is no struct", field, t.Name)
		}
		t = inner
	}
	if offset > math.MaxInt16 {
		return 0, fmt.Errorf("field %s lies %d bytes behind the beginning of struct %s", path[len(path)-1], offset, name)
	}
	return int16(offset), nil
}

// Count returns how often the tracepoint has fired so far, and how many firings more the kernel has kept from this
// program because it was at work on that CPU already (of any namespace).
func (f *Firings) Count() (n, missed uint64, err error) {
	if f.counts == nil {
		return 0, 0, errors.New("count of firings: the counter is closed")
	}
	if err := f.counts.Lookup(uint32(0), &n); err != nil {
		return 0, 0, fmt.Errorf("count of firings: %w", err)
	}
	stats, err := f.prog.Stats()
	if err != nil {
		return 0, 0, fmt.Errorf("count of firings: %w", err)
	}
	return n, stats.RecursionMisses, nil
}

// Close detaches the program. The lab does it too.
func (f *Firings) Close() error {
	var errs []error
	if f.link != nil {
		errs = append(errs, f.link.Close())
	}
	if f.prog != nil {
		errs = append(errs, f.prog.Close())
	}
	if f.counts != nil {
		errs = append(errs, f.counts.Close())
	}
	*f = Firings{}
	return errors.Join(errs...)
}
