// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package spool

import (
	"io/fs"
	"math"
	"os"
)

func allocate(f *os.File, off, n int64) error { return allocateByWriting(f, off, n) }

func populate(*os.File, int64, int64) {}

func startWriteback(*os.File, int64, int64) {}

func dataSync(f *os.File) error { return f.Sync() }

// diskState is what a file system says of itself.
type diskState struct {
	free     int64 // bytes that this process may still take
	readOnly bool
}

// diskOf knows nothing here: a full file system shows itself when space is allocated.
func diskOf(string) (diskState, error) { return diskState{free: math.MaxInt64}, nil }

func deviceBytes(fi fs.FileInfo) int64 { return fi.Size() }
