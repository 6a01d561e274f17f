// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/tcbee/tcbee-export/bpf/event"
)

// Probe tells what a capture with cfg could use on this host: it loads every program, those
// that cfg leaves out too, attaches and detaches those of tracepoints, and records nothing. It never fails; what
// does not work has its Reason.
func Probe(cfg Config) []Feature {
	all := probeRights(cfg)
	transport := Feature{Group: "transport", Name: "ring buffer, per-CPU slots, flush", Enabled: true}
	var o *object
	err := checkRights()
	if err == nil {
		o, err = probeTransport(cfg)
	}
	if err != nil {
		transport.refuse(err, "everything")
		return append(append(all, transport), probeHooks(cfg, nil, err)...)
	}
	defer o.close()
	transport.Usable = true
	return append(append(all, transport), probeHooks(cfg, o, nil)...)
}

// probeRights tells which capabilities the process has.
func probeRights(cfg Config) []Feature {
	have, _ := effective()
	lack := missingCapabilities()
	var all []Feature
	for _, c := range capabilities {
		f := Feature{Group: "rights", Name: c.Name, Enabled: true, Usable: have>>c.Bit&1 == 1}
		if c.Required {
			f.Usable = !slices.Contains(lack, c.Name)
		} else {
			f.Enabled = cfg.Inventory
		}
		if !f.Usable {
			f.Reason = "the process does not have it"
			f.Missing = []string{c.For}
		}
		switch {
		case f.Usable:
		case c.Bit == unix.CAP_SYS_ADMIN && cfg.netnsPath() != "":
			f.Enabled = true
			f.Hint = "run with sudo, or in that namespace with capture.netns: own"
		case c.Bit == unix.CAP_SYS_ADMIN:
			f.Enabled = f.Enabled && cfg.Netns == "all"
			f.Fallback = "they are known from their first event on"
		case c.Required:
			f.Missing = []string{"everything"}
			f.Hint = setcapHint
		default:
			f.Fallback = "such connections are told without their process"
		}
		all = append(all, f)
	}
	return all
}

// probeTransport loads what every hook needs.
func probeTransport(cfg Config) (*object, error) {
	hz, err := kernelHZ()
	if err != nil {
		return nil, err
	}
	cfg.RingBytes = minRing
	o, err := loadObject(cfg, settings{hz: hz})
	if err != nil {
		return nil, err
	}
	if _, err := o.coll.Programs[programsProgFlush].Run(&ebpf.RunOptions{Flags: unix.BPF_F_TEST_RUN_ON_CPU}); err != nil {
		o.close()
		return nil, explain("send the records of quiet CPUs", err, false)
	}
	return o, nil
}

// probeHooks tries every hook; without an object all are refused, for the reason why there is none.
func probeHooks(cfg Config, o *object, without error) []Feature {
	load := func(name string) (*ebpf.Program, error) {
		if o == nil {
			return nil, without
		}
		return o.load(name, false)
	}
	var all []Feature
	for _, p := range []program{
		{programsProgTcIngress, groupPackets, event.HookTCIngress, "headers of received packets"},
		{programsProgTcEgress, groupPackets, event.HookTCEgress, "headers of sent packets, and samples of sending sockets"},
	} {
		f := Feature{Group: p.group, Name: p.hook.String(), Enabled: cfg.Packets.Enabled || p.hook == event.HookTCEgress && wantsTransmit(cfg)}
		if prog, err := load(p.name); err != nil {
			f.refuse(err, p.lacks)
		} else {
			f.Usable = true
			if err := haveTCX(prog); err != nil {
				f.Reason = err.Error()
				f.Fallback = "clsact: a process that is killed leaves its programs behind, until the next capture removes them"
			}
		}
		all = append(all, f)
	}
	egress := all[len(all)-1]
	xdp := Feature{Group: groupPackets, Name: event.HookXDP.String(), Enabled: cfg.Packets.Enabled && cfg.Packets.XDP}
	if _, err := load(programsProgXdpIngress); err != nil {
		xdp.refuse(err)
		if all[0].Usable {
			xdp.Fallback = event.HookTCIngress.String()
		}
	} else {
		xdp.Usable = true // an interface without it is seen by tc_ingress
	}
	all = append(all, xdp, probeTransmit(cfg, o, egress))
	for _, p := range append(slices.Clone(traced), inventoryProgram) {
		f := Feature{Group: p.group, Name: p.hook.String(), Enabled: p.wants(cfg)}
		prog, err := load(p.name)
		if err == nil {
			err = tryAttach(p, prog)
		}
		if err != nil {
			f.refuse(err, p.lacks)
		} else {
			f.Usable = true
		}
		all = append(all, f)
	}
	return all
}

// tryAttach attaches the program of a tracepoint or iterator and detaches it again.
func tryAttach(p program, prog *ebpf.Program) error {
	if p.hook == event.HookInventory {
		it, err := link.AttachIter(link.IterOptions{Program: prog})
		if err != nil {
			return explain("attach iter/tcp", err, false)
		}
		return it.Close()
	}
	ln, err := link.AttachTracing(link.TracingOptions{Program: prog})
	if err != nil {
		return explain("attach tp_btf/"+p.hook.String(), err, false)
	}
	return ln.Close()
}

// probeTransmit finds out where the sockets of sent segments are sampled.
func probeTransmit(cfg Config, o *object, egress Feature) Feature {
	f := Feature{Group: groupSockets, Name: event.HookTransmit.String(), Enabled: wantsTransmit(cfg)}
	why := errors.New("capture.sockets.transmit is egress")
	if o != nil && cfg.Sockets.Transmit != TransmitEgress {
		_, links, err := o.loadTransmit(false, false)
		for _, ln := range links {
			err = errors.Join(err, ln.Close())
		}
		if err == nil {
			f.Usable, f.Through = true, "fentry/"+transmitFunction
			return f
		}
		why = err
	}
	switch {
	case !egress.Usable:
		f.Reason, f.Hint, f.Missing = egress.Reason, egress.Hint, []string{transmit.lacks}
	case cfg.Sockets.Transmit == TransmitFentry:
		f.refuse(why, transmit.lacks)
	default:
		f.refuse(why)
		f.Usable, f.Hint = true, ""
		f.Fallback = "the egress program at tc samples the packet's socket, on captured interfaces only"
	}
	return f
}

// refuse says why a feature does not work, and what is lost.
func (f *Feature) refuse(err error, missing ...string) {
	f.Usable = false
	f.Missing = missing
	f.Reason, _, _ = strings.Cut(err.Error(), "\n")
	if h, ok := errors.AsType[*hinted](err); ok {
		f.Hint = h.hint
	}
}

// haveTCX finds out whether the kernel has tcx without attaching anything: an interface that
// cannot be is refused as such only by a kernel that knows the request.
func haveTCX(prog *ebpf.Program) error {
	ln, err := link.AttachTCX(link.TCXOptions{Interface: 1<<31 - 1, Program: prog, Attach: ebpf.AttachTCXIngress})
	switch {
	case err == nil:
		return ln.Close()
	case errors.Is(err, unix.ENODEV):
		return nil
	}
	return fmt.Errorf("this kernel (%s) has no tcx: %w", release(), err)
}
