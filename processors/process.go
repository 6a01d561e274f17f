// SPDX-License-Identifier: Apache-2.0

package processors

import "github.com/tcbee/tcbee-export/bpf/event"

// processes knows whose connections are: the thread groups that listen, and those whose
// connect has no local port yet.
type processes struct {
	listeners map[listener]process
	pending   map[uint64]connect // by cookie
	queue     []uint64           // cookies of pending, oldest first
	names     map[[16]byte]string
}

type listener struct {
	netns uint64
	addr  [16]byte
	port  uint16
}

type process struct {
	pid    uint32
	comm   string
	cgroup uint64
}

type connect struct {
	process
	time uint64
}

// maxPending bounds the connects that wait for their port: it comes within microseconds.
const maxPending = 4096

// maxNames bounds the thread names that are kept to be shared.
const maxNames = 65536

func newProcesses() processes {
	return processes{
		listeners: map[listener]process{},
		pending:   map[uint64]connect{},
		names:     map[[16]byte]string{},
	}
}

// clear forgets all: another boot may follow.
func (p *processes) clear() {
	clear(p.listeners)
	clear(p.pending)
	p.queue = p.queue[:0]
}

func (p *processes) of(i *event.Incident) process {
	if i.Present&event.HasProcess == 0 {
		return process{}
	}
	name, ok := p.names[i.Comm]
	if !ok {
		if len(p.names) >= maxNames {
			clear(p.names)
		}
		name = string(comm(&i.Comm))
		p.names[i.Comm] = name
	}
	return process{pid: i.PID, comm: name, cgroup: i.Cgroup}
}

// take sets the connection's process from an incident that has one.
func (p *processes) take(c *Connection, i *event.Incident) {
	if i.Present&event.HasProcess != 0 && i.PID != 0 {
		p.of(i).set(c)
	}
}

func (p process) set(c *Connection) { c.PID, c.Comm, c.Cgroup = p.pid, p.comm, p.cgroup }

// listens notes who listens, or that nobody does any more.
func (p *processes) listens(i *event.Incident, on bool) {
	key := listener{netns: i.Netns, addr: i.Local, port: i.LocalPort}
	if !on {
		delete(p.listeners, key)
		return
	}
	p.listeners[key] = p.of(i)
}

// connects notes a connect whose port is not known yet.
func (p *processes) connects(i *event.Incident) {
	if i.Cookie == 0 {
		return
	}
	if _, ok := p.pending[i.Cookie]; !ok {
		if len(p.queue) >= maxPending {
			for _, cookie := range p.queue[:maxPending/2] {
				delete(p.pending, cookie)
			}
			p.queue = p.queue[:copy(p.queue, p.queue[maxPending/2:])]
		}
		p.queue = append(p.queue, i.Cookie)
	}
	p.pending[i.Cookie] = connect{process: p.of(i), time: i.Time}
}

// join gives the connection what its connect told, if that waits under its cookie.
func (p *processes) join(c *Connection, syn *uint64, wall func(uint64) int64) bool {
	w, ok := p.pending[c.Cookie]
	if !ok {
		return false
	}
	delete(p.pending, c.Cookie)
	if w.pid != 0 {
		w.set(c)
	}
	if c.Established == 0 || w.time < c.Established {
		c.Role, c.Opened = RoleClient, true
		*syn = w.time
		if w.time < c.First {
			c.First, c.StartWall = w.time, wall(w.time)
		}
	}
	return true
}

var (
	anyIPv6 = [16]byte{}
	anyIPv4 = [16]byte{10: 0xff, 11: 0xff}
)

// find returns the process that listens at the connection's local end.
func (p *processes) find(c *Connection) (process, bool) {
	key := listener{netns: c.Netns, addr: c.Local.Addr().As16(), port: c.Local.Port()}
	if w, ok := p.listeners[key]; ok {
		return w, true
	}
	if c.Local.Addr().Is4() {
		key.addr = anyIPv4
		if w, ok := p.listeners[key]; ok {
			return w, true
		}
	}
	key.addr = anyIPv6
	w, ok := p.listeners[key]
	return w, ok
}

// listening reports whether somebody listens at the connection's local end.
func (p *processes) listening(c *Connection) bool {
	_, ok := p.find(c)
	return ok
}

// accept gives a connection that came in the process that listens there.
func (p *processes) accept(c *Connection) {
	if c.PID != 0 {
		return
	}
	if w, ok := p.find(c); ok && w.pid != 0 {
		w.set(c)
	}
}
