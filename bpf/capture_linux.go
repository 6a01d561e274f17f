// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/tcbee/tcbee-export/bpf/event"
)

const (
	// tickMargin is taken off a Tick's time, for clocks of CPUs that differ a little.
	tickMargin = 50_000 // ns
	// tickIdle is the longest time between Ticks.
	tickIdle = 1_000_000_000 // ns
	// minTurn and a quarter of the ring, whichever is more, are what comes between two Ticks at most while the reader keeps up:
	// who puts events in order has to hold them until then.
	minTurn = 1 << 20
	// accountEvery is how often changed counters are recorded.
	accountEvery = 1_000_000_000 // ns
)

// batchHeader is sizeof(struct tcb_batch).
const batchHeader = int(unsafe.Sizeof(programsSlot{}.Batch))

// Capture is a running capture. Next is for one goroutine; the other methods may be called
// from any.
type Capture struct {
	cfg      Config
	log      *slog.Logger
	ns       *namespace
	obj      *object
	ring     *ring
	slots    *slots
	control  []byte // struct control, shared with the kernel
	programs []loaded
	links    []link.Link
	spare    *spare // nil: there is none
	ifaces   *interfaces
	event    int // eventfd that ends a wait
	clock    clockWatch

	stopOnce  sync.Once
	closeOnce sync.Once
	stopped   atomic.Bool

	inventory inventory

	backlog func(behind bool)          // see OnBacklog
	watcher *watcher                   // see Watch
	looks   atomic.Uint64              // how often Next looked for something to do
	before  [event.Hooks]uint64        // what unran counted until the programs recorded
	missing [event.Hooks]atomic.Uint64 // what missed has told

	mu      sync.Mutex // guards what follows
	side    []byte     // records of other goroutines, for the next batch
	anchors *anchors
	stepped []byte // anchors at times when the wall clock was set, for the next batch

	// Of the reader; Close takes the lock to wait for a Next that still runs.
	reading   sync.Mutex
	closed    bool
	own       []byte // records of user space that were returned by the last Next
	next      []byte // ... that the next one returns
	held      []byte // batch that comes after them
	marked    bool   // a round waits for its Tick:
	mark      uint64 // position in the ring
	watermark uint64
	ticked    uint64 // time of the last Tick
	tickedAt  uint64 // when that was
	round     uint64 // time of the last round
	accounted uint64
	busy      bool // batches came since the last Tick
	touched   byte // what touch read, so that the compiler keeps it
	behind    bool // the ring fills up
	done      bool
	account   [][event.Hooks]event.Counters // as recorded last
	poll      []unix.PollFd
}

// loaded is a program in the kernel, and where it is attached if that is one place.
type loaded struct {
	program
	prog *ebpf.Program
	at   link.Link
}

