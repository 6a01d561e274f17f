// SPDX-License-Identifier: Apache-2.0

package event

// CUBIC is the private state of CUBIC (struct bictcp, net/ipv4/tcp_cubic.c), in the kernel's units.
type CUBIC struct {
	Cnt         uint32 // acknowledged segments for which the window grows by one
	LastMaxCwnd uint32 // segments: W_max, the window before the last reduction (RFC 9438)
	LastCwnd    uint32 // segments: the window when Cnt was last computed
	OriginPoint uint32 // segments: the plateau of the cubic function
	K           uint32 // 1/1024 s: time from the epoch's start to the plateau
	DelayMin    uint32 // µs: the shortest round trip seen
	EpochStart  uint32 // jiffies; 0: no epoch since the last loss
	AckCnt      uint32 // segments acknowledged since the window grew
	TCPCwnd     uint32 // segments: W_est, the window that Reno would have
	CurrRTT     uint32 // µs: shortest round trip of HyStart's present round
	Found       bool   // HyStart has ended slow start
}

// CUBIC returns the private state of CUBIC, false if the socket's congestion control is another one or
// the kernel keeps it in another way.
func (s *Sample) CUBIC() (c CUBIC, ok bool) {
	if s.Present&HasCAPriv == 0 || s.CAName != [16]byte{'c', 'u', 'b', 'i', 'c'} {
		return c, false
	}
	p := &s.CAPriv
	return CUBIC{
		Cnt: p[0], LastMaxCwnd: p[1], LastCwnd: p[2], OriginPoint: p[4], K: p[5], DelayMin: p[6], EpochStart: p[7],
		AckCnt: p[8], TCPCwnd: p[9], CurrRTT: p[14], Found: p[10]>>24 != 0,
	}, true
}

// BBRMode is a state of BBR's machine (enum bbr_mode).
type BBRMode uint8

// The modes.
const (
	BBRStartup BBRMode = iota
	BBRDrain
	BBRProbeBW
	BBRProbeRTT
	BBRModes = 4
)

var bbrModes = [8]string{"startup", "drain", "probe_bw", "probe_rtt", "mode(4)", "mode(5)", "mode(6)", "mode(7)"}

// String returns the mode's name in lower case.
func (m BBRMode) String() string { return bbrModes[m&7] }

// BBR is the private state of BBR version 1 (struct bbr, net/ipv4/tcp_bbr.c). The first four are those of
// struct tcp_bbr_info, in its units.
type BBR struct {
	Bandwidth  uint64 // bytes/s: the estimate of the bottleneck's bandwidth
	MinRTT     uint32 // µs: in a window of 10 s
	PacingGain uint32 // 1/256; 0: not recorded (HasCAMore)
	CwndGain   uint32 // 1/256; 0: not recorded (HasCAMore)

	Mode          BBRMode
	LongTerm      bool   // Bandwidth is the long-term estimate: a policer was found
	Rounds        uint32 // packet-timed round trips
	PriorCwnd     uint32 // segments: the window before loss recovery or PROBE_RTT
	FullBW        bool   // startup has filled the pipe
	Cycle         uint8  // phase of the gain cycle of PROBE_BW
	FullBWGrowing uint8  // rounds of startup without much growth
}

// bbrScale is the unit of BBR's bandwidth: segments per µs << 24.
const bbrScale = 24

// BBR returns the private state of BBR, false if the socket's congestion control is another one or the
// kernel keeps it in another way (other versions of BBR do).
func (s *Sample) BBR() (b BBR, ok bool) {
	if s.Present&HasCAPriv == 0 || s.CAName != [16]byte{'b', 'b', 'r'} {
		return b, false
	}
	p := &s.CAPriv
	b = BBR{MinRTT: p[0], Rounds: p[9], Mode: BBRMode(p[14] & 7), LongTerm: p[14]>>31 != 0}
	bw := uint64(p[4]) // the best of the windowed maximum
	if b.LongTerm {
		bw = uint64(p[15])
	}
	b.Bandwidth = bw * uint64(s.SndMSS) * 1_000_000 >> bbrScale
	if s.Present&HasCAMore != 0 {
		g := s.CAMore[0]
		b.PacingGain, b.CwndGain = g&0x3ff, g>>10&0x3ff
		b.FullBW, b.FullBWGrowing, b.Cycle = g>>20&1 != 0, uint8(g>>21&3), uint8(g>>23&7)
		b.PriorCwnd = s.CAMore[1]
	}
	return b, true
}
