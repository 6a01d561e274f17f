// SPDX-License-Identifier: Apache-2.0

//go:build linux

package netlab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Transfer is a bulk transfer over one connection: exactly Bytes from the client to the server,
// which checks every one of them.
type Transfer struct {
	// From is the client's namespace, To the server's; nil: A and B.
	From, To *Namespace
	// Bytes to send.
	Bytes int64
	// Congestion is the client's congestion control ("reno", "cubic", "bbr"); "": the default.
	Congestion string
	// IPv6 instead of IPv4.
	IPv6 bool
	// Port of the server; 0: any.
	Port uint16
	// Started, if set, is called when the connection is there, before any data.
	Started func(client, server *net.TCPConn)
}

// Result is what a Transfer did.
type Result struct {
	Client, Server netip.AddrPort
	// Sent and Received payload bytes. Received is what was checked and right.
	Sent, Received int64
	Elapsed        time.Duration
	// Before is the client's TCP_INFO when all was acknowledged, before the FIN.
	Before TCPInfo
	// After is the client's TCP_INFO after both FINs: the socket's last state.
	After TCPInfo
	// ServerBefore is the server's at the end of the data, before its FIN.
	ServerBefore TCPInfo
	// ClientCookie and ServerCookie are the sockets' cookies.
	ClientCookie, ServerCookie uint64
}

// The stream's content: a block of pseudo-random bytes, repeated. Its length is a prime, so that no
// segment, page or buffer size divides it and a misplaced piece is noticed.
const patternLen = 65521

var pattern = sync.OnceValue(func() []byte {
	// Twice, so that a slice may begin anywhere in the first half.
	b := make([]byte, 2*patternLen)
	x := uint32(2463534242) // xorshift32, G. Marsaglia 2003
	for i := range patternLen {
		x ^= x << 13
		x ^= x >> 17
		x ^= x << 5
		b[i] = byte(x >> 24)
		b[patternLen+i] = b[i]
	}
	return b
})

// at returns up to patternLen bytes of the stream from offset on.
func at(offset int64, n int) []byte {
	start := int(offset % patternLen)
	return pattern()[start : start+min(n, patternLen)]
}

// Listen opens a listening TCP socket inside the namespace.
func (n *Namespace) Listen(ctx context.Context, addr netip.AddrPort) (l *net.TCPListener, err error) {
	err = n.Do(func() error {
		lc := net.ListenConfig{}
		lc.SetMultipathTCP(false)
		got, err := lc.Listen(ctx, "tcp", addr.String())
		if err != nil {
			return err
		}
		l = got.(*net.TCPListener)
		return nil
	})
	return l, err
}

// Dial connects from inside the namespace. congestion may be empty.
func (n *Namespace) Dial(ctx context.Context, to netip.AddrPort, congestion string) (c *net.TCPConn, err error) {
	err = n.Do(func() error {
		d := net.Dialer{Control: func(_, _ string, rc syscall.RawConn) error {
			if congestion == "" {
				return nil
			}
			var err error
			e := rc.Control(func(fd uintptr) {
				err = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, congestion)
			})
			if err != nil {
				err = fmt.Errorf("congestion control %q: %w", congestion, err)
			}
			return errors.Join(e, err)
		}}
		d.SetMultipathTCP(false)
		got, err := d.DialContext(ctx, "tcp", to.String())
		if err != nil {
			return err
		}
		c = got.(*net.TCPConn)
		return nil
	})
	return c, err
}

// Addr returns the namespace's address, IPv6 or IPv4.
func (n *Namespace) Addr(ipv6 bool) netip.Addr {
	if ipv6 {
		return n.IPv6
	}
	return n.IPv4
}

