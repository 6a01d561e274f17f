// SPDX-License-Identifier: Apache-2.0

package processors

import "github.com/tcbee/tcbee-export/bpf/event"

// Lifecycle is how connections come and go.
type Lifecycle struct{}

// Attributes of the lifecycle.
const (
	attrState = "network.connection.state"
	attrRole  = "network.tcp.handshake.role"
	attrError = "error.type"
	attrEnd   = "tcbee.connection.end"

	attrResetCause = "network.tcp.reset.cause"
)

const hostScope = " Connections with a local socket; not those that are only forwarded."

var (
	metricHandshake = &Metric{
		Name: "network.flow.tcp.handshake.duration", Unit: "s", Kind: Gauge, Float: true, Once: true,
		Description: "Time from the first SYN to ESTABLISHED.",
		Source: "From the first of SYN_SENT and the SYN's Segment to inet_sock_set_state ESTABLISHED, or, without it, to the SYN-ACK (client) or " +
			"the ACK of it (server, forwarder). Repeated SYNs are within it. A server's needs the packets group.",
	}
	metricDuration = &Metric{
		Name: "network.flow.tcp.connection.duration", Unit: "s", Kind: Gauge, Float: true, Once: true,
		Description: "Time from the connection's first event to its end, told when it ended.",
		Source:      "To the change to CLOSE, or, where no socket tells, to the RST or the acknowledgment of the second FIN. TIME_WAIT is not part of it.",
	}
	metricState = &Metric{
		Name: "network.flow.tcp.state", Unit: "1", Kind: Gauge,
		Description: "State of the connection: 1 for the present state, 0 for those it was in before.",
		Attributes:  []string{attrState},
		Source:      "inet_sock_set_state and Samples, or, without them, the packets. States that the connection was never in are not told.",
	}
	metricOpened = &Metric{
		Name: "system.network.tcp.connection.opened", Unit: "{connection}", Kind: Counter, Host: true,
		Description: "Connections whose opening was seen.",
		Attributes:  []string{attrRole},
		Source:      "First SYN or SYN_SENT." + hostScope,
	}
	metricSuccesses = &Metric{
		Name: "system.network.tcp.connection.successes", Unit: "{connection}", Kind: Counter, Host: true,
		Description: "Connections that became ESTABLISHED.",
		Attributes:  []string{attrRole},
		Source:      "As network.flow.tcp.handshake.duration; connections that were there before the recording are not counted." + hostScope,
	}
	metricFailures = &Metric{
		Name: "system.network.tcp.connection.failures", Unit: "{connection}", Kind: Counter, Host: true,
		Description: "Connections that ended before they were ESTABLISHED.",
		Attributes:  []string{attrRole, attrError},
		Source: "error.type is connection_refused (RST received), reset (RST sent), timeout (SYN repeated and unanswered), aborted (closed by the application) " +
			"or unknown." + hostScope,
	}
	metricClosed = &Metric{
		Name: "system.network.tcp.connection.closed", Unit: "{connection}", Kind: Counter, Host: true,
		Description: "Established connections that ended, by how they did.",
		Attributes:  []string{attrEnd},
		Source:      "closed, reset_sent, reset_received, timeout, idle (no event for process.idle_timeout), unknown (its end was not seen), evicted (process.max_connections); counted when the connection has lingered." + hostScope,
	}
	metricActive = &Metric{
		Name: "system.network.tcp.connection.active", Unit: "{connection}", Kind: UpDown, Host: true,
		Description: "Connections that are established and not closed.",
		Source:      "From ESTABLISHED (or its first Sample) to CLOSE." + hostScope,
	}
	metricHostHandshake = &Metric{
		Name: "system.network.tcp.handshake.duration", Unit: "s", Kind: Distribution, Float: true, Host: true,
		Description: "Times from the first SYN to ESTABLISHED.",
		Source:      "network.flow.tcp.handshake.duration of each connection." + hostScope,
	}
	metricHostDuration = &Metric{
		Name: "system.network.tcp.connection.duration", Unit: "s", Kind: Distribution, Float: true, Host: true,
		Description: "Times from opening to end.",
		Source:      "Of connections whose opening and end were both seen." + hostScope,
	}
	metricResets = &Metric{
		Name: "system.network.tcp.resets", Unit: "{event}", Kind: Counter, Host: true,
		Description: "RSTs that the kernel sent, or accepted.",
		Attributes:  []string{attrDirection, attrResetCause},
		Source: "tcp_send_reset and tcp_receive_reset. connection_refused: it answers a SYN. aborted: a socket was there. no_connection: it answers another segment " +
			"for which there is no socket (any more). One abort can make many RSTs: one for each packet that still arrives.",
	}
)

