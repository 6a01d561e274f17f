// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"go.opentelemetry.io/collector/pdata/pcommon"

	"github.com/tcbee/tcbee-export/processors"
)

// Attributes of a connection's data points. All but AttrNetns and AttrCookie are names of the
// OpenTelemetry semantic conventions or of its open proposals (docs/metrics.md).
const (
	AttrLocalAddress  = "network.local.address"
	AttrLocalPort     = "network.local.port"
	AttrPeerAddress   = "network.peer.address"
	AttrPeerPort      = "network.peer.port"
	AttrTransport     = "network.transport"          // always tcp
	AttrNetworkType   = "network.type"               // ipv4 or ipv6
	AttrHandshakeRole = "network.tcp.handshake.role" // client or server; absent while unknown
	// AttrNetns is the network namespace's cookie (SO_NETNS_COOKIE), without which two
	// namespaces' connections between the same addresses would be one. It is absent for the
	// namespace of Resource.Netns.
	AttrNetns = "tcbee.netns.cookie"
	// AttrCookie is the socket's cookie (SO_COOKIE, the sk: of ss -e), in hexadecimal as ss
	// prints it.
	AttrCookie = "tcbee.socket.cookie"
)

// initialNetns is the cookie of the first network namespace: the kernel counts from 1.
const initialNetns = 1

// identity are the attributes without which points of several connections would be
// indistinguishable; Config.Attributes must have them.
var identity = []string{AttrLocalAddress, AttrLocalPort, AttrPeerAddress, AttrPeerPort, AttrNetns}

var allAttributes = append(slices.Clone(identity), AttrTransport, AttrNetworkType, AttrHandshakeRole, AttrCookie)

// DefaultAttributes returns the default of Config.Attributes.
func DefaultAttributes() []string {
	return []string{
		AttrLocalAddress, AttrLocalPort, AttrPeerAddress, AttrPeerPort,
		AttrTransport, AttrNetworkType, AttrNetns,
	}
}

func validateAttributes(names []string) []error {
	var errs []error
	for i, name := range names {
		if !slices.Contains(allAttributes, name) {
			errs = append(errs, fmt.Errorf("export.attributes: %q is none of %s", name, strings.Join(allAttributes, ", ")))
		} else if slices.Contains(names[:i], name) {
			errs = append(errs, fmt.Errorf("export.attributes: %q is there twice", name))
		}
	}
	for _, name := range identity {
		if !slices.Contains(names, name) {
			errs = append(errs, fmt.Errorf("export.attributes: %q is missing: without it the points of several connections would be one series", name))
		}
	}
	return errs
}

// putAttributes writes the attributes called names of c to m, in that order. home is the network
// namespace that is not told.
func putAttributes(m pcommon.Map, names []string, home uint64, c *processors.Connection) {
	for _, name := range names {
		switch name {
		case AttrLocalAddress:
			m.PutStr(name, address(c.Local))
		case AttrLocalPort:
			m.PutInt(name, int64(c.Local.Port()))
		case AttrPeerAddress:
			m.PutStr(name, address(c.Peer))
		case AttrPeerPort:
			m.PutInt(name, int64(c.Peer.Port()))
		case AttrTransport:
			m.PutStr(name, "tcp")
		case AttrNetworkType:
			if c.Local.Addr().Unmap().Is4() {
				m.PutStr(name, "ipv4")
			} else {
				m.PutStr(name, "ipv6")
			}
		case AttrHandshakeRole:
			switch c.Role {
			case processors.RoleClient:
				m.PutStr(name, "client")
			case processors.RoleServer:
				m.PutStr(name, "server")
			}
		case AttrNetns:
			if c.Netns != 0 && c.Netns != home {
				m.PutInt(name, int64(c.Netns))
			}
		case AttrCookie:
			if c.Cookie != 0 {
				m.PutStr(name, fmt.Sprintf("%x", c.Cookie))
			}
		default:
			panic("BUG: attribute " + name + " passed Validate")
		}
	}
}

func address(a netip.AddrPort) string {
	if !a.IsValid() {
		return ""
	}
	return a.Addr().Unmap().String()
}
