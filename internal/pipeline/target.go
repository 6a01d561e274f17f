// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"

	"github.com/tcbee/tcbee-export/spool"
)

// TargetError says that a new spool cannot be made where it was asked for.
type TargetError struct {
	what string
	hint string
	err  error // may be nil
}

func (e *TargetError) Error() string { return e.what }

// Unwrap gives the reason, if there is one.
func (e *TargetError) Unwrap() error { return e.err }

// Hint says what to do.
func (e *TargetError) Hint() string { return e.hint }

// target is a spool that is made of others. It grows beside its place and gets its name when it is complete, so that what a
// killed program leaves behind is never taken for the whole.
type target struct {
	dir    string // where it will be
	grow   string // where it grows
	cfg    spool.Config
	w      *spool.Writer
	meta   spool.Meta
	blocks uint64
	bytes  uint64
}

// unfinished is what the name of a spool that is not complete ends in.
const unfinished = ".unfinished"

// CheckTarget tells whether a new spool can be made at dir: it must not exist, or be an empty directory, and there must be a place for it. Nothing
// is changed.
func CheckTarget(dir string) error {
	dir = filepath.Clean(dir)
	const hint = "name a directory that does not exist yet"
	entries, err := os.ReadDir(dir)
	switch {
	case err == nil && len(entries) > 0:
		return &TargetError{what: fmt.Sprintf("%s exists and is not empty", dir), hint: hint}
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return &TargetError{what: err.Error(), hint: hint, err: err}
	}
	grow := dir + unfinished
	if _, err := os.Lstat(grow); err == nil {
		return &TargetError{
			what: fmt.Sprintf("%s is there: what is left of an attempt that did not come to its end, or one that is under way", grow),
			hint: "if nobody is at work there, remove it: rm -r " + grow,
		}
	}
	// The nearest directory that is there: whatever is missing below is made.
	for up := filepath.Dir(dir); ; up = filepath.Dir(up) {
		fi, err := os.Stat(up)
		switch {
		case err == nil && !fi.IsDir():
			return &TargetError{what: fmt.Sprintf("%s is not a directory", up), hint: hint}
		case err == nil:
			return nil
		case !errors.Is(err, fs.ErrNotExist):
			return &TargetError{what: err.Error(), hint: hint, err: err}
		case up == filepath.Dir(up):
			return nil
		}
	}
}

// newTarget claims the place. enc is how the new spool is encrypted.
func newTarget(dir string, enc spool.Encryption) (*target, error) {
	if err := CheckTarget(dir); err != nil {
		return nil, err
	}
	dir = filepath.Clean(dir)
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, &TargetError{what: fmt.Sprintf("%s cannot be replaced: %v", dir, err), hint: "name a directory that does not exist yet", err: err}
	}
	t := &target{dir: dir, grow: dir + unfinished, cfg: spool.DefaultConfig()}
	// Nothing is thrown away, and the device gets it all at the end.
	t.cfg.Dir, t.cfg.MaxBytes, t.cfg.MaxAge, t.cfg.Sync, t.cfg.Encryption = t.grow, 0, 0, spool.SyncOff, enc
	t.cfg.OnFull, t.cfg.MinFreeBytes = spool.FullStop, 0
	return t, nil
}

// as makes meta the metadata of what is appended from here on; apart begins a new segment even if it is the same.
func (t *target) as(ctx context.Context, meta spool.Meta, apart bool) error {
	if t.w != nil && reflect.DeepEqual(t.meta, meta) {
		if apart {
			return t.w.Rotate(ctx)
		}
		return nil
	}
	if err := t.leave(); err != nil {
		return err
	}
	w, err := spool.Create(ctx, t.cfg, meta, nil)
	if err != nil {
		return err
	}
	t.w, t.meta = w, meta
	return nil
}

func (t *target) leave() error {
	if t.w == nil {
		return nil
	}
	w := t.w
	t.w = nil
	return w.Close()
}

func (t *target) append(b []byte) error {
	_, err := t.w.Append(b)
	if err == nil {
		t.blocks++
		t.bytes += uint64(len(b))
	}
	return err
}

// close gives the spool its name if all went well (err is nil), else removes what there is of it. It returns err, and
// what went wrong here.
func (t *target) close(err error) error {
	if t.w == nil && err == nil {
		// Not one block: still a spool.
		err = t.as(context.Background(), spool.Meta{}, false)
	}
	err = errors.Join(err, t.leave())
	if err == nil {
		if err = os.Rename(t.grow, t.dir); err == nil {
			return syncDir(filepath.Dir(t.dir))
		}
	}
	if rerr := os.RemoveAll(t.grow); rerr != nil {
		err = errors.Join(err, fmt.Errorf("remove what was made until then: %w", rerr))
	}
	return err
}

// syncDir makes the entries of the directory durable, where the system can.
func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return nil // the spool is complete; only the power can take its name
	}
	defer f.Close()
	_ = f.Sync()
	return nil
}
