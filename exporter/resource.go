// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"maps"
	"slices"

	"go.opentelemetry.io/collector/pdata/pcommon"
)

// ServiceName is service.name unless Config.Resource says otherwise.
const ServiceName = "tcbee-export"

// Resource is who made the recording. It comes from the spool, not from the machine that
// replays, so that both give the same metrics. Empty fields are left out.
type Resource struct {
	ServiceVersion string // service.version: the program that derives the metrics
	HostName       string // host.name
	HostID         string // host.id: the machine id
	OSVersion      string // os.version: the kernel's release, with os.type linux
	// Netns is the cookie of the network namespace that is taken for granted: connections in it
	// have no AttrNetns. 0 is the one that the machine started with.
	Netns uint64
}

// write puts the attributes of r and extra, which wins, into m sorted by name.
func (r Resource) write(m pcommon.Map, extra map[string]string) {
	all := map[string]string{"service.name": ServiceName, "os.type": "linux"}
	for key, value := range map[string]string{
		"service.version": r.ServiceVersion,
		"host.name":       r.HostName,
		"host.id":         r.HostID,
		"os.version":      r.OSVersion,
	} {
		if value != "" {
			all[key] = value
		}
	}
	maps.Copy(all, extra)
	m.EnsureCapacity(len(all))
	for _, key := range slices.Sorted(maps.Keys(all)) {
		m.PutStr(key, all[key])
	}
}