// stateNames are OpenTelemetry's names of the states (network.connection.state).
var stateNames = [...]string{
	event.Established: "established", event.SynSent: "syn_sent", event.SynRecv: "syn_received",
	event.FinWait1: "fin_wait_1", event.FinWait2: "fin_wait_2", event.TimeWait: "time_wait",
	event.Closed: "closed", event.CloseWait: "close_wait", event.LastAck: "last_ack",
	event.Listen: "listen", event.Closing: "closing", event.NewSynRecv: "syn_received",
}

func stateName(s event.TCPState) string {
	if n := name(stateNames[:], uint8(s)); n != "" {
		return n
	}
	return "unknown"
}

var errorTypes = [...]string{"connection_refused", "reset", "timeout", "aborted", "unknown"}

// errorType returns the index in errorTypes of a handshake that ended so.
func errorType(e End) int {
	switch e {
	case EndResetReceived:
		return 0
	case EndResetSent:
		return 1
	case EndTimeout, EndIdle:
		return 2
	case EndClosed:
		return 3
	}
	return 4
}

// Causes of resets.
const (
	resetRefused = iota
	resetAborted
	resetStray
	resetCauses
)

var resetCauseNames = [resetCauses]string{"connection_refused", "aborted", "no_connection"}

// resetCause tells why a RST was sent or accepted: by the state of the socket, or, where none
// was there, by the segment that is answered.
func resetCause(i *event.Incident) int {
	switch {
	case i.OldState == event.SynSent:
		return resetRefused
	case i.OldState != 0:
		return resetAborted
	case i.TCPFlags&(event.SYN|event.ACK) == event.SYN:
		return resetRefused
	}
	return resetStray
}

type lifecycle struct {
	handshake, duration *Series
	state               [len(stateNames)]*Series

	opened, successes [roles]*Series
	failures          [roles][len(errorTypes)]*Series
	closed            [ends]*Series
	active            *Series
	handshakes        *Series
	durations         *Series
	resets            [2][resetCauses]*Series

	host struct {
		opened, successes [roles]int64
		failures          [roles][len(errorTypes)]int64
		closed            [ends]int64
		active            int64
		handshakes        Histogram
		durations         Histogram
		resets            [2][resetCauses]int64
	}
}

// Name implements Processor.
func (Lifecycle) Name() string { return "lifecycle" }

// Bind implements Processor.
func (Lifecycle) Bind(r *Registry) Family {
	f := &lifecycle{handshake: r.Series(metricHandshake), duration: r.Series(metricDuration)}
	for i, name := range stateNames {
		if s := event.TCPState(i); name != "" && s != event.Listen && s != event.NewSynRecv {
			f.state[i] = r.Series(metricState, Attr{attrState, name})
		}
	}
	f.state[event.NewSynRecv] = f.state[event.SynRecv]
	for i, name := range roleNames {
		f.opened[i] = r.Series(metricOpened, Attr{attrRole, name})
	}
	for i, name := range roleNames {
		f.successes[i] = r.Series(metricSuccesses, Attr{attrRole, name})
	}
	for i, name := range roleNames {
		for j, typ := range errorTypes {
			f.failures[i][j] = r.Series(metricFailures, Attr{attrRole, name}, Attr{attrError, typ})
		}
	}
	for i, name := range endNames {
		if End(i) != EndNone {
			f.closed[i] = r.Series(metricClosed, Attr{attrEnd, name})
		}
	}
	f.active = r.Series(metricActive)
	f.handshakes = r.Series(metricHostHandshake)
	f.durations = r.Series(metricHostDuration)
	for i, name := range directions {
		for j, cause := range resetCauseNames {
			f.resets[i][j] = r.Series(metricResets, Attr{attrDirection, name}, Attr{attrResetCause, cause})
		}
	}
	return f
}

