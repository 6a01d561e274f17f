// SPDX-License-Identifier: Apache-2.0

package processors

import (
	"fmt"
	"strings"
)

// Markdown returns docs/metrics.md: what every metric is, from the metrics themselves.
func Markdown() string {
	var b strings.Builder
	b.WriteString(`# Metrics

Made from the code by ` + "`go test ./processors -update`" + `; do not edit.

Durations are in seconds, sizes in bytes, counts in segments, connections or events. A counter of a connection counts
since the connection was first seen, one of the host since the recording began. A value that is unknown or was not
measured yet is left out: absent, not zero. Every metric can be switched off by name (` + "`process.off`" + `).

Beside the attributes listed here, each point of a connection has those of the connection that the export's
attribute set selects: ` + "`network.local.address`, `network.local.port`, `network.peer.address`, `network.peer.port`," + `
` + "`network.transport`, `network.type`" + `.

## Definitions

- **Connection**: network namespace, local end and peer, from the time it is first seen. On loopback both ends are
  local, so there are two connections, each from its own side. A connection that is only forwarded has the sender of
  the SYN as its local end. Ends that are used again make another connection.
- **Transmit, receive**: as the local end sees it.
- **Segment**: a segment on the wire. The kernel handles many segments as one packet (GSO, GRO); such a packet counts
  as many.
- **Counted once**: a packet that passes several interfaces of a host (VLAN, bond, a forwarder's two sides) counts at
  the interface where its direction was seen first.
- **Last Sample**: the newest state of the socket. Samples are taken when a segment is received, before it is
  processed, when one is sent, and when the socket is destroyed; fewer of them
  on a busy CPU, or if ` + "`capture.sockets.samples`" + ` says so. ` + "`tcp_probe`" + ` misses segments that the kernel
  merged in the socket's backlog; the wire's truth is in the segments.
- **Retransmits** are counted in segments, as nstat's TcpRetransSegs, not in packets. They are known for local
  sockets only.
- **Vantage**: a connection with a local socket is seen from the host, one that passes through from a forwarder.
  Metrics of the host count the former only.
- **Late points**: a closed connection lingers for some seconds (` + "`process.linger`" + `) so that late segments are counted
  in it; then its last values are told.
`)
	b.WriteString("\n## Overview\n\n| metric | kind | unit | what |\n|---|---|---|---|\n")
	for _, m := range Metrics() {
		fmt.Fprintf(&b, "| `%s` | %s | `%s` | %s |\n", m.Name, m.Kind, m.Unit, m.Description)
	}
	for _, p := range All() {
		r := &Registry{}
		p.Bind(r)
		fmt.Fprintf(&b, "\n## %s\n", p.Name())
		for _, m := range r.metrics {
			fmt.Fprintf(&b, "\n### `%s`\n\n%s", m.Name, m.Description)
			kind := m.Kind.String()
			if m.Once {
				kind += ", known once"
			}
			fmt.Fprintf(&b, "\n\n- kind: %s, unit: `%s`\n", kind, m.Unit)
			for i, key := range m.Attributes {
				fmt.Fprintf(&b, "- `%s`: %s\n", key, strings.Join(values(r.series, m, i), ", "))
			}
			fmt.Fprintf(&b, "- source: %s\n", m.Source)
		}
	}
	return b.String()
}

// values lists the values of the i-th attribute of m, in the order of the series.
func values(series []*Series, m *Metric, i int) (list []string) {
	seen := map[string]bool{}
	for _, s := range series {
		if s.Metric == m && !seen[s.Attrs[i].Value] {
			seen[s.Attrs[i].Value] = true
			list = append(list, s.Attrs[i].Value)
		}
	}
	return list
}
