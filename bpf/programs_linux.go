// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"github.com/tcbee/tcbee-export/bpf/event"
)

// Groups of hooks.
const (
	groupPackets = "packets"
	groupSockets = "sockets"
	groupEvents  = "events"
)

// program is one of the kernel's programs.
type program struct {
	name  string // in the object
	group string
	hook  event.Hook
	lacks string // what is missing without it
}

// traced are the programs that are attached to a tracepoint, once for the host.
var traced = []program{
	{programsProgTcpProbe, groupSockets, event.HookTCPProbe, "samples of receiving sockets"},
	{programsProgTcpDestroySock, groupSockets, event.HookDestroySock, "the final sample of each socket"},
	{programsProgInetSockSetState, groupEvents, event.HookSetState, "states and processes of connections"},
	{programsProgTcpRetransmitSkb, groupEvents, event.HookRetransmitSKB, "retransmissions"},
	{programsProgTcpRetransmitSynack, groupEvents, event.HookRetransmitSynAck, "repeated SYN-ACKs"},
	{programsProgTcpSendReset, groupEvents, event.HookSendReset, "resets sent, and why"},
	{programsProgTcpReceiveReset, groupEvents, event.HookReceiveReset, "resets received"},
	{programsProgTcpCongStateSet, groupEvents, event.HookCongStateSet, "changes of the congestion state"},
	{programsProgTcpBadCsum, groupEvents, event.HookBadChecksum, "segments with a bad checksum"},
	{programsProgKfreeSkb, groupEvents, event.HookKfreeSKB, "segments that the host dropped, and why"},
	{programsProgTcpRcvSpaceAdjust, groupEvents, event.HookRcvSpaceAdjust, "the receive buffer's tuning"},
}

// wants tells whether the configuration asks for the program.
func (p program) wants(cfg Config) bool {
	switch {
	case p.hook == event.HookTCPProbe:
		return cfg.Sockets.Enabled && cfg.Sockets.Samples != SamplesOff
	case p.hook == event.HookInventory:
		return cfg.Inventory
	case p.group == groupSockets:
		return cfg.Sockets.Enabled
	case p.group == groupEvents:
		return cfg.wantsHook(p.hook)
	}
	return cfg.Packets.Enabled
}

// wantsTransmit tells whether the sockets of sent segments are sampled.
func wantsTransmit(cfg Config) bool {
	return cfg.Sockets.Enabled && cfg.Sockets.Samples != SamplesOff
}

// transmit samples the sockets of sent segments, where the kernel runs it.
var transmit = program{programsProgTcpTransmit, groupSockets, event.HookTransmit, "samples of sending sockets"}

// transmitFunction is the kernel's function that transmit is attached to.
const transmitFunction = "__tcp_transmit_skb"

// constants is the map that holds the programs' constants.
const constants = ".rodata"

// again is added to a program's name for the one that tells of what interrupts it (TRACE in transport.h).
const again = "_again"

// loadTransmit loads the program transmit and attaches it, unless the kernel does not run it at every segment; if nested is set the
// second one before it, because the kernel runs what was attached to a function last first. The links are in the order of running.
func (o *object) loadTransmit(nested, verbose bool) (prog *ebpf.Program, links []link.Link, err error) {
	names := []string{transmit.name}
	if nested {
		names = []string{transmit.name + again, transmit.name}
	}
	if err := undivided(transmitFunction); err != nil {
		return nil, nil, err
	}
	for _, name := range names {
		var ln link.Link
		if prog, err = o.load(name, verbose); err == nil {
			if ln, err = link.AttachTracing(link.TracingOptions{Program: prog}); err != nil {
				err = explain("attach fentry/"+transmitFunction, err, verbose)
			}
		}
		if err != nil {
			for _, ln := range links {
				_ = ln.Close()
			}
			return nil, nil, err
		}
		links = append(links, ln)
	}
	slices.Reverse(links)
	return prog, links, nil
}

// undivided fails if the compiler made variants of a function of the kernel, which the callers that they
// were made for call instead. A function that was inlined or renamed everywhere is not there to be attached to at all.
func undivided(function string) error {
	f, err := os.Open("/proc/kallsyms")
	if err != nil {
		return nil // without the list the function is taken as it seems
	}
	defer func() { _ = f.Close() }()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		name := lines.Bytes()
		if i := bytes.LastIndexByte(name, ' '); i >= 0 {
			name = name[i+1:]
		}
		// ".cold" is a part that the function itself jumps to.
		if rest, ok := bytes.CutPrefix(name, []byte(function+".")); ok && !bytes.HasPrefix(rest, []byte("cold")) {
			return fmt.Errorf("this kernel (%s) has variants of %s: %s", release(), function, name)
		}
	}
	return nil
}

