// SPDX-License-Identifier: Apache-2.0

//go:build linux

package netlab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"sync/atomic"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Loss tells which packets a router drops. Only packets with payload are dropped, so that
// handshakes and acknowledgements do not add their timeouts; a retransmission is a
// packet like another.
type Loss struct {
	// OneIn drops each data packet with the probability 1/OneIn; 0: none.
	OneIn uint32
	// Nth drops exactly these data packets, counted from 1.
	Nth []uint64
}

// Count is what passed a place. A packet is an skb; a super-packet has many segments.
type Count struct {
	Packets     uint64 // all frames, of any protocol
	Bytes       uint64 // of all frames, with the link header; one header per super-packet
	TCP         uint64 // packets with a TCP header (no VLAN, no IPv6 extension headers)
	Segments    uint64 // TCP segments as they are on the wire
	Payload     uint64 // TCP payload bytes
	Data        uint64 // TCP packets with payload
	Dropped     uint64 // of TCP: packets that were dropped here
	DroppedSegs uint64 // of Segments
	DroppedLoad uint64 // of Payload
	TCPBytes    uint64 // of Bytes: those of TCP packets
}

const countWords = 10

// Offsets into the map's value, in the order of Count.
const (
	offPackets = 8 * iota
	offBytes
	offTCP
	offSegments
	offPayload
	offData
	offDropped
	offDroppedSegs
	offDroppedLoad
	offTCPBytes
)

// Counter is a tcx (before Linux 6.6: clsact) program that counts the packets at a device: a truth that is
// independent of what it is compared with. It returns TCX_NEXT and leaves packets as they are,
// except those that it was told to drop.
type Counter struct {
	in, out *counted
	n       *Namespace // of the device
	device  string
}

// One attached program with its maps.
type counted struct {
	counts *ebpf.Map // array, one value: Count
	drops  *ebpf.Map // hash: number of a data packet
	prog   *ebpf.Program
	link   io.Closer // a link.Link or a clsact
}

type directions struct{ ingress, egress bool }

// Count attaches a Counter to a device of a namespace, both ways. It counts from now on until the
// lab is closed.
func (l *Lab) Count(n *Namespace, device string) (*Counter, error) {
	return l.count(n, device, directions{true, true}, Loss{})
}

func (l *Lab) count(n *Namespace, device string, d directions, loss Loss) (*Counter, error) {
	var c *Counter
	err := n.Do(func() (err error) {
		c, err = newCounter(device, d, loss)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("count packets of %s in namespace %s: %w", device, n.Label, err)
	}
	c.n = n
	l.counters = append(l.counters, c)
	return c, nil
}

// newCounter attaches to a device of the namespace that the thread is in.
func newCounter(device string, d directions, loss Loss) (*Counter, error) {
	ifi, err := net.InterfaceByName(device)
	if err != nil {
		return nil, err
	}
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, fmt.Errorf("RLIMIT_MEMLOCK: %w", err)
	}
	c := &Counter{device: device}
	for _, w := range []struct {
		want   bool
		to     **counted
		attach ebpf.AttachType
	}{{d.ingress, &c.in, ebpf.AttachTCXIngress}, {d.egress, &c.out, ebpf.AttachTCXEgress}} {
		if !w.want {
			continue
		}
		p := &counted{}
		*w.to = p
		if err := p.load(loss); err != nil {
			return nil, errors.Join(err, c.Close())
		}
		if p.link, err = attach(ifi.Index, p.prog, w.attach); err != nil {
			return nil, errors.Join(err, c.Close())
		}
	}
	return c, nil
}

// dropsMax is how many single packets a counter can be told to drop.
const dropsMax = 4096

