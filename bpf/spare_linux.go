// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"log/slog"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// spareRest is for how long the limit has to leave nothing out until the spare is attached again.
const spareRest = 1_000_000_000 // ns

// spare is the second program of tcp_probe (TRACE in transport.h) where samples are limited. The kernel calls the programs of a
// tracepoint one by one as soon as there are two, which at every segment costs several times what the first does
// where it leaves the sample out. So while the limit leaves samples out there is one: what interrupts it then counts as left out by
// the limit, too. As with all of these, a change of the socket's state is sampled at its next segment.
type spare struct {
	prog   *ebpf.Program
	untold func() uint64 // see untoldProbes
	log    *slog.Logger

	// Of the reader.
	seen  uint64 // samples that the limit left out
	busy  uint64 // when there were more of them last
	wants bool   // attached

	move sync.Mutex // of what follows; held while the kernel attaches and detaches, which takes it milliseconds
	at   link.Link  // nil: detached
	done bool

	count  sync.Mutex // of what follows
	off    bool
	mark   uint64 // untold events when it was detached
	before uint64 // left out before that
	out    uint64 // left out
}

func newSpare(prog *ebpf.Program, at link.Link, untold func() uint64, log *slog.Logger) *spare {
	return &spare{prog: prog, at: at, untold: untold, log: log, wants: true}
}

// look is for the reader's turns: limited is the number of samples that the limit has left out.
func (s *spare) look(now, limited uint64) {
	if limited != s.seen {
		s.seen, s.busy = limited, now
	}
	wants := s.busy == 0 || now-s.busy >= spareRest
	if wants == s.wants || !s.move.TryLock() {
		return // or next time
	}
	s.wants = wants
	go func() {
		defer s.move.Unlock()
		switch {
		case s.done:
		case wants:
			s.attach()
		default:
			s.detach()
		}
	}()
}

func (s *spare) detach() {
	s.begin(s.untold())
	if s.at == nil {
		return
	}
	if err := s.at.Close(); err != nil {
		s.log.Warn("detach", "error", err)
	}
	s.at = nil
}

func (s *spare) attach() {
	at, err := link.AttachTracing(link.TracingOptions{Program: s.prog})
	if err != nil {
		s.log.Warn("samples of segments that interrupt the program of tcp_probe are missed", "error", err)
	}
	s.at = at
	s.end(s.untold())
}

// begin counts from here on what no program tells of as left out.
func (s *spare) begin(untold uint64) {
	s.count.Lock()
	defer s.count.Unlock()
	s.off, s.mark, s.before = true, untold, s.out
}

// end counts it as missed again.
func (s *spare) end(untold uint64) {
	s.leftOut(untold)
	s.count.Lock()
	defer s.count.Unlock()
	s.off = false
}

// leftOut is how many of all untold events count as left out by the limit.
func (s *spare) leftOut(untold uint64) uint64 {
	s.count.Lock()
	defer s.count.Unlock()
	if s.off {
		s.out = max(s.out, s.before+untold-min(untold, s.mark))
	}
	return s.out
}

// close detaches it for good.
func (s *spare) close() {
	s.move.Lock()
	defer s.move.Unlock()
	s.done = true
	if s.at == nil {
		return
	}
	if err := s.at.Close(); err != nil {
		s.log.Warn("detach", "error", err)
	}
	s.at = nil
}
