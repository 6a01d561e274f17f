// SPDX-License-Identifier: Apache-2.0

package processors

import (
	"encoding/binary"
	"net/netip"

	"github.com/tcbee/tcbee-export/bpf/event"
)

// Vantage tells from where a connection's packets are seen.
type Vantage uint8

// Vantages.
const (
	// VantageUnknown: no local socket was seen, and no packet on its way through. Local is
	// this host's side if the connection has one here.
	VantageUnknown Vantage = iota
	// VantageHost: a local socket is one end, Local.
	VantageHost
	// VantageForwarder: packets came in and went out again. Local is the sender of the SYN,
	// or, where no SYN was seen, the lower of the two addresses and ports.
	VantageForwarder
)

// String returns the vantage's name in lower case.
func (v Vantage) String() string { return name(vantageNames[:], uint8(v)) }

var vantageNames = [...]string{"unknown", "host", "forwarder"}

// MarshalText gives the name.
func (v Vantage) MarshalText() ([]byte, error) { return []byte(v.String()), nil }

// Role is the local end's part in the handshake (network.tcp.handshake.role).
type Role uint8

// Roles.
const (
	RoleUnknown Role = iota
	RoleClient
	RoleServer
	roles = 3
)

// String returns the role's name in lower case.
func (r Role) String() string { return name(roleNames[:], uint8(r)) }

var roleNames = [...]string{"unknown", "client", "server"}

// MarshalText gives the name.
func (r Role) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// End tells how a connection ended.
type End uint8

// Ends.
const (
	EndNone          End = iota // still open
	EndClosed                   // FIN both ways, or closed by the application
	EndResetSent                // this side sent RST
	EndResetReceived            // the peer sent RST
	EndTimeout                  // gave up: retransmissions or SYNs unanswered
	EndIdle                     // forgotten after a time without events: not known to have ended
	EndUnknown                  // its end was not seen: another connection took its addresses, or the session ended
	EndEvicted                  // forgotten because there were too many (Config.MaxConnections)
	ends             = 8
)

// String returns the end's name in lower case.
func (e End) String() string { return name(endNames[:], uint8(e)) }

var endNames = [...]string{"open", "closed", "reset_sent", "reset_received", "timeout", "idle", "unknown", "evicted"}

// MarshalText gives the name.
func (e End) MarshalText() ([]byte, error) { return []byte(e.String()), nil }

func name(names []string, i uint8) string {
	if int(i) < len(names) {
		return names[i]
	}
	return "invalid"
}

// Connection is who and when of one connection from one side. Times are ns of
// CLOCK_MONOTONIC unless they say wall; 0 is unknown.
type Connection struct {
	ID          uint64 // dense from 1 in order of first appearance in the stream
	Local       netip.AddrPort
	Peer        netip.AddrPort
	Netns       uint64
	Cookie      uint64 // socket cookie, 0 if no event had one
	Role        Role
	Vantage     Vantage
	State       event.TCPState // by the socket, or by the packets where no socket tells
	First       uint64         // time of its first event
	Last        uint64         // time of its last event
	StartWall   int64          // First as wall clock, ns since 1970
	Opened      bool           // its opening was seen: counters are since its beginning
	Handshake   uint64         // ns from the first SYN to ESTABLISHED, 0 unknown
	Established uint64         // when it was seen to become established, 0 unknown
	Closed      uint64         // when it was seen to end, 0 while it is open
	Ended       bool           // it is over and out of the Table: what is told now is the last of it
	End         End            // how it ended; final once Ended
	PID         uint32         // thread group that opened it, or that listens where it was accepted; 0 unknown
	Comm        string         // that thread's name
	Cgroup      uint64         // that thread's cgroup v2 id, 0 unknown
	Events      uint64         // records of it that were observed
	LostEvents  uint64         // events of its CPUs that were lost while it lived: at most so many of its own
}

// side is what the packets of one direction told.
type side struct {
	isn    uint32 // valid if syn
	nxt    uint32 // highest sequence number seen, plus one; valid if seen
	ack    uint32 // highest acceptable acknowledgment it sent; valid if acked
	fin    uint32 // sequence number of its FIN; valid if finned
	point  uint64 // where its packets count: interface and hook; 0 none yet
	syn    bool
	seen   bool
	acked  bool
	finned bool
	done   bool // its FIN was acknowledged
}

// tuple names the two ends as a record does. Words, because they are compared and hashed for
// every event.
type tuple struct {
	local, peer [2]uint64
	ports       uint64 // local, peer
}

func tupleOf(h *event.Header) tuple {
	return tuple{
		local: [2]uint64{binary.LittleEndian.Uint64(h.Local[:8]), binary.LittleEndian.Uint64(h.Local[8:])},
		peer:  [2]uint64{binary.LittleEndian.Uint64(h.Peer[:8]), binary.LittleEndian.Uint64(h.Peer[8:])},
		ports: uint64(h.LocalPort)<<16 | uint64(h.PeerPort),
	}
}

func (t *tuple) reversed() tuple {
	return tuple{local: t.peer, peer: t.local, ports: t.ports>>16 | t.ports&0xffff<<16}
}

func (t *tuple) equal(o *tuple) bool {
	return (t.local[0]^o.local[0])|(t.local[1]^o.local[1])|(t.peer[0]^o.peer[0])|(t.peer[1]^o.peer[1])|(t.ports^o.ports) == 0
}

// mirrors reports whether o is t with its ends exchanged.
func (t *tuple) mirrors(o *tuple) bool {
	r := o.reversed()
	return t.equal(&r)
}

// conn is a connection in the Table.
type conn struct {
	Connection
	key        tuple
	hash       uint64
	sides      [2]side // 0: sent by Local, 1: by Peer
	states     []State
	cpus       uint64 // bit cpu%64: had events there
	syn        uint64 // time of the first SYN, or of SYN_SENT
	oldCookie  uint64 // of the connection that had the addresses before
	quietSince uint64 // when its packets said that it ended, though its socket did not
	quietEnd   End    // how
	firstFin   int    // the side whose FIN came first
	slot       int32
	socket     bool // a full socket told of it
	stated     bool // inet_sock_set_state told of it
	synRetry   bool // its SYN was repeated
	gotReset   bool // the kernel accepted a RST from the peer
	sentReset  bool // this side sent RST
	both       bool // indexed in both orientations
	told       bool // an Emitter knows it
}

func direction(out bool) (int, event.Dir) {
	if out {
		return 0, event.DirOut
	}
	return 1, event.DirIn
}