func (p *counted) load(loss Loss) (err error) {
	p.counts, err = ebpf.NewMap(&ebpf.MapSpec{
		Name: "lab_counts", Type: ebpf.Array, KeySize: 4, ValueSize: 8 * countWords, MaxEntries: 1,
	})
	if err != nil {
		return err
	}
	p.drops, err = ebpf.NewMap(&ebpf.MapSpec{
		Name: "lab_drops", Type: ebpf.Hash, KeySize: 8, ValueSize: 4, MaxEntries: dropsMax,
	})
	if err != nil {
		return err
	}
	for _, n := range loss.Nth {
		if err := p.drops.Put(n, uint32(1)); err != nil {
			return fmt.Errorf("drop data packet %d: %w", n, err)
		}
	}
	p.prog, err = ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "lab_count", Type: ebpf.SchedCLS, License: "Dual BSD/GPL",
		Instructions: countProgram(p.counts.FD(), p.drops.FD(), loss.OneIn),
	})
	return err
}

// attach puts a program at a device of the namespace that the thread is in.
func attach(ifindex int, prog *ebpf.Program, where ebpf.AttachType) (io.Closer, error) {
	l, tcx := link.AttachTCX(link.TCXOptions{Interface: ifindex, Program: prog, Attach: where})
	if tcx == nil {
		return l, nil
	}
	if !errors.Is(tcx, ebpf.ErrNotSupported) && !errors.Is(tcx, unix.EINVAL) {
		return nil, fmt.Errorf("attach to tcx: %w", tcx)
	}
	c, err := attachClsact(ifindex, prog, where)
	if err != nil {
		return nil, fmt.Errorf("attach to tcx: %w, and to clsact: %w", tcx, err)
	}
	return c, nil
}

// Where counters stand among the filters of a clsact qdisc; others choose other places.
const clsactPriority = 7077

// clsactHandle tells counters of one place apart.
var clsactHandle atomic.Uint32

// clsact is a program at the clsact qdisc of a device: what there is before Linux 6.6. Nothing
// of it holds the program after the namespace is gone.
type clsact struct {
	filter netlink.BpfFilter
}

func attachClsact(ifindex int, prog *ebpf.Program, where ebpf.AttachType) (io.Closer, error) {
	qdisc := netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{
			LinkIndex: ifindex, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
		},
		QdiscType: "clsact",
	}
	if err := netlink.QdiscAdd(&qdisc); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, fmt.Errorf("qdisc: %w", err)
	}
	parent := uint32(netlink.HANDLE_MIN_INGRESS)
	if where == ebpf.AttachTCXEgress {
		parent = netlink.HANDLE_MIN_EGRESS
	}
	c := &clsact{netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: ifindex, Parent: parent, Handle: clsactHandle.Add(1), Protocol: unix.ETH_P_ALL, Priority: clsactPriority,
		},
		Fd: prog.FD(), Name: "lab_count", DirectAction: true,
	}}
	if err := netlink.FilterAdd(&c.filter); err != nil {
		return nil, fmt.Errorf("filter: %w", err)
	}
	return c, nil
}

// Close removes the filter; the caller's thread must be in the device's namespace.
func (c *clsact) Close() error {
	// EINVAL: the qdisc is gone, and the filter with it.
	if err := netlink.FilterDel(&c.filter); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("remove clsact filter: %w", err)
	}
	return nil
}

// Offsets in struct __sk_buff (include/uapi/linux/bpf.h).
const (
	skbLen      = 0
	skbProtocol = 16
	skbGSOSegs  = 164
)