func addrPort(a net.Addr) netip.AddrPort {
	ap := a.(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// pair makes one connection between two namespaces.
func (l *Lab) pair(ctx context.Context, from, to *Namespace, ipv6 bool, port uint16, cc string) (client, server *net.TCPConn, err error) {
	ln, err := to.Listen(ctx, netip.AddrPortFrom(to.Addr(ipv6), port))
	if err != nil {
		return nil, nil, err
	}
	defer ln.Close()
	if d, ok := ctx.Deadline(); ok {
		if err := ln.SetDeadline(d); err != nil {
			return nil, nil, err
		}
	}
	// The kernel completes the handshake without accept.
	client, err = from.Dial(ctx, addrPort(ln.Addr()), cc)
	if err != nil {
		return nil, nil, err
	}
	server, err = ln.AcceptTCP()
	if err != nil {
		return nil, nil, errors.Join(err, client.Close())
	}
	return client, server, nil
}

// ends fills in From and To where they are nil.
func (l *Lab) ends(from, to *Namespace) (*Namespace, *Namespace) {
	if from == nil {
		from = l.A
	}
	if to == nil {
		to = l.B
	}
	return from, to
}

// interrupt closes the connections when ctx ends; stop it when they are not needed any more.
func interrupt(ctx context.Context, conns ...*net.TCPConn) (stop func() bool) {
	return context.AfterFunc(ctx, func() {
		past := time.Unix(1, 0)
		for _, c := range conns {
			_ = c.SetDeadline(past) // fails only on a closed one
		}
	})
}

// Transfer runs a bulk transfer to its end: both sockets are closed in order, the client first. It is
// bounded by ctx.
func (l *Lab) Transfer(ctx context.Context, t Transfer) (r Result, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("transfer of %d bytes (%d received): %w", t.Bytes, r.Received, errors.Join(err, context.Cause(ctx)))
		}
	}()
	from, to := l.ends(t.From, t.To)
	client, server, err := l.pair(ctx, from, to, t.IPv6, t.Port, t.Congestion)
	if err != nil {
		return r, err
	}
	defer client.Close()
	defer server.Close()
	defer interrupt(ctx, client, server)()

	r.Client, r.Server = addrPort(client.LocalAddr()), addrPort(server.LocalAddr())
	if r.ClientCookie, err = SocketCookie(client); err != nil {
		return r, err
	}
	if r.ServerCookie, err = SocketCookie(server); err != nil {
		return r, err
	}
	if t.Started != nil {
		t.Started(client, server)
	}
	start := time.Now()
	received := make(chan error, 1)
	go func() { received <- r.receive(server) }()
	sendErr := r.send(ctx, client, t.Bytes)
	if sendErr != nil {
		// The receiver must not wait for the rest.
		_ = client.SetLinger(0)
		_ = client.Close()
	}
	recvErr := <-received
	r.Elapsed = time.Since(start)
	if err := errors.Join(sendErr, recvErr); err != nil {
		return r, err
	}
	if r.Received != t.Bytes {
		return r, errors.New("the receiver got another number of bytes")
	}
	return r, nil
}

func (r *Result) send(ctx context.Context, c *net.TCPConn, n int64) error {
	for r.Sent < n {
		m, err := c.Write(at(r.Sent, int(min(n-r.Sent, patternLen))))
		r.Sent += int64(m)
		if err != nil {
			return fmt.Errorf("send: %w", err)
		}
	}
	// All must be acknowledged for TCP_INFO to be the last word on the data. There is no
	// event to wait for, so this asks again until the deadline of ctx.
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		left, err := unsent(c)
		if err != nil {
			return err
		}
		if left == 0 {
			break
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("send: %d bytes are not acknowledged: %w", left, ctx.Err())
		case <-tick.C:
		}
	}
	var err error
	if r.Before, err = Info(c); err != nil {
		return err
	}
	if err := c.CloseWrite(); err != nil {
		return fmt.Errorf("send FIN: %w", err)
	}
	// The server's FIN comes when it has read all.
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		return fmt.Errorf("wait for the server's FIN: %w", err)
	}
	r.After, err = Info(c)
	return err
}