// object is the loaded object: the maps, and each program that was asked for.
type object struct {
	spec *ebpf.CollectionSpec
	coll *ebpf.Collection // the maps and the program flush
	more []*ebpf.Collection
	// transmits is set when a program of its own samples the sockets of sent segments: those of egress must not.
	transmits bool
	cpus      int
	// cache holds the kernel's type information, some 20 MiB, while programs are loaded.
	cache *btf.Cache
}

// settings become constants of the programs.
type settings struct {
	hz        uint32
	netns     uint64 // sockets of this namespace only, 0: all
	linkNetns uint64 // the interfaces' namespace
}

// loadObject makes the maps and loads the program flush, which all else needs.
func loadObject(cfg Config, set settings) (*object, error) {
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, fmt.Errorf("raise RLIMIT_MEMLOCK: %w", err)
	}
	spec, err := loadPrograms()
	if err != nil {
		return nil, fmt.Errorf("read the programs: %w", err)
	}
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return nil, fmt.Errorf("count the CPUs: %w", err)
	}
	size := cfg.ringBytes(cpus)
	cgroup, err := cfg.Filter.cgroupID()
	if err != nil {
		return nil, err
	}
	cache := btf.NewCache()
	limit := cfg.Sockets.limit(set.hz)
	spec.Maps[programsMapSlots].MaxEntries = uint32(cpus * slotLevels)
	spec.Maps[programsMapRing].MaxEntries = uint32(size)
	for name, v := range map[string]any{
		programsVarCfgWake:          uint64(size / 4),
		programsVarCfgHz:            set.hz,
		programsVarCfgJiffyUs:       quotient(1_000_000, set.hz),
		programsVarCfgJiffyMs:       quotient(1_000, set.hz),
		programsVarCfgNetns:         set.netns,
		programsVarCfgLinkNetns:     set.linkNetns,
		programsVarCfgPackets:       flag(cfg.Packets.Enabled),
		programsVarCfgChecksum:      flag(cfg.Packets.Checksum),
		programsVarCfgTransmit:      flag(wantsTransmit(cfg)),
		programsVarCfgRetransmitErr: flag(tracepointArgs(cache, "tcp_retransmit_skb") > 2),
		programsVarCfgKfreeSock:     flag(tracepointArgs(cache, "kfree_skb") > 3),
		programsVarCfgResetReason:   flag(tracepointArgs(cache, "tcp_send_reset") > 2),
		programsVarCfgFilter:        cfg.Filter.flags(),
		programsVarCfgSample:        uint32(cfg.Filter.Sample),
		programsVarCfgCgroup:        cgroup,
		programsVarCfgCa:            knownStates(cache),
		programsVarCfgChangesOnly:   flag(cfg.Sockets.Samples == SamplesChanges),
		programsVarCfgLimitStep:     limit.step,
		programsVarCfgLimitAhead:    limit.ahead,
		programsVarCfgAboveStep:     limit.above,
		programsVarCfgCpuStep:       limit.cpu,
	} {
		if err := spec.Variables[name].Set(v); err != nil {
			panic("BUG: set " + name + ": " + err.Error())
		}
	}
	base := spec.Copy()
	withoutGenerator(base)
	base.Programs = map[string]*ebpf.ProgramSpec{programsProgFlush: spec.Programs[programsProgFlush].Copy()}
	o := &object{spec: spec, cpus: cpus, cache: cache}
	o.coll, err = ebpf.NewCollectionWithOptions(base, ebpf.CollectionOptions{Cache: o.cache})
	if err != nil {
		return nil, explain("load the transport", err, cfg.Verbose)
	}
	if err := cfg.Filter.fill(o.coll.Maps[programsMapPorts], o.coll.Maps[programsMapPrefixes]); err != nil {
		o.close()
		return nil, err
	}
	return o, nil
}

// record has all programs, those loaded later too, record what happens from here on.
func (o *object) record() error { return o.coll.Variables[programsVarRecording].Set(uint32(1)) }

