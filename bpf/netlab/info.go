// SPDX-License-Identifier: Apache-2.0

//go:build linux

package netlab

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TCPInfo is struct tcp_info (include/uapi/linux/tcp.h) as of Linux 6.18, field by field and in
// its units: times in µs, those called Last… in ms. Names are those of event.Sample. Fields beyond
// what the kernel gave are 0; see Len.
type TCPInfo struct {
	State              uint8
	CAState            uint8
	Retransmits        uint8
	Probes             uint8
	Backoff            uint8
	TCPOptions         uint8
	Wscale             uint8 // two bit fields: see SndWscale, RcvWscale
	Flags              uint8 // two bit fields: see AppLimited, FastopenClientFail
	RTO                uint32
	ATO                uint32
	SndMSS             uint32
	RcvMSS             uint32
	Unacked            uint32
	Sacked             uint32
	Lost               uint32
	Retrans            uint32
	Fackets            uint32
	LastDataSent       uint32
	LastAckSent        uint32
	LastDataRecv       uint32
	LastAckRecv        uint32
	PMTU               uint32
	RcvSsthresh        uint32
	RTT                uint32
	RTTVar             uint32
	SndSsthresh        uint32
	SndCwnd            uint32
	AdvMSS             uint32
	Reordering         uint32
	RcvRTT             uint32
	RcvSpace           uint32
	TotalRetrans       uint32
	PacingRate         uint64
	MaxPacingRate      uint64
	BytesAcked         uint64
	BytesReceived      uint64
	SegsOut            uint32
	SegsIn             uint32
	NotsentBytes       uint32
	MinRTT             uint32
	DataSegsIn         uint32
	DataSegsOut        uint32
	DeliveryRate       uint64
	BusyTime           uint64
	RwndLimited        uint64
	SndbufLimited      uint64
	Delivered          uint32
	DeliveredCE        uint32
	BytesSent          uint64
	BytesRetrans       uint64
	DSACKDups          uint32
	ReordSeen          uint32
	RcvOOOPack         uint32
	SndWnd             uint32
	RcvWnd             uint32
	Rehash             uint32
	TotalRTO           uint16
	TotalRTORecoveries uint16
	TotalRTOTime       uint32
	ReceivedCE         uint32
	DeliveredE1Bytes   uint32
	DeliveredE0Bytes   uint32
	DeliveredCEBytes   uint32
	ReceivedE1Bytes    uint32
	ReceivedE0Bytes    uint32
	ReceivedCEBytes    uint32
	AccECNFailMode     uint16
	AccECNOptSeen      uint16

	Len int // bytes that the kernel gave
}

// Bytes of struct tcp_info that TCPInfo holds.
const tcpInfoSize = int(unsafe.Offsetof(TCPInfo{}.Len))

// SndWscale is the shift of the peer's window.
func (i *TCPInfo) SndWscale() uint8 { return i.Wscale & 0xf }

// RcvWscale is the shift of our window.
func (i *TCPInfo) RcvWscale() uint8 { return i.Wscale >> 4 }

// AppLimited is 1 when DeliveryRate was limited by the application.
func (i *TCPInfo) AppLimited() uint8 { return i.Flags & 1 }

// FastopenClientFail tells why TCP Fast Open failed, 0 if it did not.
func (i *TCPInfo) FastopenClientFail() uint8 { return i.Flags >> 1 & 3 }

func parseTCPInfo(b []byte) (i TCPInfo) {
	i.Len = len(b)
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&i)), tcpInfoSize), b)
	return i
}

// Info reads TCP_INFO of an open connection.
func Info(conn syscall.Conn) (info TCPInfo, err error) {
	err = control(conn, func(fd int) error {
		var buf [512]byte
		n := uint32(len(buf))
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.IPPROTO_TCP, unix.TCP_INFO,
			uintptr(unsafe.Pointer(&buf)), uintptr(unsafe.Pointer(&n)), 0)
		if errno != 0 {
			return fmt.Errorf("TCP_INFO: %w", errno)
		}
		info = parseTCPInfo(buf[:n])
		return nil
	})
	return info, err
}

