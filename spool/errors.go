// SPDX-License-Identifier: Apache-2.0

package spool

import (
	"errors"
	"fmt"
)

// Sentinels, for errors.Is. The errors that wrap them say what, where and what to do. A missing directory is
// fs.ErrNotExist, a refused one fs.ErrPermission, as everywhere.
var (
	ErrNotSpool = errors.New("not a spool")                            // the directory holds something else
	ErrVersion  = errors.New("spool of a newer version")               // written by a newer program
	ErrLocked   = errors.New("spool in use")                           // another process records into it
	ErrFull     = errors.New("no space left for the spool")            // the block was not stored; Append works again once there is space
	ErrGone     = errors.New("spool directory vanished")               // unmounted, renamed or removed under the recorder; the block was not stored
	ErrReadOnly = errors.New("read-only file system")                  // nothing can be recorded or recovered there
	ErrKey      = errors.New("wrong or missing encryption key")        // see Encryption
	ErrClosed   = errors.New("spool is closed")                        // the Writer or Reader was closed before
	ErrRemoved  = errors.New("removed by retention")                   // inside DamageError: the blocks are gone by the recorder's limits
	ErrUnclosed = errors.New("segment was not closed by its recorder") // inside DamageError: cannot be recovered here
)

// hinted is an error with advice for the person who reads it.
type hinted struct {
	error
	hint string
}

// Hint says what to do about the error.
func (e *hinted) Hint() string { return e.hint }

// Unwrap gives the error without the advice.
func (e *hinted) Unwrap() error { return e.error }

func withHint(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return &hinted{err, fmt.Sprintf(format, args...)}
}

// DamageError tells of blocks that cannot be read. Reading goes on behind them with the next call.
type DamageError struct {
	Segment uint64 // the segment's number, 0 if it is not known
	First   ID     // the first block that is lost
	Last    ID     // the last one; 0 if it is not known how many were lost
	Err     error  // why
}

// Error names the place and the reason.
func (e *DamageError) Error() string {
	place := ""
	if e.Segment != 0 {
		place = fmt.Sprintf("segment %08d, ", e.Segment)
	}
	switch {
	case e.Last == 0:
		return fmt.Sprintf("%sfrom block %d on: %v", place, e.First, e.Err)
	case e.First == e.Last:
		return fmt.Sprintf("%sblock %d: %v", place, e.First, e.Err)
	default:
		return fmt.Sprintf("%sblocks %d to %d: %v", place, e.First, e.Last, e.Err)
	}
}

// Unwrap gives the reason.
func (e *DamageError) Unwrap() error { return e.Err }
