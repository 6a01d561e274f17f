// SPDX-License-Identifier: Apache-2.0

package event

import "fmt"

// TCPState is a socket's state in the kernel's numbers (include/net/tcp_states.h).
type TCPState uint8

// The states.
const (
	Established TCPState = iota + 1
	SynSent
	SynRecv
	FinWait1
	FinWait2
	TimeWait
	Closed
	CloseWait
	LastAck
	Listen
	Closing
	NewSynRecv
)

var stateNames = [...]string{"", "established", "syn_sent", "syn_recv", "fin_wait1", "fin_wait2",
	"time_wait", "close", "close_wait", "last_ack", "listen", "closing", "new_syn_recv"}

// String returns the state's name in lower case.
func (s TCPState) String() string {
	if int(s) < len(stateNames) && s != 0 {
		return stateNames[s]
	}
	return fmt.Sprintf("state(%d)", uint8(s))
}

// CAState is the state of the congestion avoidance machine (enum tcp_ca_state).
type CAState uint8

// The states of congestion avoidance.
const (
	CAOpen CAState = iota
	CADisorder
	CACWR
	CARecovery
	CALoss
	CAStates = 5
)

var caNames = [...]string{"open", "disorder", "cwr", "recovery", "loss"}

// String returns the state's name in lower case.
func (s CAState) String() string {
	if int(s) < len(caNames) {
		return caNames[s]
	}
	return fmt.Sprintf("ca_state(%d)", uint8(s))
}

// EverRetransmitted is the bit of Incident.Sacked that marks a packet which was sent again
// before (TCPCB_EVER_RETRANS).
const EverRetransmitted = 0x80

// Errors of the kernel.
const (
	eAGAIN       = -11
	eNOMEM       = -12
	eBUSY        = -16
	eINVAL       = -22
	eHOSTUNREACH = -113
)

// Retransmitted reports whether the kernel counted the attempt that an Incident of
// HookRetransmitSKB tells of in TcpRetransSegs. Since 6.17 the
// tracepoint fires for every attempt: __tcp_retransmit_skb leaves early, before it counts,
// with one of the errors above, and later, after counting, with what the transmission said
// (a drop by the queue is positive). Only the second way marks the packet. Before 6.17 it
// fires for successes alone, and failures that the kernel counted are missed.
func (i *Incident) Retransmitted() bool {
	if i.Err >= 0 {
		return true
	}
	if i.Sacked&EverRetransmitted == 0 {
		return false
	}
	switch i.Err {
	case eAGAIN, eNOMEM, eBUSY, eINVAL, eHOSTUNREACH:
		return false
	}
	return true
}
