// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/cilium/ebpf"
)

// Bits and size of the header before each ring record (include/uapi/linux/bpf.h).
const (
	ringBusy    = 1 << 31
	ringDiscard = 1 << 30
	ringHeader  = 8
)

// ring reads a BPF ring buffer in place. One goroutine may use it.
type ring struct {
	fd       int
	mask     uint64
	consumer []byte // one page, written by us
	producer []byte // one page, then the data twice, read-only
	data     unsafe.Pointer
	pos      uint64 // of the next record to be read
	released uint64 // what the kernel knows of pos
}

func newRing(m *ebpf.Map) (*ring, error) {
	page, size := os.Getpagesize(), int(m.MaxEntries())
	consumer, err := unix.Mmap(m.FD(), 0, page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map the ring: %w", err)
	}
	producer, err := unix.Mmap(m.FD(), int64(page), page+2*size, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map the ring: %w", joinUnmap(err, consumer))
	}
	r := &ring{fd: m.FD(), mask: uint64(size - 1), consumer: consumer, producer: producer,
		data: unsafe.Pointer(&producer[page])}
	r.pos = atomic.LoadUint64(r.consumerPos())
	r.released = r.pos
	return r, nil
}

func (r *ring) consumerPos() *uint64 { return (*uint64)(unsafe.Pointer(&r.consumer[0])) }

// end is the position up to which records are reserved.
func (r *ring) end() uint64 { return atomic.LoadUint64((*uint64)(unsafe.Pointer(&r.producer[0]))) }

// used is how much of the ring is taken. Any goroutine may ask.
func (r *ring) used() uint64 { return r.end() - atomic.LoadUint64(r.consumerPos()) }

// next returns the next record in place, nil if none is complete. It stays valid until release.
func (r *ring) next() []byte {
	for r.pos < r.end() {
		at := unsafe.Add(r.data, r.pos&r.mask)
		head := atomic.LoadUint32((*uint32)(at))
		if head&ringBusy != 0 {
			return nil
		}
		n := head &^ (ringBusy | ringDiscard)
		r.pos += (uint64(n) + ringHeader + 7) &^ 7
		if head&ringDiscard == 0 {
			return unsafe.Slice((*byte)(unsafe.Add(at, ringHeader)), n)
		}
	}
	return nil
}

// release gives the space of all records that next returned back to the kernel.
func (r *ring) release() {
	if r.released != r.pos {
		atomic.StoreUint64(r.consumerPos(), r.pos)
		r.released = r.pos
	}
}

func (r *ring) close() error {
	err := unix.Munmap(r.producer)
	if e := unix.Munmap(r.consumer); err == nil {
		err = e
	}
	return err
}

// joinUnmap unmaps b because of err, which it returns.
func joinUnmap(err error, b []byte) error {
	if e := unix.Munmap(b); e != nil {
		return fmt.Errorf("%w (and unmap: %w)", err, e)
	}
	return err
}
