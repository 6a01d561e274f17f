// SPDX-License-Identifier: Apache-2.0

package loadtest

import (
	"context"
	"errors"
	"fmt"

	"github.com/tcbee/tcbee-export/bpf/event"
	"github.com/tcbee/tcbee-export/bpf/netlab"
	"github.com/tcbee/tcbee-export/internal/pipeline"
)

// counts are readings of what counts beside a recorder, from one moment on.
type counts struct {
	lab    *netlab.Lab
	wire   *netlab.Counter
	kernel netlab.SNMP
	before netlab.Reading
}

// count begins to count at A's end of a quiet link.
func count(ctx context.Context, lab *netlab.Lab) (*counts, error) {
	c := &counts{lab: lab}
	var err error
	if c.wire, err = lab.Count(lab.A, lab.A.Interface); err != nil {
		return nil, err
	}
	if c.kernel, err = lab.A.SNMP(); err == nil {
		c.before, err = c.wire.Read(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, c.wire.Close())
	}
	return c, nil
}

// check waits until the link is quiet and returns what was counted since count. It is an error if the counters are not
// of one mind.
func (c *counts) check(ctx context.Context) (r Checked, err error) {
	if err := errors.Join(c.lab.A.Quiet(ctx), c.lab.B.Quiet(ctx)); err != nil {
		return r, err
	}
	now, err := c.lab.A.SNMP()
	if err != nil {
		return r, err
	}
	after, err := c.wire.Read(ctx)
	if err != nil {
		return r, err
	}
	kernel := now.Sub(c.kernel)
	rx, tx := after.TCPSince(c.before)
	r = Checked{PacketsIn: after.In.TCP, PacketsOut: after.Out.TCP, SegmentsOut: after.Out.Segments}
	return r, errors.Join(
		same("packets in: the interface", rx, r.PacketsIn),
		same("packets in: TcpInSegs", uint64(kernel["TcpInSegs"]), r.PacketsIn),
		same("packets out: the interface", tx, r.PacketsOut),
		same("segments out: TcpOutSegs and TcpRetransSegs", uint64(kernel["TcpOutSegs"]+kernel["TcpRetransSegs"]), r.SegmentsOut))
}

// account holds a recorder's account against the counters.
func (r Checked) account(hooks []pipeline.HookCount) error {
	seen := map[string]uint64{}
	for _, h := range hooks {
		seen[h.Hook] = h.Seen
	}
	in := seen[event.HookTCIngress.String()] + seen[event.HookXDP.String()] // one of the two
	return errors.Join(
		same("the ingress hook", in, r.PacketsIn),
		same("the egress hook", seen[event.HookTCEgress.String()], r.PacketsOut))
}

func same(what string, got, want uint64) error {
	if got == want {
		return nil
	}
	return fmt.Errorf("%s counted %d, another program at the interface %d", what, got, want)
}