func (f *lifecycle) New(*Connection) State { return &lifecycleState{f: f} }

// CollectHost implements HostFamily. Counts of a role that were never made are left out.
func (f *lifecycle) CollectHost(e Emitter) {
	some := func(s *Series, n int64, always bool) {
		if n != 0 || always {
			e.Int(s, n)
		}
	}
	h := &f.host
	for i := range roles {
		some(f.opened[i], h.opened[i], Role(i) != RoleUnknown)
	}
	for i := range roles {
		some(f.successes[i], h.successes[i], Role(i) != RoleUnknown)
	}
	for i := range roles {
		for j, s := range f.failures[i] {
			some(s, h.failures[i][j], false)
		}
	}
	for i := 1; i < ends; i++ {
		some(f.closed[i], h.closed[i], End(i) == EndClosed)
	}
	e.Int(f.active, h.active)
	if h.handshakes.Count != 0 {
		e.Histogram(f.handshakes, &h.handshakes)
	}
	if h.durations.Count != 0 {
		e.Histogram(f.durations, &h.durations)
	}
	for i := range h.resets {
		for j, n := range h.resets[i] {
			some(f.resets[i][j], n, j == resetAborted)
		}
	}
}

// Incident implements IncidentWatcher.
func (f *lifecycle) Incident(_ *Connection, i *event.Incident) {
	switch i.Hook {
	case event.HookSendReset:
		f.host.resets[0][resetCause(i)]++
	case event.HookReceiveReset:
		f.host.resets[1][resetCause(i)]++
	}
}

type lifecycleState struct {
	f         *lifecycle
	been      uint16 // bit s: was in state s
	opened    bool   // counted as such
	success   bool
	active    bool
	finalized bool
}

// Observe implements State: the family wants no records, it follows the connection.
func (s *lifecycleState) Observe(*Event) {}

// Changed implements Watcher.
func (s *lifecycleState) Changed(c *Connection) {
	s.been |= 1 << c.State
	h := &s.f.host
	if c.Vantage != VantageHost {
		return
	}
	if c.Opened && !s.opened {
		s.opened = true
		h.opened[c.Role]++
	}
	if c.Established != 0 && c.Opened && !s.success {
		s.success = true
		h.successes[c.Role]++
		if c.Handshake != 0 {
			h.handshakes.Add(float64(c.Handshake) / 1e9)
		}
	}
	open := s.established(c) && c.Closed == 0 && !c.Ended
	if open != s.active {
		s.active = open
		if open {
			h.active++
		} else {
			h.active--
		}
	}
	if !c.Ended || s.finalized {
		return
	}
	s.finalized = true
	switch {
	case s.established(c):
		h.closed[c.End]++
	case c.Opened:
		h.failures[c.Role][errorType(c.End)]++
	}
	if s.established(c) && c.Opened && c.Closed != 0 {
		h.durations.Add(float64(c.duration()) / 1e9)
	}
}

// Flip implements Flipper: what the states were from the other side is not known.
func (s *lifecycleState) Flip() { s.been = 0 }

// established reports whether the connection is or was so.
func (s *lifecycleState) established(c *Connection) bool {
	const opening = 1<<event.SynSent | 1<<event.SynRecv | 1<<event.NewSynRecv | 1<<event.Closed | 1<<0
	return c.Established != 0 || s.been&^opening != 0
}

// Collect implements State.
func (s *lifecycleState) Collect(c *Connection, e Emitter) {
	if c.Handshake != 0 {
		e.Float(s.f.handshake, float64(c.Handshake)/1e9)
	}
	if c.Closed != 0 {
		e.Float(s.f.duration, float64(c.duration())/1e9)
	}
	for i, series := range s.f.state {
		if s.been>>i&1 != 0 && series != nil && event.TCPState(i) != event.NewSynRecv {
			e.Int(series, bit(c.State == event.TCPState(i)))
		}
	}
}
