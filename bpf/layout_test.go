// SPDX-License-Identifier: Apache-2.0

//go:build linux

package bpf

import (
	"debug/elf"
	"fmt"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/stretchr/testify/require"

	"github.com/tcbee/tcbee-export/bpf/event"
)

// unsafeBytes is the memory of a record.
func unsafeBytes[T any](p *T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(p)), unsafe.Sizeof(*p))
}

// The Go types of package event and the structs of the committed objects are the same, field
// for field. This needs neither root nor a kernel with BPF.
func TestGoLayoutIsThatOfTheObjects(t *testing.T) {
	objects, err := filepath.Glob("*_bpfel.o")
	require.NoError(t, err)
	require.Len(t, objects, 2, "objects for amd64 and arm64")
	types := map[string]reflect.Type{
		"tcb_header":   reflect.TypeFor[event.Header](),
		"tcb_segment":  reflect.TypeFor[event.Segment](),
		"tcb_sample":   reflect.TypeFor[event.Sample](),
		"tcb_incident": reflect.TypeFor[event.Incident](),
	}
	for _, object := range objects {
		spec, err := ebpf.LoadCollectionSpec(object)
		require.NoError(t, err)
		for name, goType := range types {
			t.Run(object+"/"+name, func(t *testing.T) {
				var c *btf.Struct
				require.NoError(t, spec.Types.TypeByName(name, &c))
				require.EqualValues(t, c.Size, goType.Size())
				var want, got []string
				for _, m := range c.Members {
					size, err := btf.Sizeof(m.Type)
					require.NoError(t, err)
					want = append(want, fmt.Sprintf("offset %d size %d", m.Offset.Bytes(), size))
				}
				for i := range goType.NumField() {
					f := goType.Field(i)
					got = append(got, fmt.Sprintf("offset %d size %d", f.Offset, f.Type.Size()))
				}
				for i := range min(len(want), len(got)) {
					require.Equal(t, want[i], got[i], "C %s, Go %s", c.Members[i].Name, goType.Field(i).Name)
				}
				require.Len(t, got, len(want))
			})
		}
		t.Run(object+"/enums", func(t *testing.T) {
			for name, values := range map[string]map[string]uint64{
				"tcb_hook": {"TCB_HOOK_INVENTORY": uint64(event.HookInventory), "TCB_HOOKS": event.Hooks,
					"TCB_HOOK_KFREE_SKB": uint64(event.HookKfreeSKB), "TCB_HOOK_TRANSMIT": uint64(event.HookTransmit)},
				"tcb_kind":    {"TCB_SEGMENT": uint64(event.KindSegment), "TCB_SAMPLE": uint64(event.KindSample), "TCB_INCIDENT": uint64(event.KindIncident)},
				"tcb_present": {"TCB_HAS_TCP": event.HasTCP, "TCB_HAS_ACCECN": event.HasAccECN},
			} {
				var e *btf.Enum
				require.NoError(t, spec.Types.TypeByName(name, &e))
				found := 0
				for _, v := range e.Values {
					if want, ok := values[v.Name]; ok {
						require.Equal(t, want, v.Value, v.Name)
						found++
					}
				}
				require.Len(t, values, found)
			}
		})
		t.Run(object+"/license", func(t *testing.T) {
			for _, p := range spec.Programs {
				require.Equal(t, "Dual BSD/GPL", p.License)
			}
		})
		t.Run(object+"/machine", func(t *testing.T) {
			f, err := elf.Open(object)
			require.NoError(t, err)
			defer func() { _ = f.Close() }()
			require.Equal(t, elf.EM_BPF, f.Machine)
			require.True(t, strings.HasSuffix(object, "_bpfel.o"))
		})
	}
}
