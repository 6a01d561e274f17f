// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
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

// wantsTransmit tells whether the egress program samples sockets.
func wantsTransmit(cfg Config) bool {
	return cfg.Sockets.Enabled && cfg.Sockets.Samples != SamplesOff
}

// object is the loaded object: the maps, and each program that was asked for.
type object struct {
	spec *ebpf.CollectionSpec
	coll *ebpf.Collection // the maps and the program flush
	more []*ebpf.Collection
	cpus int
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
	spec.Maps[programsMapSlots].MaxEntries = uint32(cpus * slotLevels)
	spec.Maps[programsMapRing].MaxEntries = uint32(size)
	for name, v := range map[string]any{
		programsVarCfgWake:          uint64(size / 4),
		programsVarCfgHz:            set.hz,
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
		programsVarCfgChangesOnly:   flag(cfg.Sockets.Samples == SamplesChanges),
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

// load loads one program by name; it shares the maps with all others.
func (o *object) load(name string, verbose bool) (*ebpf.Program, error) {
	one := o.spec.Copy()
	withoutGenerator(one)
	one.Programs = map[string]*ebpf.ProgramSpec{name: o.spec.Programs[name].Copy()}
	coll, err := ebpf.NewCollectionWithOptions(one, ebpf.CollectionOptions{
		MapReplacements: maps.Clone(o.coll.Maps), Cache: o.cache})
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

// kernelHZ finds the running kernel's CONFIG_HZ by watching jiffies, because neither a
// configuration file nor /proc/config.gz can be relied upon.
func kernelHZ() (uint32, error) {
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type:         ebpf.RawTracepoint,
		Instructions: asm.Instructions{asm.FnJiffies64.Call(), asm.Return()},
		License:      "Dual BSD/GPL",
	})
	if err != nil {
		return 0, explain("read jiffies", err, false)
	}
	defer func() { _ = prog.Close() }()
	read := func() (uint32, uint64, error) {
		j, err := prog.Run(&ebpf.RunOptions{})
		if err != nil {
			return 0, 0, explain("read jiffies", err, false)
		}
		return j, monotonic(), nil
	}
	j0, t0, err := read()
	if err != nil {
		return 0, err
	}
	// 60 ms tell 250 from 300 Hz: 15 ± 1 ticks against 18 ± 1.
	time.Sleep(60 * time.Millisecond)
	j1, t1, err := read()
	if err != nil {
		return 0, err
	}
	measured := float64(j1-j0) * 1e9 / float64(t1-t0)
	best := uint32(100)
	for _, hz := range []uint32{250, 300, 1000} {
		if abs(measured-float64(hz)) < abs(measured-float64(best)) {
			best = hz
		}
	}
	return best, nil
}

func abs(f float64) float64 { return max(f, -f) }