// countProgram is the program of a Counter. R6: skb, R7: counts, R8: payload length, R9: segments.
func countProgram(counts, drops int, oneIn uint32) asm.Instructions {
	const (
		etherLen = 14
		fpNth    = -8
		fpBuf    = -64
	)
	add := func(offset int16, r asm.Register) asm.Instruction {
		return asm.AddAtomic.Mem(asm.R7, r, asm.DWord, offset)
	}
	load := func(offset asm.Instruction, n int32) asm.Instructions {
		return asm.Instructions{
			asm.Mov.Reg(asm.R1, asm.R6),
			offset,
			asm.Mov.Reg(asm.R3, asm.RFP),
			asm.Add.Imm(asm.R3, fpBuf),
			asm.Mov.Imm(asm.R4, n),
			asm.FnSkbLoadBytes.Call(),
			asm.JNE.Imm(asm.R0, 0, "next"),
		}
	}
	next := asm.FetchAdd.Mem(asm.R7, asm.R1, asm.DWord, offData)
	next.Constant = 1 // BPF_FETCH: cilium/ebpf v0.22.0 drops it when it encodes the instruction
	i := asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.LoadMapValue(asm.R7, counts, 0),
		asm.LoadMem(asm.R8, asm.R6, skbLen, asm.Word),
		asm.Mov.Imm(asm.R1, 1),
		add(offPackets, asm.R1),
		add(offBytes, asm.R8),
		asm.LoadMem(asm.R1, asm.R6, skbProtocol, asm.Word),
		asm.HostTo(asm.BE, asm.R1, asm.Half),
		asm.JEq.Imm(asm.R1, 0x0800, "ipv4"),
		asm.JEq.Imm(asm.R1, 0x86dd, "ipv6"),
		asm.Ja.Label("next"),
	}
	i = append(i, asm.Mov.Imm(asm.R1, 0).WithSymbol("ipv4"))
	i = append(i, load(asm.Mov.Imm(asm.R2, etherLen), 20)...)
	i = append(i,
		asm.LoadMem(asm.R1, asm.RFP, fpBuf+9, asm.Byte),
		asm.JNE.Imm(asm.R1, 6, "next"),
		asm.LoadMem(asm.R9, asm.RFP, fpBuf, asm.Byte),
		asm.And.Imm(asm.R9, 0x0f),
		asm.LSh.Imm(asm.R9, 2),
		asm.Add.Imm(asm.R9, etherLen),
		asm.Ja.Label("tcp"),
		asm.Mov.Imm(asm.R1, 0).WithSymbol("ipv6"),
	)
	i = append(i, load(asm.Mov.Imm(asm.R2, etherLen), 40)...)
	i = append(i,
		asm.LoadMem(asm.R1, asm.RFP, fpBuf+6, asm.Byte),
		asm.JNE.Imm(asm.R1, 6, "next"),
		asm.Mov.Imm(asm.R9, etherLen+40),
		asm.Mov.Imm(asm.R1, 0).WithSymbol("tcp"),
	)
	i = append(i, load(asm.Mov.Reg(asm.R2, asm.R9), 20)...)
	i = append(i,
		// R8 = skb->len - headers
		asm.LoadMem(asm.R1, asm.RFP, fpBuf+12, asm.Byte),
		asm.RSh.Imm(asm.R1, 4),
		asm.LSh.Imm(asm.R1, 2),
		asm.Mov.Reg(asm.R2, asm.R8),
		asm.Sub.Reg(asm.R8, asm.R9),
		asm.Sub.Reg(asm.R8, asm.R1),
		asm.LoadMem(asm.R9, asm.R6, skbGSOSegs, asm.Word),
		asm.JNE.Imm(asm.R9, 0, "segments"),
		asm.Mov.Imm(asm.R9, 1),
		add(offTCPBytes, asm.R2).WithSymbol("segments"),
		asm.Mov.Imm(asm.R1, 1),
		add(offTCP, asm.R1),
		add(offSegments, asm.R9),
		add(offPayload, asm.R8),
		asm.JEq.Imm(asm.R8, 0, "next"),
		asm.Mov.Imm(asm.R1, 1),
		next,
		asm.Add.Imm(asm.R1, 1),
		asm.StoreMem(asm.RFP, fpNth, asm.R1, asm.DWord),
		asm.LoadMapPtr(asm.R1, drops),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, fpNth),
		asm.FnMapLookupElem.Call(),
		asm.JNE.Imm(asm.R0, 0, "drop"),
	)
	if oneIn > 0 {
		i = append(i,
			asm.FnGetPrandomU32.Call(),
			asm.Mod.Imm32(asm.R0, int32(min(oneIn, math.MaxInt32))),
			asm.JEq.Imm(asm.R0, 0, "drop"),
		)
	}
	return append(i,
		asm.Mov.Imm(asm.R0, -1).WithSymbol("next"), // TCX_NEXT
		asm.Return(),
		asm.Mov.Imm(asm.R1, 1).WithSymbol("drop"),
		add(offDropped, asm.R1),
		add(offDroppedSegs, asm.R9),
		add(offDroppedLoad, asm.R8),
		asm.Mov.Imm(asm.R0, 2), // TCX_DROP
		asm.Return(),
	)
}

