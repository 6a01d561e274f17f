// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"context"

	"github.com/tcbee/tcbee-export/exporter"
	"github.com/tcbee/tcbee-export/processors"
	"github.com/tcbee/tcbee-export/spool"
)

// FlowOptions say which connections are listed, and how.
type FlowOptions struct {
	Process processors.Config
	Select  Selection
}

// Flows works off a recording and returns its connections in the order in which they ended, then those that were
// still open, with the damaged blocks that it had to pass over.
func Flows(ctx context.Context, r *spool.Reader, opts FlowOptions, progress Progress) ([]processors.Flow, []Damage, error) {
	read, err := newReader(metaOf(r), ReadOptions{Process: opts.Process, Export: exporter.DefaultConfig()}, nil)
	if err != nil {
		return nil, nil, err
	}
	sel, err := opts.Select.resolve(ctx, r)
	if err != nil {
		return nil, nil, err
	}
	if sel != nil {
		read.part = newPart(sel)
	}
	flows := []processors.Flow{}
	damaged := []Damage{}
	read.ended = func(t *processors.Table) {
		flows = t.TakeEnded(flows)
		flows = append(flows, t.Flows()...)
	}
	err = eachBlock(ctx, r, progress, &damaged, func(id spool.ID, src []byte) error {
		err := read.feed(ctx, id, src)
		flows = read.table.TakeEnded(flows) // so that what is held is what is open
		return err
	})
	if err == nil {
		err = read.finish(ctx)
	}
	return flows, damaged, err
}
