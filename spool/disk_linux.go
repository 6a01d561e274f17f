// SPDX-License-Identifier: Apache-2.0

package spool

import (
	"errors"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// allocate gives the range of the file real blocks of the file system, and leaves its size and what is in it
// alone. A write through a memory map into the range cannot run out of space afterwards.
func allocate(f *os.File, off, n int64) error {
	for {
		err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, off, n)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS):
			return allocateByWriting(f, off, n)
		default:
			return &fs.PathError{Op: "fallocate", Path: f.Name(), Err: err}
		}
	}
}

// populate brings the pages of the range into the page cache. Touched for the first time through a memory map, they would come
// in lumps as large as the device's readahead (8 MiB: 25 ms, measured on a virtual machine whose memory the host backs late).
func populate(f *os.File, off, n int64) {
	const piece = 128 << 10 // the kernel takes no more than its readahead of one call
	for ; n > 0; off, n = off+piece, n-piece {
		if unix.Fadvise(int(f.Fd()), off, min(n, piece), unix.FADV_WILLNEED) != nil {
			return
		}
	}
}

// startWriteback asks the kernel to begin writing the range to the device, without waiting: a later
// synchronisation then finds little left to do.
func startWriteback(f *os.File, off, n int64) {
	_ = unix.SyncFileRange(int(f.Fd()), off, n, unix.SYNC_FILE_RANGE_WRITE)
}

// dataSync forces the file's data, written through memory maps too, to the device.
func dataSync(f *os.File) error {
	for {
		err := unix.Fdatasync(int(f.Fd()))
		if !errors.Is(err, unix.EINTR) {
			if err != nil {
				return &fs.PathError{Op: "fdatasync", Path: f.Name(), Err: err}
			}
			return nil
		}
	}
}

// diskState is what a file system says of itself.
type diskState struct {
	free     int64 // bytes that this process may still take
	readOnly bool
}

func diskOf(dir string) (diskState, error) {
	var st unix.Statfs_t
	for {
		err := unix.Statfs(dir, &st)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return diskState{}, &fs.PathError{Op: "statfs", Path: dir, Err: err}
		}
		free := st.Bavail
		if os.Geteuid() == 0 {
			free = st.Bfree
		}
		return diskState{free: int64(free) * st.Bsize, readOnly: st.Flags&unix.ST_RDONLY != 0}, nil
	}
}

// deviceBytes is what the file takes of the device.
func deviceBytes(fi fs.FileInfo) int64 {
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return st.Blocks * 512
	}
	return fi.Size()
}