// load loads one program by name; it shares the maps with all others.
func (o *object) load(name string, verbose bool) (*ebpf.Program, error) {
	one := o.spec.Copy()
	withoutGenerator(one)
	one.Programs = map[string]*ebpf.ProgramSpec{name: o.spec.Programs[name].Copy()}
	shared := maps.Clone(o.coll.Maps)
	if o.transmits {
		// Constants of its own: those that are shared were set before this was known.
		delete(shared, constants)
		if err := one.Variables[programsVarCfgTransmit].Set(flag(false)); err != nil {
			panic("BUG: set " + programsVarCfgTransmit + ": " + err.Error())
		}
	}
	coll, err := ebpf.NewCollectionWithOptions(one, ebpf.CollectionOptions{MapReplacements: shared, Cache: o.cache})
	if err != nil {
		return nil, explain("load "+name, err, verbose)
	}
	o.more = append(o.more, coll)
	return coll.Programs[name], nil
}

// tracepointArgs returns how many arguments a tracepoint has on this kernel, 0 if it is unknown.
func tracepointArgs(cache *btf.Cache, name string) int {
	kernel, err := cache.Kernel()
	if err != nil {
		return 0
	}
	var typedef *btf.Typedef
	if err := kernel.TypeByName("btf_trace_"+name, &typedef); err != nil {
		return 0
	}
	if ptr, ok := typedef.Type.(*btf.Pointer); ok {
		if proto, ok := ptr.Target.(*btf.FuncProto); ok {
			return len(proto.Params) - 1 // the first is the tracepoint's private data
		}
	}
	return 0
}

// withoutGenerator leaves out the maps that only the generator of load uses.
func withoutGenerator(spec *ebpf.CollectionSpec) {
	delete(spec.Maps, programsMapFlows)
	delete(spec.Maps, programsMapLoads)
}

func (o *object) close() {
	for _, c := range o.more {
		c.Close()
	}
	o.coll.Close()
}

// quotient returns n / d, 0 if that is no whole number.
func quotient(n, d uint32) uint32 {
	if n%d != 0 {
		return 0
	}
	return n / d
}

func flag(b bool) uint8 {
	if b {
		return 1
	}
	return 0
}

// explain says what was refused and why in one line, with a hint where one helps. The
// verifier's log is part of it only on request.
func explain(what string, err error, verbose bool) error {
	var ve *ebpf.VerifierError
	if errors.As(err, &ve) && verbose {
		return fmt.Errorf("%s: %+v", what, ve) //nolint:errorlint // %+v is what prints the log
	}
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES) && ve == nil:
		if lack := missingCapabilities(); len(lack) > 0 {
			return hint(fmt.Errorf("%s: %w: the process lacks %s", what, unix.EPERM, strings.Join(lack, ", ")),
				setcapHint)
		}
		return hint(fmt.Errorf("%s: %w: this kernel refuses it although all capabilities are there", what, unix.EPERM),
			"a container's seccomp profile or kernel lockdown may forbid bpf(); see \"tcbee-export doctor\"")
	case errors.Is(err, unix.ENOMEM):
		return hint(fmt.Errorf("%s: %w", what, unix.ENOMEM), "lower capture.ring_bytes")
	case errors.Is(err, ebpf.ErrNotSupported), errors.Is(err, unix.EINVAL):
		return hint(fmt.Errorf("%s: this kernel (%s) lacks a feature it needs: %w", what, release(), last(err)),
			"6.6 or newer with BTF (CONFIG_DEBUG_INFO_BTF) has all of them; see \"tcbee-export doctor\"")
	case ve != nil:
		return hint(fmt.Errorf("%s: the kernel's verifier (%s) refuses the program: %w", what, release(), ve.Cause),
			"set capture.verbose to see the verifier's log, and report it")
	}
	return fmt.Errorf("%s: %w", what, last(err))
}

// last strips the context that cilium/ebpf puts around an error, which names internals.
func last(err error) error {
	var ve *ebpf.VerifierError
	if errors.As(err, &ve) {
		return ve.Cause
	}
	return err
}

// release is the kernel's version, such as 6.12.43-amd64.
func release() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(u.Release[:])
}

// kernelHZ returns the running kernel's CONFIG_HZ: the resolution of the coarse clocks is one tick.
func kernelHZ() (uint32, error) {
	var tick unix.Timespec
	if err := unix.ClockGetres(unix.CLOCK_MONOTONIC_COARSE, &tick); err != nil {
		return 0, fmt.Errorf("read the length of a tick: %w", err)
	}
	ns := tick.Nano()
	if ns < 1e9/10_000 || ns > 1e9/10 {
		return 0, fmt.Errorf("a tick of %v is not the kernel's", time.Duration(ns))
	}
	return uint32((1e9 + ns/2) / ns), nil
}