func (r *Result) receive(c *net.TCPConn) error {
	buf := make([]byte, patternLen)
	for {
		n, err := c.Read(buf)
		if !bytes.Equal(buf[:n], at(r.Received, n)) {
			return fmt.Errorf("receive: wrong content within bytes %d to %d", r.Received, r.Received+int64(n))
		}
		r.Received += int64(n)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("receive: %w", err)
		}
	}
	var err error
	if r.ServerBefore, err = Info(c); err != nil {
		return err
	}
	if err := c.Close(); err != nil {
		return fmt.Errorf("close at the receiver: %w", err)
	}
	return nil
}

// Exchange is request and response over and over on one or many connections.
type Exchange struct {
	// From is the client's namespace, To the server's; nil: A and B.
	From, To *Namespace
	// Connections, one after another, and Requests on each; 0: 1.
	Connections, Requests int
	// RequestBytes and ResponseBytes of payload; 0: 1.
	RequestBytes, ResponseBytes int
	// Congestion control of the client; "": the default.
	Congestion string
	IPv6       bool
	// Reset ends each connection with a RST from the client instead of a FIN.
	Reset bool
}

// Exchange runs to its end, bounded by ctx. It returns the clients' addresses.
func (l *Lab) Exchange(ctx context.Context, e Exchange) (clients []netip.AddrPort, err error) {
	from, to := l.ends(e.From, e.To)
	reqLen, respLen := max(e.RequestBytes, 1), max(e.ResponseBytes, 1)
	one := func(i int) error {
		client, server, err := l.pair(ctx, from, to, e.IPv6, 0, e.Congestion)
		if err != nil {
			return err
		}
		defer client.Close()
		defer server.Close()
		defer interrupt(ctx, client, server)()
		clients = append(clients, addrPort(client.LocalAddr()))
		served := make(chan error, 1)
		go func() { served <- serve(server, max(e.Requests, 1), reqLen, respLen, e.Reset) }()
		if err := ask(client, max(e.Requests, 1), reqLen, respLen); err != nil {
			_ = client.SetLinger(0)
			return errors.Join(err, client.Close(), <-served)
		}
		if e.Reset {
			err = errors.Join(client.SetLinger(0), client.Close())
		} else {
			err = client.CloseWrite()
			if err == nil {
				_, err = client.Read(make([]byte, 1))
				if errors.Is(err, io.EOF) {
					err = nil
				}
			}
		}
		return errors.Join(err, <-served)
	}
	for i := range max(e.Connections, 1) {
		if err := one(i); err != nil {
			return clients, fmt.Errorf("exchange, connection %d: %w", i, errors.Join(err, context.Cause(ctx)))
		}
	}
	return clients, nil
}

func ask(c *net.TCPConn, requests, reqLen, respLen int) error {
	buf := make([]byte, respLen)
	for i := range requests {
		if err := writeAll(c, int64(i)*int64(reqLen), reqLen); err != nil {
			return fmt.Errorf("request %d: %w", i, err)
		}
		if _, err := io.ReadFull(c, buf); err != nil {
			return fmt.Errorf("response %d: %w", i, err)
		}
	}
	return nil
}

func serve(c *net.TCPConn, requests, reqLen, respLen int, reset bool) error {
	buf := make([]byte, reqLen)
	for i := range requests {
		if _, err := io.ReadFull(c, buf); err != nil {
			return fmt.Errorf("read request %d: %w", i, err)
		}
		if err := writeAll(c, int64(i)*int64(respLen), respLen); err != nil {
			return fmt.Errorf("write response %d: %w", i, err)
		}
	}
	_, err := c.Read(buf[:1])
	switch {
	case reset && errors.Is(err, unix.ECONNRESET), !reset && errors.Is(err, io.EOF):
		return c.Close()
	case err == nil:
		return errors.New("more than was asked for came after the last request")
	}
	return fmt.Errorf("end of the connection: %w", err)
}

func writeAll(c *net.TCPConn, offset int64, n int) error {
	for n > 0 {
		m, err := c.Write(at(offset, n))
		if err != nil {
			return err
		}
		offset += int64(m)
		n -= m
	}
	return nil
}