// In returns what came in at the device so far.
func (c *Counter) In() (Count, error) { return c.in.read() }

// Out returns what went out of the device so far.
func (c *Counter) Out() (Count, error) { return c.out.read() }

// A Reading is what a counter and the device under it have counted.
type Reading struct {
	In, Out Count
	Rx, Tx  uint64 // packets by the device's own counters; what the other end's full queue dropped was sent
}

// Read reads all counters at a moment when nothing passes.
func (c *Counter) Read(ctx context.Context) (r Reading, err error) {
	for {
		if r.Rx, r.Tx, err = c.carried(); err != nil {
			return r, err
		}
		if r.In, err = c.In(); err != nil {
			return r, err
		}
		if r.Out, err = c.Out(); err != nil {
			return r, err
		}
		if rx, tx, err := c.carried(); err != nil || rx == r.Rx && tx == r.Tx {
			return r, err
		}
		if err := ctx.Err(); err != nil {
			return r, fmt.Errorf("%s is never quiet: %w", c.device, err)
		}
	}
}

func (c *Counter) carried() (rx, tx uint64, err error) {
	err = c.n.Do(func() error {
		dev, err := netlink.LinkByName(c.device)
		if err == nil {
			s := dev.Attrs().Statistics
			rx, tx = s.RxPackets, s.TxPackets+s.TxDropped
		}
		return err
	})
	return rx, tx, err
}

// TCPSince returns the device's packets since an earlier reading, less those that are not TCP by the counter.
func (r Reading) TCPSince(before Reading) (rx, tx uint64) {
	return r.Rx - before.Rx - (r.In.Packets - r.In.TCP) + (before.In.Packets - before.In.TCP),
		r.Tx - before.Tx - (r.Out.Packets - r.Out.TCP) + (before.Out.Packets - before.Out.TCP)
}

func (p *counted) read() (Count, error) {
	if p == nil || p.counts == nil {
		return Count{}, errors.New("packet counter: this direction is not counted, or the counter is closed")
	}
	var w [countWords]uint64
	if err := p.counts.Lookup(uint32(0), &w); err != nil {
		return Count{}, fmt.Errorf("packet counter: %w", err)
	}
	return Count{
		Packets: w[0], Bytes: w[1], TCP: w[2], Segments: w[3], Payload: w[4], Data: w[5],
		Dropped: w[6], DroppedSegs: w[7], DroppedLoad: w[8], TCPBytes: w[9],
	}, nil
}

// Drop drops the n-th data packet that comes in from now on, n from 1, for each n. The link must
// be quiet meanwhile.
func (c *Counter) Drop(nth ...uint64) error {
	now, err := c.In()
	if err != nil {
		return err
	}
	for _, n := range nth {
		if err := c.in.drops.Put(now.Data+n, uint32(1)); err != nil {
			return fmt.Errorf("drop data packet %d: %w", n, err)
		}
	}
	return nil
}

// Close detaches the programs. The lab does it too.
func (c *Counter) Close() error {
	if c.n == nil { // still being made, or closed
		return c.close()
	}
	n := c.n
	c.n = nil // nothing is left to be closed a second time
	return n.Do(c.close)
}

func (c *Counter) close() error {
	var errs []error
	for _, p := range []*counted{c.in, c.out} {
		if p == nil {
			continue
		}
		if p.link != nil {
			errs = append(errs, p.link.Close())
			p.link = nil
		}
		if p.prog != nil {
			errs = append(errs, p.prog.Close())
			p.prog = nil
		}
		if p.counts != nil {
			errs = append(errs, p.counts.Close())
			p.counts = nil
		}
		if p.drops != nil {
			errs = append(errs, p.drops.Close())
			p.drops = nil
		}
	}
	return errors.Join(errs...)
}
