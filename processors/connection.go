// SPDX-License-Identifier: Apache-2.0

package processors

import (
	"net/netip"

	"github.com/tcbee/tcbee-export/bpf/event"
)

// Vantage tells from where a connection's packets are seen.
type Vantage uint8

// Vantages.
const (
	VantageUnknown   Vantage = iota
	VantageHost              // a local socket is one end
	VantageForwarder         // no local socket: Local is the sender of the SYN
)

// Role is the local end's part in the handshake (network.tcp.handshake.role).
type Role uint8

// Roles.
const (
	RoleUnknown Role = iota
	RoleClient
	RoleServer
)

// End tells how a connection ended.
type End uint8

// Ends.
const (
	EndNone      End = iota // still open
	EndClosed               // FIN both ways, or closed by the application
	EndResetSent            // this side sent RST
	EndResetReceived
	EndTimeout // gave up: retransmissions or SYNs unanswered
	EndIdle    // forgotten after a time without events: not known to have ended
)

// Connection is who and when of one connection from one side. Times are ns of
// CLOCK_MONOTONIC unless they say wall.
type Connection struct {
	ID         uint64 // dense from 1 in order of first appearance in the stream
	Local      netip.AddrPort
	Peer       netip.AddrPort
	Netns      uint64
	Cookie     uint64 // socket cookie, 0 if no event had one
	Role       Role
	Vantage    Vantage
	State      event.TCPState
	First      uint64 // time of its first event
	Last       uint64 // time of its last event
	StartWall  int64  // First as wall clock, ns since 1970
	Opened     bool   // its opening was seen: counters are since its beginning
	Ended      bool
	End        End
	PID        uint32
	Comm       string
	Cgroup     uint64
	LostEvents uint64 // events of its CPUs that were lost while it lived
}
