// SPDX-License-Identifier: Apache-2.0

package loadtest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/tcbee/tcbee-export/bpf/netlab"
)

// settle is how long an observer may work on after the last packet, within what is measured: with it
// its own last block or buffer is paid for.
const settle = time.Second

// Packets measures what the whole host pays for each packet that comes in at an interface: with nobody
// looking, recorded by the group packets, and written by tcpdump. It tells each run when it is done.
func Packets(ctx context.Context, o PacketOptions, _ *slog.Logger, each func(PacketRun)) (_ PacketResult, err error) {
	res := PacketResult{CPUs: runtime.NumCPU()}
	if err := errors.Join(o.Validate(), o.find()); err != nil {
		return res, err
	}
	if o.TCPDump {
		if _, err := exec.LookPath("tcpdump"); err != nil {
			return res, fmt.Errorf("compare with tcpdump: %w", err)
		}
	}
	o.Capture.Packets.Enabled, o.Capture.Sockets.Enabled, o.Capture.Events.Enabled = true, false, false
	lab, err := netlab.New(ctx, netlab.Options{Direct: true})
	if err != nil {
		return res, err
	}
	defer func() { err = errors.Join(err, lab.Close()) }()
	s, err := newSender(lab, o)
	if err != nil {
		return res, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	observers := o.observers()
	for round := range o.Rounds {
		for i := range observers {
			run, err := o.observe(ctx, lab, s, observers[(i+round)%len(observers)])
			if err != nil {
				return res, err
			}
			res.Runs = append(res.Runs, run)
			if each != nil {
				each(run)
			}
		}
	}
	res.sum(observers)
	return res, nil
}

// observe is one run.
func (o PacketOptions) observe(ctx context.Context, lab *netlab.Lab, s *sender, who Observer) (run PacketRun, err error) {
	run.Observer = who
	defer func() {
		if context.Cause(ctx) != nil {
			err = context.Cause(ctx) // the rest is a consequence
		}
	}()
	pid := 0
	var rec *recording
	var dump *tcpdump
	switch who {
	case Record:
		if rec, err = o.startRecorder(ctx, lab.B, "own", "record"); err != nil {
			return run, err
		}
		defer func() { err = errors.Join(err, rec.abandon()) }()
		pid = rec.cmd.Process.Pid
	case TCPDump:
		if dump, err = o.startTCPDump(ctx, lab.B); err != nil {
			return run, err
		}
		defer func() { err = errors.Join(err, dump.abandon()) }()
		pid = dump.cmd.Process.Pid
	}
	// What earlier runs have left to be written is not this one's.
	unix.Sync()
	runtime.GC()
	before, err := read(lab.B, pid)
	if err != nil {
		return run, err
	}
	start := time.Now()
	if err := s.send(ctx, o.Packets, o.Rate); err != nil {
		return run, err
	}
	run.Seconds = time.Since(start).Seconds()
	if err := sleep(ctx, settle); err != nil {
		return run, err
	}
	after, err := read(lab.B, pid)
	if err != nil {
		return run, err
	}
	run.Sent, run.Machine = uint64(o.Packets), after.machine(before)
	run.OwnCPU, run.AnonBytes = after.recorder-before.recorder, after.anon
	switch who {
	case Record:
		var r Recorder
		if _, err := rec.finish(&r); err != nil {
			return run, err
		}
		run.Observed, run.Lost = r.Stored, r.Dropped+r.Missed
	case TCPDump:
		if run.Observed, run.Lost, err = dump.finish(); err != nil {
			return run, err
		}
	}
	return run, nil
}

// tcpdump is one at work.
type tcpdump struct {
	process
	dir string // of its file, removed in the end
}

// startTCPDump starts tcpdump as one who must not lose time would: each packet is handed over at once.
func (o PacketOptions) startTCPDump(ctx context.Context, n *netlab.Namespace) (*tcpdump, error) {
	dir, err := os.MkdirTemp(o.Dir, "tcbee-bench-")
	if err != nil {
		return nil, fmt.Errorf("make a directory for tcpdump: %w", err)
	}
	d := &tcpdump{dir: dir}
	// -Z: it would not be allowed to write here as another user.
	cmd := n.Command("tcpdump", "-i", n.Interface, "-n", "-s", "96", "--immediate-mode", "-Z", "root", "-w", filepath.Join(dir, "pcap"))
	if err := d.start(ctx, n, cmd); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !strings.Contains(d.stderr.String(), "listening on") {
		select {
		case <-tick.C:
		case <-d.ended:
			return nil, errors.Join(errors.New("tcpdump ended before it listened"), d.abandon())
		}
	}
	return d, nil
}

var tcpdumpCounts = regexp.MustCompile(`(?s)(\d+) packets? captured.*?(\d+) packets? dropped by kernel`)

// finish ends tcpdump and returns its own counts.
func (d *tcpdump) finish() (captured, dropped uint64, err error) {
	d.interrupt()
	if err := d.wait(); err != nil {
		return 0, 0, err
	}
	m := tcpdumpCounts.FindStringSubmatch(d.stderr.String())
	if m == nil {
		return 0, 0, fmt.Errorf("tcpdump told no counts: %s", d.stderr.String())
	}
	captured, _ = strconv.ParseUint(m[1], 10, 64)
	dropped, _ = strconv.ParseUint(m[2], 10, 64)
	return captured, dropped, nil
}

func (d *tcpdump) abandon() error {
	d.interrupt()
	return errors.Join(d.wait(), os.RemoveAll(d.dir))
}

// sender sends TCP segments from A to B by an AF_PACKET socket: many connections in both directions with moving
// sequence numbers, acknowledgments and timestamps. They are for the address of another host, so that B
// drops them as soon as the hooks and taps have seen them.
type sender struct {
	fd     int
	cpu    int
	rng    *rand.Rand
	frames [][]byte // one for each connection
	iov    [sendBatch]unix.Iovec
	msgs   [sendBatch]mmsghdr
	next   int
}

// mmsghdr is struct mmsghdr of sendmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
	_   [4]byte
}

