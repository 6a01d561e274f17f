// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"github.com/cilium/ebpf/btf"
)

// privateState is the private state of a congestion control that package event reads from a Sample: the
// struct's name, the module that it may be in, and where the fields must be, in bits. Mainline has had them
// there since Linux 5.5; other versions of a congestion control (BBRv3) keep their name and have another struct.
type privateState struct {
	flag   uint8 // in cfg_ca
	name   string
	module string
	fields map[string][2]uint32 // offset and size, bits
}

var privateStates = []privateState{
	{flag: 1, name: "bictcp", module: "tcp_cubic", fields: map[string][2]uint32{
		"cnt": {0, 32}, "last_max_cwnd": {32, 32}, "last_cwnd": {64, 32}, "bic_origin_point": {128, 32}, "bic_K": {160, 32},
		"delay_min": {192, 32}, "epoch_start": {224, 32}, "ack_cnt": {256, 32}, "tcp_cwnd": {288, 32}, "found": {344, 8}, "curr_rtt": {448, 32},
	}},
	{flag: 2, name: "bbr", module: "tcp_bbr", fields: map[string][2]uint32{
		"min_rtt_us": {0, 32}, "bw": {96, 192}, "rtt_cnt": {288, 32}, "mode": {448, 3}, "lt_use_bw": {479, 1}, "lt_bw": {480, 32},
		"pacing_gain": {608, 10}, "cwnd_gain": {618, 10}, "full_bw_reached": {628, 1}, "full_bw_cnt": {629, 2}, "cycle_idx": {631, 3},
		"prior_cwnd": {640, 32},
	}},
}

// knownStates returns the flags of those that this kernel has as package event reads them, by its type information. One whose
// module is not loaded is not known.
func knownStates(cache *btf.Cache) (flags uint8) {
	for _, p := range privateStates {
		if p.known(cache.Kernel()) || p.known(cache.Module(p.module)) {
			flags |= p.flag
		}
	}
	return flags
}

func (p privateState) known(types *btf.Spec, err error) bool {
	if err != nil {
		return false
	}
	var s *btf.Struct
	if err := types.TypeByName(p.name, &s); err != nil {
		return false
	}
	return p.matches(s)
}

// matches tells whether all fields are where they must be.
func (p privateState) matches(s *btf.Struct) bool {
	right := 0
	for _, m := range s.Members {
		want, ok := p.fields[m.Name]
		if !ok {
			continue
		}
		size := uint32(m.BitfieldSize)
		if size == 0 {
			n, err := btf.Sizeof(m.Type)
			if err != nil {
				return false
			}
			size = uint32(n) * 8
		}
		if [2]uint32{uint32(m.Offset), size} != want {
			return false
		}
		right++
	}
	return right == len(p.fields)
}
