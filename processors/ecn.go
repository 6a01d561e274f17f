// SPDX-License-Identifier: Apache-2.0

package processors

import "github.com/tcbee/tcbee-export/bpf/event"

// ECN is congestion that routers announced by marks.
type ECN struct{}

const attrMark = "tcbee.ecn.mark"

var metricMarks = &Metric{
	Name: "network.flow.tcp.ecn.marks", Unit: "{segment}", Kind: Counter,
	Description: "Segments with a mark of congestion.",
	Attributes:  []string{attrDirection, attrMark},
	Source: "Segments of connections that use ECN. ce: Congestion Experienced in the IP header. ece: the TCP flag ECN-Echo, SYNs apart. " +
		"Under classic ECN (RFC 3168) a receiver sets ECE on every acknowledgment until it sees CWR: ece counts acknowledgments, not marks.",
}

const (
	markCE = iota
	markECE
	ecnMarks
)

var markNames = [ecnMarks]string{"ce", "ece"}

type ecn struct{ marks [2][ecnMarks]*Series }

// Name implements Processor.
func (ECN) Name() string { return "ecn" }

// Bind implements Processor.
func (ECN) Bind(r *Registry) Family {
	r.Want(event.KindSegment)
	f := &ecn{}
	for i, dir := range directions {
		for j, mark := range markNames {
			f.marks[i][j] = r.Series(metricMarks, Attr{attrDirection, dir}, Attr{attrMark, mark})
		}
	}
	return f
}

func (f *ecn) New(*Connection) State { return &ecnState{f: f} }

type ecnState struct {
	f     *ecn
	marks [2][ecnMarks]uint64
	used  bool // some packet was ECN-capable
}

// The ECN field of the IP header.
const (
	ecnField = 3
	ecnCE    = 3
)

func (s *ecnState) Observe(ev *Event) {
	g := ev.Segment()
	if g.TOS&ecnField == 0 && g.TCPFlags&event.ECE == 0 || !ev.Counted {
		return
	}
	d, _ := direction(ev.Dir == event.DirOut)
	n := uint64(max(g.GSOSegs, 1))
	if g.TOS&ecnField != 0 {
		s.used = true
	}
	if g.TOS&ecnField == ecnCE {
		s.marks[d][markCE] += n
	}
	if g.TCPFlags&event.ECE != 0 && g.TCPFlags&event.SYN == 0 {
		s.used = true
		s.marks[d][markECE] += n
	}
}

func (s *ecnState) Collect(_ *Connection, e Emitter) {
	if !s.used {
		return
	}
	for d := range s.marks {
		for i, n := range s.marks[d] {
			e.Int(s.f.marks[d][i], int64(n))
		}
	}
}

// Flip implements Flipper.
func (s *ecnState) Flip() { s.marks[0], s.marks[1] = s.marks[1], s.marks[0] }