// A frame is Ethernet, IPv4, TCP with timestamps, and some payload; sendBatch go out with one call.
const (
	sendBatch   = 64
	frameIP     = 14
	frameTCP    = frameIP + 20
	frameOption = frameTCP + 20
	frameHead   = frameOption + 12
	framePay    = 34
	frameLen    = frameHead + framePay
)

func newSender(lab *netlab.Lab, o PacketOptions) (_ *sender, err error) {
	s := &sender{fd: -1, cpu: o.CPU, rng: rand.New(rand.NewPCG(1, 2))}
	err = lab.A.Do(func() error {
		ifi, err := net.InterfaceByName(lab.A.Interface)
		if err != nil {
			return err
		}
		// Protocol 0: this socket receives nothing.
		if s.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return os.NewSyscallError("socket", err)
		}
		if err := unix.Bind(s.fd, &unix.SockaddrLinklayer{Ifindex: ifi.Index}); err != nil {
			return os.NewSyscallError("bind", err)
		}
		// Nothing of A's own stack is part of what is measured.
		return os.NewSyscallError("PACKET_QDISC_BYPASS", unix.SetsockoptInt(s.fd, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1))
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("send packets: %w", err), s.close())
	}
	for i := range o.Flows {
		s.frames = append(s.frames, s.frame(i))
	}
	for i := range s.msgs {
		s.iov[i].SetLen(frameLen)
		s.msgs[i].hdr.Iov = &s.iov[i]
		s.msgs[i].hdr.SetIovlen(1)
	}
	return s, nil
}

