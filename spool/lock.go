// SPDX-License-Identifier: Apache-2.0

package spool

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// A holder is written into the lock file by whoever holds the lock. It only informs: the lock itself is the
// kernel's, and a dead process holds none.
type holder struct {
	Role  string    `json:"role"` // record, or recover (short: a reader that mends a segment)
	PID   int       `json:"pid"`
	Since time.Time `json:"since"`
}

const (
	roleRecord  = "record"
	roleRecover = "recover"
)

type dirLock struct{ f *os.File }

// takeLock locks the spool for writing. A reader that looks whether somebody holds the lock, or that mends a segment, holds it
// for a moment: that is waited for.
func takeLock(dir, role string) (*dirLock, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE, 0o640)
	if err != nil {
		return nil, err
	}
	patience := 200 * time.Millisecond
	for start := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		ok, err := tryLock(f, true)
		if err != nil {
			_ = f.Close()
			return nil, err
		}
		if ok {
			break
		}
		h := readHolder(dir)
		if h.Role == roleRecover {
			patience = 30 * time.Second
		}
		if time.Since(start) > patience {
			_ = f.Close()
			return nil, lockedError(dir, h)
		}
	}
	text, err := json.Marshal(holder{role, os.Getpid(), time.Now().UTC().Truncate(time.Second)})
	if err == nil {
		err = f.Truncate(0)
	}
	if err == nil {
		_, err = f.WriteAt(append(text, '\n'), 0)
	}
	// A full file system must not keep anybody from mending it: the text only informs.
	if err != nil && !isNoSpace(err) {
		_ = f.Close()
		return nil, err
	}
	return &dirLock{f}, nil
}

func lockedError(dir string, h holder) error {
	if h.PID == 0 {
		return withHint(fmt.Errorf("%w: %s is being recorded by another process", ErrLocked, dir),
			"stop it or choose another --spool")
	}
	return withHint(fmt.Errorf("%w: %s is being recorded by pid %d since %s", ErrLocked, dir, h.PID, h.Since.Local().Format(time.DateTime)),
		"stop it or choose another --spool")
}

func (l *dirLock) release() error {
	// The text goes first: it would name a process that may be long gone.
	err := l.f.Truncate(0)
	return errors.Join(err, l.f.Close())
}

func readHolder(dir string) (h holder) {
	text, err := os.ReadFile(filepath.Join(dir, lockName))
	if err == nil {
		_ = json.Unmarshal(text, &h)
	}
	return h
}

// lockHeld tells whether a living process holds the lock of the spool, and what it says of itself.
func lockHeld(dir string) (bool, holder, error) {
	f, err := os.Open(filepath.Join(dir, lockName))
	if errors.Is(err, fs.ErrNotExist) {
		return false, holder{}, nil
	}
	if err != nil {
		return false, holder{}, err
	}
	defer f.Close() // frees the lock as well
	free, err := tryLock(f, false)
	if err != nil || free {
		return false, holder{}, err
	}
	return true, readHolder(dir), nil
}
