// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"context"
	"slices"

	"github.com/tcbee/tcbee-export/exporter"
	"github.com/tcbee/tcbee-export/processors"
	"github.com/tcbee/tcbee-export/spool"
)

// FlowOptions say which connections are listed, and how.
type FlowOptions struct {
	Process processors.Config
	Select  Selection
	// Exact works off every event, as Replay does. Without it the blocks' directories are added up, which
	// takes a hundredth of the time; see Flows.
	Exact bool
}

// Flows lists the connections of a recording, with the damaged blocks that it had to pass over: session by session, in the order of
// their IDs.
//
// Unless it is to be exact, it adds up the digests in the directories of blocks and decodes only the blocks
// at the edges of a time window, those with losses, and those in which two connections had the same ends. For connections that this host's
// sockets take part in, and for forwarded ones, that gives the numbers of processors.Table, but for these:
//
//   - goodput is not known (0);
//   - a connection that is seen at several interfaces counts at the one where each block saw it first: packets between the two sightings of
//     one that lie in different blocks count twice;
//   - LostEvents bounds a connection's losses by those of all CPUs, not of its own;
//   - without sockets (packets from a capture of packets alone) the state of a connection that has not ended is that of its last SYN or FIN,
//     and a handshake, or a closing, whose packets are in two blocks has no duration, or ends with the last packet;
//   - connects to the same peer within one block begin with their SYN, some microseconds after the call;
//   - what the rule for too many connections (Config.MaxConnections) would forget is listed as one.
func Flows(ctx context.Context, r *spool.Reader, opts FlowOptions, progress Progress) ([]processors.Flow, []Damage, error) {
	sel, err := opts.Select.resolve(ctx, r)
	if err != nil {
		return nil, nil, err
	}
	if !opts.Exact {
		return list(ctx, r, opts.Process, sel, progress)
	}
	var ranges []idRange
	if sel != nil {
		if ranges, err = sel.ranges(ctx, r); err != nil {
			return nil, nil, err
		}
	}
	read, err := newReader(metaOf(r), ReadOptions{Process: opts.Process, Export: exporter.DefaultConfig()}, nil)
	if err != nil {
		return nil, nil, err
	}
	if sel != nil {
		read.part = newPart(sel)
	}
	flows := []processors.Flow{}
	damaged := []Damage{}
	begin := 0 // of the session
	read.ended = func(t *processors.Table) {
		flows = t.TakeEnded(flows)
		flows = append(flows, t.Flows()...)
		slices.SortFunc(flows[begin:], func(a, b processors.Flow) int { return int(int64(a.ID - b.ID)) })
		begin = len(flows)
	}
	err = eachSelected(ctx, r, ranges, progress, &damaged, func(id spool.ID, src []byte) error {
		err := read.feed(ctx, id, src)
		flows = read.table.TakeEnded(flows) // so that what is held is what is open
		return err
	})
	if err == nil {
		err = read.finish(ctx)
	}
	return flows, damaged, err
}
