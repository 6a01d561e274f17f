// SPDX-License-Identifier: Apache-2.0

package main

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tcbee/tcbee-export/bpf"
)

func TestDoctorSumsUpGroups(t *testing.T) {
	on := bpf.Feature{Enabled: true, Usable: true}
	lost := bpf.Feature{Enabled: true, Missing: []string{"this", "that"}}
	other := bpf.Feature{Enabled: true, Missing: []string{"that"}, Fallback: "something else"}
	for name, tt := range map[string]struct {
		features []bpf.Feature
		want     groupState
	}{
		"everything":     {[]bpf.Feature{on, on, {Missing: []string{"not asked for"}}}, groupState{Usable: usableAll}},
		"a part":         {[]bpf.Feature{on, lost, other}, groupState{Usable: usablePart, Missing: []string{"this", "that"}, Fallbacks: []string{"something else"}}},
		"nothing":        {[]bpf.Feature{lost, lost}, groupState{Usable: usableNone, Missing: []string{"this", "that"}}},
		"nothing asked":  {[]bpf.Feature{{Usable: true}, {}}, groupState{Usable: usableOff}},
		"all, otherwise": {[]bpf.Feature{{Enabled: true, Usable: true, Fallback: "by clsact"}}, groupState{Usable: usableAll, Fallbacks: []string{"by clsact"}}},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, []groupState{tt.want}, groupStates(tt.features))
		})
	}
	two := groupStates([]bpf.Feature{{Group: "events"}, {Group: "packets", Enabled: true}, {Group: "events", Enabled: true, Usable: true}})
	require.Equal(t, []groupState{{Group: "events", Usable: usableAll}, {Group: "packets", Usable: usableNone}}, two)
}