// Refused sends a SYN to a port where nobody listens and returns nil when it was refused.
func (l *Lab) Refused(ctx context.Context, from, to *Namespace, port uint16) error {
	from, to = l.ends(from, to)
	c, err := from.Dial(ctx, netip.AddrPortFrom(to.IPv4, port), "")
	if err == nil {
		return errors.Join(fmt.Errorf("port %d accepted the connection", port), c.Close())
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return err
	}
	return nil
}

// States of tcp_states.h that have left the traffic behind them.
const (
	stateTimeWait = 6
	stateClose    = 7
	stateListen   = 10
)

// Quiet waits until no TCP socket of the namespace is open any more (listeners and TIME_WAIT do not
// count) and no packet is under way in the lab, so that counters have their last value.
func (n *Namespace) Quiet(ctx context.Context) error {
	const open = ^uint32(1<<stateTimeWait | 1<<stateClose | 1<<stateListen)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		socks, err := n.Sockets(open)
		if err != nil {
			return err
		}
		if len(socks) == 0 {
			return n.settle(ctx)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d sockets of namespace %s are still open, the first %v to %v: %w",
				len(socks), n.Label, socks[0].Local, socks[0].Peer, ctx.Err())
		case <-tick.C:
		}
	}
}

// settle returns when the packets that are under way have arrived, and what they gave rise to. A socket that is
// closed does not say that: a segment that was sent twice, or an answer to it, may still lie in the receive queue of
// a CPU that is busy with other things.
func (n *Namespace) settle(ctx context.Context) (err error) {
	if n.lab.R != nil {
		if err := n.lab.R.drained(ctx); err != nil {
			return err
		}
	}
	// The thread is given back as it was. Did it end instead, the processes that were started from it
	// would be killed (see Command).
	runtime.LockOSThread()
	var cpus unix.CPUSet
	if err := unix.SchedGetaffinity(0, &cpus); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("CPUs of this thread: %w", err)
	}
	defer func() {
		if back := unix.SchedSetaffinity(0, &cpus); back != nil {
			err = errors.Join(err, fmt.Errorf("CPUs of this thread: %w", back)) // stays locked: unfit for others
			return
		}
		runtime.UnlockOSThread()
	}()
	return n.Do(func() error {
		// A segment goes to the router, from there to the other end, and the answer back.
		for range 4 {
			for cpu := range len(cpus) * bits.UintSize {
				if !cpus.IsSet(cpu) {
					continue
				}
				if err := passQueue(ctx, cpu); err != nil {
					return fmt.Errorf("receive queue of CPU %d: %w", cpu, err)
				}
			}
		}
		return nil
	})
}

// passQueue sends a datagram over lo and receives it, with the thread on the CPU: as a veth does, lo puts what it
// sends at the end of the CPU's receive queue.
func passQueue(ctx context.Context, cpu int) error {
	var one unix.CPUSet
	one.Set(cpu)
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return err
	}
	self, err := unix.Getsockname(fd)
	if err != nil {
		return err
	}
	wait := unix.NsecToTimeval(int64(100 * time.Millisecond))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait); err != nil {
		return err
	}
	// A queue that is full drops it: then another is sent.
	for {
		if err := unix.Sendto(fd, []byte{0}, 0, self); err != nil {
			return err
		}
		_, _, err := unix.Recvfrom(fd, make([]byte, 1), 0)
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR):
			return err
		}
	}
}

// drained waits until nothing waits before a rate limit of the namespace.
func (n *Namespace) drained(ctx context.Context) error {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		waiting := uint32(0)
		err := n.Do(func() error {
			discs, err := netlink.QdiscList(nil)
			for _, q := range discs {
				if s := q.Attrs().Statistics; s != nil && s.Queue != nil {
					waiting += s.Queue.Qlen
				}
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("queues of namespace %s: %w", n.Label, err)
		}
		if waiting == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d packets wait in namespace %s: %w", waiting, n.Label, ctx.Err())
		case <-tick.C:
		}
	}
}
