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
	lack := missingCapabilities()
	var all []Feature
	for _, c := range capabilities {
		f := Feature{Group: "rights", Name: c.Name, Enabled: true, Usable: !slices.Contains(lack, c.Name)}
		if !f.Usable {
			f.Reason = "the process does not have it"
			f.Hint = setcapHint
		}
		all = append(all, f)
	}
	transport := Feature{Group: "transport", Name: "ring buffer, per-CPU slots, flush", Enabled: true}
	small := cfg
	small.RingBytes = minRing
	hz, err := kernelHZ()
	var o *object
	if err == nil {
		o, err = loadObject(small, settings{hz: hz})
	}
	if err != nil {
		transport.refuse(err, "everything")
		return append(all, transport)
	}
	defer o.close()
	if _, err := o.coll.Programs[programsProgFlush].Run(&ebpf.RunOptions{Flags: unix.BPF_F_TEST_RUN_ON_CPU}); err != nil {
		transport.refuse(err, "everything: records of quiet CPUs would never arrive")
	} else {
		transport.Usable = true
	}
	all = append(all, transport)

	for _, p := range []program{
		{programsProgTcIngress, groupPackets, event.HookTCIngress, "headers of received packets"},
		{programsProgTcEgress, groupPackets, event.HookTCEgress, "headers of sent packets, and samples of sending sockets"},
	} {
		f := Feature{Group: p.group, Name: p.hook.String(), Enabled: cfg.Packets.Enabled || p.hook == event.HookTCEgress && wantsTransmit(cfg)}
		if prog, err := o.load(p.name, false); err != nil {
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
	if _, err := o.load(programsProgXdpIngress, false); err != nil {
		xdp.refuse(err)
		xdp.Fallback = event.HookTCIngress.String()
	} else {
		xdp.Usable = true // an interface without it is seen by tc_ingress
	}
	all = append(all, xdp, Feature{Group: groupSockets, Name: event.HookTransmit.String(), Enabled: wantsTransmit(cfg),
		Usable: egress.Usable, Reason: egress.Reason, Fallback: "sampled by the egress program at tc, through the packet's socket"})
	for _, p := range traced {
		f := Feature{Group: p.group, Name: p.hook.String(), Enabled: p.wants(cfg)}
		prog, err := o.load(p.name, false)
		if err == nil {
			var ln link.Link
			if ln, err = link.AttachTracing(link.TracingOptions{Program: prog}); err == nil {
				err = ln.Close()
			}
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
