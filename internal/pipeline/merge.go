// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/tcbee/tcbee-export/spool"
	"github.com/tcbee/tcbee-export/spool/block"
)

// Input is a spool that is merged.
type Input struct {
	Dir    string
	Reader *spool.Reader
}

// MergeError says why spools cannot be merged.
type MergeError struct{ what, hint string }

func (e *MergeError) Error() string { return e.what }

// Hint says what to do.
func (e *MergeError) Hint() string { return e.hint }

// stretch is the blocks of one session in one input.
type stretch struct {
	input       int
	session     uint64
	first, last spool.ID
	start       int64 // wall clock of its first record
}

// Merge writes the sessions of all inputs to a new spool at dir, in the order of their beginnings, with whoever recorded each (spool.Meta). Blocks are
// copied as they are. A session that is in two inputs is refused: connections of both would count twice.
func Merge(ctx context.Context, dir string, enc spool.Encryption, inputs []Input, progress Progress) (result Derived, err error) {
	result = Derived{Dir: dir, Damaged: []Damage{}}
	var all uint64
	for _, in := range inputs {
		n, _ := in.Reader.Size()
		all += 2 * n // heads first, then everything
	}
	done := uint64(0)
	step := func(uint64, uint64) {
		if progress != nil {
			progress(min(done, all), all)
		}
		done++
	}

	var plan []stretch
	owner := map[uint64]int{}
	for i, in := range inputs {
		var damaged []Damage
		err := eachHead(ctx, in.Reader, step, &damaged, func(id spool.ID, info *block.Info) error {
			n := len(plan)
			if n > 0 && plan[n-1].input == i && (!info.Anchored || plan[n-1].session == info.Anchor.Session) {
				plan[n-1].last = id
				return nil
			}
			if j, ok := owner[info.Anchor.Session]; info.Anchored && ok && j != i {
				return &MergeError{
					what: fmt.Sprintf("%s: session %016x is in %s too", in.Dir, info.Anchor.Session, inputs[j].Dir),
					hint: `"tcbee-export spool info" lists the sessions of a spool; merge each of them once`,
				}
			}
			owner[info.Anchor.Session] = i
			plan = append(plan, stretch{input: i, session: info.Anchor.Session, first: id, last: id, start: wall(info, info.First).UnixNano()})
			return nil
		})
		if err != nil {
			return result, err
		}
		for _, d := range damaged {
			d.Text = in.Dir + ": " + d.Text
			result.Damaged = append(result.Damaged, d)
		}
	}
	// What was interrupted by blocks of another session stays behind its own beginning.
	starts := map[uint64]int64{}
	for _, s := range plan {
		if at, ok := starts[s.session]; !ok || s.start < at {
			starts[s.session] = s.start
		}
	}
	slices.SortStableFunc(plan, func(a, b stretch) int {
		return cmp.Or(cmp.Compare(starts[a.session], starts[b.session]), cmp.Compare(a.input, b.input), cmp.Compare(a.session, b.session), cmp.Compare(a.first, b.first))
	})

	t, err := newTarget(dir, enc)
	if err != nil {
		return result, err
	}
	defer func() { err = t.close(err) }()
	out := derived{target: t, out: &result}
	metas := make([]func(spool.ID) spool.Meta, len(inputs))
	for i, in := range inputs {
		metas[i] = metaOf(in.Reader)
	}
	for i, s := range plan {
		r := inputs[s.input].Reader
		if i == 0 || plan[i-1].session != s.session {
			result.Sessions++
		}
		if err := t.as(ctx, metas[s.input](s.first), true); err != nil {
			return result, err
		}
		if err := r.Seek(s.first); err != nil {
			return result, err
		}
		for {
			id, src, err := r.Next(ctx)
			var hurt *spool.DamageError
			if errors.As(err, &hurt) {
				if hurt.Last == 0 || hurt.Last >= s.last {
					break
				}
				continue // it was told when the heads were read
			}
			if errors.Is(err, io.EOF) || err == nil && id > s.last {
				break
			}
			if err != nil {
				return result, err
			}
			step(0, 0)
			info, err := block.ReadInfo(src)
			if err != nil {
				continue
			}
			result.Source.add(&info)
			if err := out.copy(src); err != nil {
				return result, err
			}
			if id == s.last {
				break
			}
		}
	}
	result.Blocks, result.Bytes = t.blocks, t.bytes
	return result, nil
}