// SocketCookie reads the cookie of an open socket: what bpf_get_socket_cookie tells.
func SocketCookie(conn syscall.Conn) (cookie uint64, err error) {
	err = control(conn, func(fd int) error {
		cookie, err = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
		if err != nil {
			return fmt.Errorf("SO_COOKIE: %w", err)
		}
		return nil
	})
	return cookie, err
}

// unsent returns the bytes in the send queue: not sent, or not acknowledged.
func unsent(conn syscall.Conn) (n int, err error) {
	err = control(conn, func(fd int) error {
		n, err = unix.IoctlGetInt(fd, unix.SIOCOUTQ)
		if err != nil {
			return fmt.Errorf("SIOCOUTQ: %w", err)
		}
		return nil
	})
	return n, err
}

func control(conn syscall.Conn, f func(fd int) error) error {
	rc, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	if e := rc.Control(func(fd uintptr) { err = f(int(fd)) }); e != nil {
		return e
	}
	return err
}

// Mono reads CLOCK_MONOTONIC, ns: the clock of bpf_ktime_get_ns.
func Mono() uint64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic("BUG: CLOCK_MONOTONIC: " + err.Error()) // every Linux has it
	}
	return uint64(ts.Nano())
}

// Socket is one TCP socket, as ss(8) shows it.
type Socket struct {
	Local, Peer netip.AddrPort
	State       uint8 // TCP_ESTABLISHED … of tcp_states.h
	Cookie      uint64
	UID, Inode  uint32
	Congestion  string
	Mono        uint64  // when it was read: CLOCK_MONOTONIC, ns, as events have it
	Info        TCPInfo // Len is 0 for minisocks (SYN_RECV, TIME_WAIT)
}

// struct inet_diag_req_v2 and struct inet_diag_msg (include/uapi/linux/inet_diag.h).
type diagID struct {
	sport, dport [2]byte
	src, dst     [16]byte
	ifindex      uint32
	cookie       [2]uint32
}

type diagRequest struct {
	family, protocol, ext, pad uint8
	states                     uint32
	id                         diagID
}

type diagMessage struct {
	family, state, timer, retrans       uint8
	id                                  diagID
	expires, rqueue, wqueue, uid, inode uint32
}

const (
	diagByFamily = 20 // SOCK_DIAG_BY_FAMILY
	diagInfo     = 2  // INET_DIAG_INFO
	diagCong     = 4  // INET_DIAG_CONG
)

// Sockets lists the TCP sockets of the namespace in the given states (a mask of 1<<state; 0 is all),
// IPv4 before IPv6.
func (n *Namespace) Sockets(states uint32) (socks []Socket, err error) {
	if states == 0 {
		states = ^uint32(0)
	}
	err = n.Do(func() error {
		for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
			socks, err = diag(socks, family, states)
			if err != nil {
				return fmt.Errorf("sock_diag: %w", err)
			}
		}
		return nil
	})
	return socks, err
}

func diag(dst []Socket, family uint8, states uint32) ([]Socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return dst, err
	}
	defer unix.Close(fd)
	var msg struct {
		h unix.NlMsghdr
		r diagRequest
	}
	msg.h = unix.NlMsghdr{
		Len: uint32(unsafe.Sizeof(msg)), Type: diagByFamily,
		Flags: unix.NLM_F_REQUEST | unix.NLM_F_DUMP, Seq: 1,
	}
	msg.r = diagRequest{
		family: family, protocol: unix.IPPROTO_TCP, states: states,
		ext: 1<<(diagInfo-1) | 1<<(diagCong-1),
	}
	req := unsafe.Slice((*byte)(unsafe.Pointer(&msg)), unsafe.Sizeof(msg))
	if err := unix.Sendto(fd, req, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return dst, err
	}
	buf := make([]byte, 256<<10)
	for {
		size, _, err := unix.Recvfrom(fd, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return dst, err
		}
		now := Mono()
		msgs, err := syscall.ParseNetlinkMessage(buf[:size])
		if err != nil {
			return dst, err
		}
		for _, m := range msgs {
			switch m.Header.Type {
			case unix.NLMSG_DONE:
				return dst, nil
			case unix.NLMSG_ERROR:
				if len(m.Data) >= 4 {
					if e := -*(*int32)(unsafe.Pointer(&m.Data[0])); e != 0 {
						return dst, unix.Errno(e)
					}
				}
				return dst, nil
			case diagByFamily:
				s, err := parseDiag(m.Data)
				if err != nil {
					return dst, err
				}
				s.Mono = now
				dst = append(dst, s)
			}
		}
	}
}