// frame makes the first segment of a connection. Of two that follow one another one sends data and the other acknowledges.
func (s *sender) frame(i int) []byte {
	f := make([]byte, frameLen)
	copy(f, []byte{2, 0x77, 0, 0, 9, 9, 2, 0x77, 0, 0, 9, 8, 8, 0}) // to a third party, IPv4
	client, server := []byte{10, 77, byte(i >> 8), byte(i)}, []byte{192, 168, byte(i >> 8), byte(i)}
	port := uint16(32768 + s.rng.IntN(28000))
	ip := f[frameIP:]
	ip[0], ip[8], ip[9] = 0x45, 64, unix.IPPROTO_TCP
	binary.BigEndian.PutUint16(ip[2:], frameLen-frameIP)
	binary.BigEndian.PutUint16(ip[6:], 0x4000) // DF: the identification says nothing
	tcp := f[frameTCP:]
	if i%2 == 0 {
		copy(ip[12:], client)
		copy(ip[16:], server)
		binary.BigEndian.PutUint16(tcp, port)
		binary.BigEndian.PutUint16(tcp[2:], 443)
	} else {
		copy(ip[12:], server)
		copy(ip[16:], client)
		binary.BigEndian.PutUint16(tcp, 443)
		binary.BigEndian.PutUint16(tcp[2:], port)
	}
	binary.BigEndian.PutUint16(ip[10:], ^onesSum(ip[:20]))
	binary.BigEndian.PutUint32(tcp[4:], s.rng.Uint32())
	binary.BigEndian.PutUint32(tcp[8:], s.rng.Uint32())
	tcp[12], tcp[13] = 8<<4, 0x10 // 32 bytes; ACK
	binary.BigEndian.PutUint16(tcp[14:], uint16(s.rng.Uint32())|0x100)
	copy(f[frameOption:], []byte{1, 1, 8, 10}) // NOP, NOP, timestamps
	binary.BigEndian.PutUint32(f[frameOption+4:], s.rng.Uint32())
	binary.BigEndian.PutUint32(f[frameOption+8:], s.rng.Uint32())
	return f
}

// onesSum is the sum of RFC 1071.
func onesSum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

// advance makes the connection's next segment.
func (s *sender) advance(f []byte) {
	r := s.rng.Uint32()
	add := func(at int, n uint32) {
		binary.BigEndian.PutUint32(f[at:], binary.BigEndian.Uint32(f[at:])+n)
	}
	add(frameTCP+4, framePay)
	add(frameTCP+8, r&1*1448)
	add(frameOption+4, r>>1&1)
	add(frameOption+8, r>>2&1)
	if r&0xf0 == 0 {
		binary.BigEndian.PutUint16(f[frameTCP+14:], uint16(r>>16)|0x100) // another window
	}
}

// send sends packets at a rate, in bursts of at most a batch, on its CPU.
func (s *sender) send(ctx context.Context, packets, perSecond int) (err error) {
	// The thread is given back as it was: if it died instead, it would take along the children that it has started.
	runtime.LockOSThread()
	var before, own unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		runtime.UnlockOSThread()
		return os.NewSyscallError("sched_getaffinity", err)
	}
	own.Set(s.cpu)
	defer func() {
		if back := unix.SchedSetaffinity(0, &before); back != nil {
			err = errors.Join(err, os.NewSyscallError("sched_setaffinity", back)) // stays locked: unfit for others
			return
		}
		runtime.UnlockOSThread()
	}()
	if err := unix.SchedSetaffinity(0, &own); err != nil {
		return fmt.Errorf("run on CPU %d: %w", s.cpu, err)
	}
	start := time.Now()
	for sent := 0; sent < packets; {
		if err := ctx.Err(); err != nil {
			return err
		}
		due := min(int(time.Since(start).Seconds()*float64(perSecond)), packets) - sent
		if due < min(sendBatch, packets-sent) {
			// Not time.Sleep, which wakes other threads.
			t := unix.NsecToTimespec(int64(100 * time.Microsecond))
			_ = unix.Nanosleep(&t, nil)
			continue
		}
		n, err := s.batch(min(due, sendBatch))
		if err != nil {
			return err
		}
		sent += n
	}
	return nil
}

// batch sends n packets, each of another connection.
func (s *sender) batch(n int) (int, error) {
	for i := range n {
		f := s.frames[s.next]
		if s.next++; s.next == len(s.frames) {
			s.next = 0
		}
		s.advance(f)
		s.iov[i].Base = &f[0]
	}
	for {
		got, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(s.fd), uintptr(unsafe.Pointer(&s.msgs[0])), uintptr(n), 0, 0, 0)
		switch errno {
		case 0:
			return int(got), nil
		case unix.EINTR, unix.EAGAIN, unix.ENOBUFS:
		default:
			return 0, os.NewSyscallError("sendmmsg", errno)
		}
	}
}

func (s *sender) close() error {
	if s.fd < 0 {
		return nil
	}
	return unix.Close(s.fd)
}
