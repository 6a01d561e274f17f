// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"os"
	"runtime/debug"
	"strconv"
	"strings"

	"github.com/tcbee/tcbee-export/exporter"
	"github.com/tcbee/tcbee-export/spool"
)

// Version of the program: the module's, or the commit's where it was built from a checkout.
// The build may set it (-ldflags -X).
var version string

// Version returns the program's version.
func Version() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" || info.Main.Version == "(devel)" {
		return "devel"
	}
	return info.Main.Version
}

// metaNetns is the key in Meta.Extra of the cookie of the recorder's network namespace, in decimal.
const metaNetns = "netns_cookie"

// HostMeta tells what is known of this host, for the head of a recording. What cannot be read
// stays empty.
func HostMeta() spool.Meta {
	line := func(path string) string {
		b, err := os.ReadFile(path)
		if err != nil {
			return ""
		}
		return strings.TrimSpace(string(b))
	}
	host, _ := os.Hostname()
	var extra map[string]string
	if cookie := netnsCookie(); cookie != 0 {
		extra = map[string]string{metaNetns: strconv.FormatUint(cookie, 10)}
	}
	return spool.Meta{
		Extra:     extra,
		Host:      host,
		Kernel:    line("/proc/sys/kernel/osrelease"),
		BootID:    line("/proc/sys/kernel/random/boot_id"),
		MachineID: line("/etc/machine-id"),
		Program:   "tcbee-export " + Version(),
	}
}

// resource says whose metrics a recording gives: its host's, not that of the machine that replays.
func resource(meta spool.Meta) exporter.Resource {
	netns, _ := strconv.ParseUint(meta.Extra[metaNetns], 10, 64)
	return exporter.Resource{
		Netns:          netns,
		ServiceVersion: Version(),
		HostName:       meta.Host,
		HostID:         meta.MachineID,
		OSVersion:      meta.Kernel,
	}
}