func parseDiag(b []byte) (s Socket, err error) {
	var m diagMessage
	if len(b) < int(unsafe.Sizeof(m)) {
		return s, fmt.Errorf("answer of %d bytes, want at least %d", len(b), unsafe.Sizeof(m))
	}
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&m)), unsafe.Sizeof(m)), b)
	addr := func(a [16]byte, port [2]byte) netip.AddrPort {
		p := uint16(port[0])<<8 | uint16(port[1])
		if m.family == unix.AF_INET {
			return netip.AddrPortFrom(netip.AddrFrom4([4]byte(a[:4])), p)
		}
		return netip.AddrPortFrom(netip.AddrFrom16(a).Unmap(), p)
	}
	s = Socket{
		Local: addr(m.id.src, m.id.sport), Peer: addr(m.id.dst, m.id.dport), State: m.state,
		Cookie: uint64(m.id.cookie[0]) | uint64(m.id.cookie[1])<<32,
		UID:    m.uid, Inode: m.inode,
	}
	for b = b[unsafe.Sizeof(m):]; len(b) >= 4; {
		size := int(*(*uint16)(unsafe.Pointer(&b[0])))
		typ := *(*uint16)(unsafe.Pointer(&b[2]))
		if size < 4 || size > len(b) {
			return s, fmt.Errorf("attribute %d of %d bytes in %d", typ, size, len(b))
		}
		switch v := b[4:size]; typ {
		case diagInfo:
			s.Info = parseTCPInfo(v)
		case diagCong:
			s.Congestion = string(bytes.TrimRight(v, "\x00"))
		}
		b = b[min((size+3)&^3, len(b)):]
	}
	return s, nil
}

// SNMP is a reading of the kernel's counters: names are "TcpRetransSegs", "TcpExtTCPLostRetransmit", …
// as nstat(8) prints them.
type SNMP map[string]int64

// SNMP reads the namespace's counters (/proc/net/snmp and netstat).
func (n *Namespace) SNMP() (s SNMP, err error) {
	s = SNMP{}
	err = n.Do(func() error {
		for _, file := range []string{"snmp", "netstat"} {
			b, err := os.ReadFile("/proc/thread-self/net/" + file)
			if err != nil {
				return err
			}
			if err := parseSNMP(s, b); err != nil {
				return fmt.Errorf("/proc/net/%s: %w", file, err)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return s, nil
}

// parseSNMP reads pairs of lines: names, then values, each after the same prefix.
func parseSNMP(s SNMP, b []byte) error {
	var head [][]byte
	for line := range bytes.Lines(b) {
		f := bytes.Fields(line)
		if len(f) == 0 {
			continue
		}
		if head == nil {
			head = f
			continue
		}
		if len(f) != len(head) || !bytes.Equal(f[0], head[0]) {
			return fmt.Errorf("%d values of %q for %d names of %q", len(f)-1, f[0], len(head)-1, head[0])
		}
		prefix := string(bytes.TrimSuffix(f[0], []byte(":")))
		for i := 1; i < len(f); i++ {
			v, err := strconv.ParseInt(string(f[i]), 10, 64)
			if err != nil {
				// Counters of 64 bits are printed unsigned.
				u, err := strconv.ParseUint(string(f[i]), 10, 64)
				if err != nil {
					return fmt.Errorf("%s%s: %w", prefix, head[i], err)
				}
				v = int64(u)
			}
			s[prefix+string(head[i])] = v
		}
		head = nil
	}
	return nil
}

// Sub returns what was counted since an earlier reading.
func (s SNMP) Sub(before SNMP) SNMP {
	d := make(SNMP, len(s))
	for k, v := range s {
		d[k] = v - before[k]
	}
	return d
}

// String lists what is not zero, by name.
func (s SNMP) String() string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(s)) {
		if v := s[name]; v != 0 {
			fmt.Fprintf(&b, "%s=%d ", name, v)
		}
	}
	return strings.TrimSuffix(b.String(), " ")
}

var _ syscall.Conn = (*net.TCPConn)(nil)