// Open loads and attaches what cfg asks for; from then on records gather, and Next returns
// them. ctx ends the start only. A part of a group that the kernel refuses is left out with a
// warning; it is an error if a whole group has to be left out (see Probe), or an interface does not exist.
// log may be nil. Close must be called in the end.
func Open(ctx context.Context, cfg Config, log *slog.Logger) (*Capture, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if err := checkRights(); err != nil {
		return nil, fmt.Errorf("capture: %w", err)
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	c := &Capture{cfg: cfg, log: log, event: -1}
	if err := c.open(ctx); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// netnsPath is the namespace's path, "" for the own one.
func (c Config) netnsPath() string {
	if c.Netns == "all" || c.Netns == "own" {
		return ""
	}
	return c.Netns
}

func (c *Capture) open(ctx context.Context) (err error) {
	var set settings
	if c.ns, err = openNamespace(c.cfg.netnsPath()); err != nil {
		return err
	}
	err = c.ns.do(func() (err error) {
		set.linkNetns, err = netnsCookie()
		return err
	})
	if err != nil {
		return err
	}
	if c.cfg.Netns != "all" {
		set.netns = set.linkNetns
	}
	if set.hz, err = kernelHZ(); err != nil {
		return err
	}
	if c.obj, err = loadObject(c.cfg, set); err != nil {
		return err
	}
	if c.ring, err = newRing(c.obj.coll.Maps[programsMapRing]); err != nil {
		return err
	}
	if c.slots, err = newSlots(c.obj.coll.Maps[programsMapSlots], c.obj.coll.Programs[programsProgFlush], c.obj.cpus); err != nil {
		return err
	}
	if c.control, err = unix.Mmap(c.obj.coll.Maps[programsMapControls].FD(), 0, int(unsafe.Sizeof(programsControl{})),
		unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return fmt.Errorf("map the controls: %w", err)
	}
	if c.event, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return fmt.Errorf("make an eventfd: %w", err)
	}
	c.poll = []unix.PollFd{{Fd: int32(c.ring.fd), Events: unix.POLLIN}, {Fd: int32(c.event), Events: unix.POLLIN}}
	c.account = make([][event.Hooks]event.Counters, c.obj.cpus)
	if c.anchors, err = newAnchors(); err != nil {
		return err
	}
	c.next = c.anchors.append(c.next, event.AnchorStart)
	if err := c.clock.start(c.tellStep); err != nil {
		return err
	}
	now := monotonic()
	c.round, c.ticked, c.tickedAt, c.accounted, c.slots.last = now, now, now, now, now
	for i := range c.slots.free {
		c.slots.free[i] = now
	}
	if err := c.attachTraced(true); err != nil {
		return err
	}
	if err := c.attachTransmit(true); err != nil {
		return err
	}
	if err := c.attachInterfaces(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := c.begin(); err != nil {
		return err
	}
	if err := c.startInventory(); err != nil {
		return err
	}
	c.obj.cache = nil // no more programs to load
	return nil
}

// begin has the attached programs record. Events that they interrupted before are nobody's loss.
func (c *Capture) begin() error {
	c.before = c.unran()
	if err := c.obj.record(); err != nil {
		return fmt.Errorf("begin to record: %w", err)
	}
	return nil
}

// attachTraced attaches the programs of tracepoints, and if nested is set the second program of each, for events that
// interrupt the first (TRACE in transport.h): after it, because the kernel runs those of a tracepoint in this order.
func (c *Capture) attachTraced(nested bool) error {
	failed, worked := map[string]error{}, map[string]bool{}
	for _, p := range traced {
		if !p.wants(c.cfg) {
			continue
		}
		prog, at, err := c.attachTracepoint(p.name, p.hook)
		if err != nil {
			failed[p.group] = err
			c.log.Warn("hook left out", "hook", p.hook.String(), "missing", p.lacks, "error", err)
			continue
		}
		worked[p.group] = true
		c.links = append(c.links, at)
		c.programs = append(c.programs, loaded{p, prog, at})
		if !nested {
			continue
		}
		second, at, err := c.attachTracepoint(p.name+again, p.hook)
		switch {
		case err != nil:
			c.log.Warn("events of a hook that interrupt its program are missed", "hook", p.hook.String(), "error", err)
		case p.hook == event.HookTCPProbe && c.cfg.Sockets.Samples == SamplesLimited:
			c.spare = newSpare(second, at, c.untoldProbes, c.log)
		default:
			c.links = append(c.links, at)
		}
	}
	for group, err := range failed {
		if !worked[group] {
			return fmt.Errorf("capture.%s: %w", group, err)
		}
	}
	return nil
}

// attachTracepoint loads a program by name and attaches it to its tracepoint.
func (c *Capture) attachTracepoint(name string, hook event.Hook) (*ebpf.Program, link.Link, error) {
	prog, err := c.obj.load(name, c.cfg.Verbose)
	if err != nil {
		return nil, nil, err
	}
	at, err := link.AttachTracing(link.TracingOptions{Program: prog})
	if err != nil {
		return nil, nil, explain("attach tp_btf/"+hook.String(), err, c.cfg.Verbose)
	}
	return prog, at, nil
}

// attachTransmit chooses where the sockets of sent segments are sampled.
func (c *Capture) attachTransmit(nested bool) error {
	if !wantsTransmit(c.cfg) || c.cfg.Sockets.Transmit == TransmitEgress {
		return nil
	}
	prog, links, err := c.obj.loadTransmit(nested, c.cfg.Verbose)
	switch {
	case err == nil:
		c.obj.transmits = true
		c.links = append(c.links, links...)
		c.programs = append(c.programs, loaded{transmit, prog, nil})
	case c.cfg.Sockets.Transmit == TransmitFentry:
		return hint(fmt.Errorf("capture.sockets.transmit: %w", err), "set it to auto: the egress programs then take these samples")
	default:
		c.log.Debug("sending sockets are sampled at egress", "error", err)
	}
	return nil
}

// attachInterfaces attaches the tc programs.
func (c *Capture) attachInterfaces() error {
	if !c.cfg.Packets.Enabled && (!wantsTransmit(c.cfg) || c.obj.transmits) {
		return nil
	}
	i := &interfaces{cfg: c.cfg, ns: c.ns, log: c.log, told: c.tellLink}
	for _, p := range []struct {
		name string
		hook event.Hook
		dst  **ebpf.Program
		want bool
	}{
		{programsProgTcIngress, event.HookTCIngress, &i.in, c.cfg.Packets.Enabled},
		{programsProgTcIngressL3, event.HookTCIngress, &i.inL3, c.cfg.Packets.Enabled},
		{programsProgXdpIngress, event.HookXDP, &i.xdp, c.cfg.Packets.Enabled && c.cfg.Packets.XDP},
		{programsProgTcEgress, event.HookTCEgress, &i.out, true},
		{programsProgTcEgressL3, event.HookTCEgress, &i.outL3, true},
	} {
		if !p.want {
			continue
		}
		prog, err := c.obj.load(p.name, c.cfg.Verbose)
		if err != nil {
			return fmt.Errorf("capture.packets: %w", err)
		}
		*p.dst = prog
		c.programs = append(c.programs, loaded{program{name: p.name, group: groupPackets, hook: p.hook}, prog, nil})
	}
	if err := haveTCX(i.out); err != nil || c.cfg.noTCX {
		i.classic = true
		c.log.Warn("no tcx on this kernel: attaching by clsact, which a killed process leaves behind", "error", err)
	}
	if err := i.open(); err != nil {
		return fmt.Errorf("capture.packets: %w", err)
	}
	c.ifaces = i
	return nil
}

// tellLink records an interface; any goroutine may call it.
func (c *Capture) tellLink(l *event.Link) {
	c.mu.Lock()
	l.Time = monotonic() // with the lock: a Tick that was already told is earlier
	c.side = event.Append(c.side, l)
	c.mu.Unlock()
}

// tellStep records an anchor at once, because the wall clock was set: the reader may be busy.
func (c *Capture) tellStep() {
	c.mu.Lock()
	c.stepped = c.anchors.append(c.stepped, event.AnchorPeriodic)
	c.mu.Unlock()
}

// Next returns the next batch of records, 8-byte aligned and checked, valid until the next
// call of Next, Stop or not. Records of the kernel are returned where they lie in the ring, which is
// why they must not be written to. The first record of all is the Anchor that opens the session. It
// returns at least once a second, then with a Tick; after Stop it returns what is left, the
// last Accounting, the Anchor that ends the session, and then io.EOF.
func (c *Capture) Next(ctx context.Context) ([]byte, error) {
	c.reading.Lock()
	defer c.reading.Unlock()
	if c.closed {
		return nil, fmt.Errorf("capture: %w", os.ErrClosed)
	}
	if c.held == nil {
		c.ring.release()
	}
	for {
		c.looks.Add(1)
		if len(c.next) > 0 {
			c.own, c.next = c.next, c.own[:0]
			return c.own, nil
		}
		if b := c.held; b != nil {
			c.held = nil
			return b, nil
		}
		if c.done {
			return nil, io.EOF
		}
		// A Tick holds when all that lay in the ring at its round has been returned.
		if c.marked && c.ring.pos >= c.mark {
			c.tick()
			continue
		}
		now := monotonic()
		if !c.marked && (now-c.round >= uint64(c.cfg.FlushAge) || c.ring.end()-c.mark >= max(minTurn, (c.ring.mask+1)/4)) {
			if err := c.turn(now); err != nil {
				return nil, err
			}
			continue
		}
		if raw := c.ring.next(); raw != nil {
			c.busy = true
			c.lookBehind()
			if err := c.take(raw); err != nil {
				return nil, err
			}
			continue
		}
		c.ring.release()
		if c.stopped.Load() {
			if err := c.finish(); err != nil {
				return nil, err
			}
			continue
		}
		if err := c.wait(ctx, now); err != nil {
			return nil, err
		}
	}
}

// take checks one record of the ring and holds its batch, after the losses it tells of.
func (c *Capture) take(raw []byte) error {
	if len(raw) < batchHeader {
		return fmt.Errorf("ring: %w: batch of %d bytes", event.ErrShort, len(raw))
	}
	size := int(binary.NativeEndian.Uint32(raw))
	if size > len(raw)-batchHeader {
		return fmt.Errorf("ring: %w: batch of %d bytes tells of %d", event.ErrShort, len(raw), size)
	}
	if first := binary.NativeEndian.Uint64(raw[8:]); first != 0 {
		var count [event.Hooks]uint32
		for h := range count {
			count[h] = binary.NativeEndian.Uint32(raw[24+4*h:])
		}
		c.next = appendLost(c.next, first, binary.NativeEndian.Uint64(raw[16:]), count, binary.NativeEndian.Uint16(raw[4:]))
	}
	raw = raw[batchHeader : batchHeader+size]
	if len(raw) == 0 {
		return nil
	}
	c.touched ^= touch(raw)
	if err := event.Check(raw); err != nil {
		return fmt.Errorf("ring: %w", err)
	}
	c.held = raw
	return nil
}

// touch reads a byte of each cache line of b, which another CPU has just written. Asked for in one go, the lines arrive many
// at a time, where the walk from record to record would wait for one after the other.
func touch(b []byte) (x byte) {
	for i := 0; i < len(b); i += 64 {
		x ^= b[i]
	}
	return x
}

// turn is one round: quiet CPUs are told to send what has grown old, the clocks are
// looked at, and the next Tick is prepared.
func (c *Capture) turn(now uint64) error {
	c.round = now
	c.lookBehind()
	// A full ring would lose what a slot can still hold: then nothing is flushed.
	until := now - uint64(c.cfg.FlushAge)/2
	if c.ring.used() > c.ring.mask/4*3 {
		until = 0
	}
	watermark, err := c.slots.sweep(now, until)
	if err != nil {
		return err
	}
	c.watermark = watermark - tickMargin
	c.marked, c.mark = true, c.ring.end()
	// Records of other goroutines are stamped under the lock: those that the next Tick covers are here.
	c.mu.Lock()
	c.next = append(c.next, c.stepped...)
	c.stepped = c.stepped[:0]
	if c.anchors.due(monotonic()) {
		c.next = c.anchors.append(c.next, event.AnchorPeriodic)
	}
	c.next = append(c.next, c.side...)
	c.side = c.side[:0]
	c.mu.Unlock()
	c.next = c.slots.overs(c.next, now)
	if c.spare != nil {
		c.spare.look(now, c.slots.limited())
	}
	if now-c.accounted >= accountEvery {
		c.accounted = now
		c.next = c.appendAccounting(c.next, now, false)
	}
	return nil
}

// OnBacklog has f called, by Next, when the reader falls behind the kernel and the ring is a quarter full, and
// when it has caught up. It must be called before the first Next; see Watch for a reader that does not run at all.
func (c *Capture) OnBacklog(f func(behind bool)) { c.backlog = f }

func (c *Capture) lookBehind() {
	used, size := c.ring.used(), c.ring.mask+1
	behind := used > size/4 || c.behind && used > size/16
	if behind != c.behind && c.backlog != nil {
		c.backlog(behind)
	}
	c.behind = behind
	if used <= size/4 {
		c.callMe()
	}
}

// tick ends a round.
func (c *Capture) tick() {
	c.marked = false
	if !c.busy && c.round-c.tickedAt < tickIdle {
		return
	}
	c.busy, c.tickedAt = false, c.round
	c.ticked = max(c.ticked, c.watermark)
	c.next = event.Append(c.next, &event.Tick{Header: event.Header{Time: c.ticked}})
}

// wait sleeps until the next round, the ring fills up, ctx ends or Stop is called.
func (c *Capture) wait(ctx context.Context, now uint64) error {
	c.callMe()
	stop := context.AfterFunc(ctx, c.wake)
	defer stop()
	timeout := time.Duration(c.round + uint64(c.cfg.FlushAge) - now)
	ms := int((timeout + time.Millisecond - 1) / time.Millisecond)
	if _, err := unix.Poll(c.poll, ms); err != nil && !errors.Is(err, unix.EINTR) {
		return fmt.Errorf("wait for the ring: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	var b [8]byte
	if c.poll[1].Revents != 0 {
		_, _ = unix.Read(c.event, b[:])
	}
	return nil
}

// wake ends a wait.
func (c *Capture) wake() {
	one := [8]byte{1}
	_, _ = unix.Write(c.event, one[:])
}

// finish collects what is left after Stop.
func (c *Capture) finish() error {
	// Programs that were running when the links were closed come to their end meanwhile.
	quiet := 0
	for try := 0; try < 100 && quiet < 2; try++ {
		before := c.ring.end()
		now := monotonic()
		oldest, err := c.slots.sweep(now, now)
		if err != nil {
			return err
		}
		if c.ring.end() != c.ring.pos {
			if raw := c.ring.next(); raw != nil {
				return c.take(raw) // returned first; finish is called again
			}
		}
		if quiet++; oldest < now || c.ring.end() != before {
			quiet = 0
		}
		time.Sleep(2 * time.Millisecond)
	}
	now := monotonic()
	c.next = c.slots.rest(c.next)
	c.next = c.slots.overs(c.next, now)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.next = append(append(c.next, c.stepped...), c.side...)
	c.stepped, c.side = nil, nil
	c.next = c.appendAccounting(c.next, now, true)
	c.next = event.Append(c.next, &event.Tick{Header: event.Header{Time: max(c.ticked, now)}})
	c.next = c.anchors.append(c.next, event.AnchorEnd)
	c.done = true
	return nil
}

// appendAccounting appends the counters of the CPUs on which they changed, or all that ever did.
func (c *Capture) appendAccounting(dst []byte, now uint64, last bool) []byte {
	for cpu := range c.account {
		counters := c.slots.counters(cpu)
		if cpu == 0 {
			c.addUntold(&counters)
			counters[event.HookInventory].Seen += c.inventory.told.Load()
		}
		if counters == c.account[cpu] && (!last || counters == [event.Hooks]event.Counters{}) {
			continue
		}
		c.account[cpu] = counters
		a := event.Accounting{Hook: counters}
		a.Time, a.CPU = now, uint16(cpu)
		dst = event.Append(dst, &a)
	}
	return dst
}

// addUntold adds the events that no program told of, which the kernel does not count for each CPU.
func (c *Capture) addUntold(counters *[event.Hooks]event.Counters) (leftOut uint64) {
	missed, leftOut := c.untold(c.unran(), c.slots.again())
	for h, n := range missed {
		counters[h].Seen += n
		counters[h].Missed += n
	}
	counters[event.HookTCPProbe].Seen += leftOut
	counters[event.HookTCPProbe].Filtered += leftOut
	return leftOut
}

// unran is how often the kernel did not run a program of each hook since begin, because it was running already.
func (c *Capture) unran() (n [event.Hooks]uint64) {
	for _, p := range c.programs {
		if s, err := p.prog.Stats(); err == nil {
			n[p.hook] += s.RecursionMisses
		}
	}
	for h, before := range c.before {
		n[h] -= min(n[h], before)
	}
	return n
}

// untold takes from that how often the second program ran instead: no program told of the rest, which is missed, or left out
// by the limit (see spare). That number is read later, so that an event under way is rather missed later than too much, and
// what was missed once remains so.
func (c *Capture) untold(unran, again [event.Hooks]uint64) (missed [event.Hooks]uint64, leftOut uint64) {
	for h, n := range unran {
		n -= min(n, again[h])
		if event.Hook(h) == event.HookTCPProbe && c.spare != nil {
			leftOut = c.spare.leftOut(n)
			n -= min(n, leftOut)
		}
		missed[h] = raise(&c.missing[h], n)
	}
	return missed, leftOut
}

// untoldProbes is how many segments no program of tcp_probe told of.
func (c *Capture) untoldProbes() uint64 {
	unran, again := c.unran()[event.HookTCPProbe], c.slots.again()[event.HookTCPProbe]
	return unran - min(unran, again)
}

// raise makes a at least n and returns it.
func raise(a *atomic.Uint64, n uint64) uint64 {
	for {
		switch old := a.Load(); {
		case old >= n:
			return old
		case a.CompareAndSwap(old, n):
			return n
		}
	}
}

// Accounting returns the counters of all hooks up to now. After Close they are zero.
func (c *Capture) Accounting() Accounting {
	c.mu.Lock()
	defer c.mu.Unlock()
	var a Accounting
	if c.slots == nil {
		return a
	}
	a.Limited = c.slots.limited()
	for cpu := range c.obj.cpus {
		counters := c.slots.counters(cpu)
		if cpu == 0 {
			a.Limited += c.addUntold(&counters)
			counters[event.HookInventory].Seen += c.inventory.told.Load()
		}
		a.CPUs = append(a.CPUs, counters)
		for h, n := range counters {
			a.Total[h].Seen += n.Seen
			a.Total[h].Dropped += n.Dropped
			a.Total[h].Missed += n.Missed
			a.Total[h].Filtered += n.Filtered
		}
	}
	return a
}

// Stop detaches everything; Next then returns what is left. It may be called more than once
// and from any goroutine.
func (c *Capture) Stop() {
	c.stopOnce.Do(func() {
		if c.ifaces != nil {
			c.ifaces.close()
		}
		// A second program without the first would tell what it did not miss.
		if c.spare != nil {
			c.spare.close()
		}
		for _, ln := range slices.Backward(c.links) {
			if err := ln.Close(); err != nil {
				c.log.Warn("detach", "error", err)
			}
		}
		c.stopInventory()
		c.stopped.Store(true)
		c.wake()
	})
}

// Close stops the capture if Stop was not called, and releases everything, batches of Next
// too. What Next did not return by then is lost.
func (c *Capture) Close() error {
	var errs []error
	c.closeOnce.Do(func() {
		c.Stop()
		errs = append(errs, c.clock.close(), c.watcher.close())
		c.reading.Lock()
		defer c.reading.Unlock()
		c.closed = true
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.ring != nil {
			errs = append(errs, c.ring.close())
		}
		if c.slots != nil {
			errs = append(errs, c.slots.close())
			c.slots = nil
		}
		if c.control != nil {
			errs = append(errs, unix.Munmap(c.control))
		}
		if c.event >= 0 {
			errs = append(errs, unix.Close(c.event))
		}
		if c.obj != nil {
			c.obj.close()
		}
		if c.ns != nil {
			c.ns.close()
		}
	})
	return errors.Join(errs...)
}
