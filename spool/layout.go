// SPDX-License-Identifier: Apache-2.0

package spool

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"
)

// Version is the version of the directory's layout that this package writes. It reads all versions up to it.
const Version = 1

// ID numbers the blocks of a spool, from 1 on, without a gap, over all segments. 0 is no block.
type ID uint64

// Names in a spool's directory; docs/format.md describes each.
const (
	spoolName    = "spool.json"
	lockName     = "lock"
	socketName   = "control.sock"
	segmentsName = "segments"
	trashName    = "trash"
	cursorsName  = "cursors"
	sidecarName  = "segment.json"
)

// Meta says where and how the blocks were recorded. It is kept with every segment, so that a segment tells of itself.
// All fields may be empty.
type Meta struct {
	Host      string            `json:"host,omitempty"`           // the host's name
	Kernel    string            `json:"kernel_release,omitempty"` // uname -r
	BootID    string            `json:"boot_id,omitempty"`        // /proc/sys/kernel/random/boot_id
	MachineID string            `json:"machine_id,omitempty"`     // /etc/machine-id
	HZ        int               `json:"hz,omitempty"`             // the kernel's CONFIG_HZ: ticks of jiffies a second
	Program   string            `json:"program,omitempty"`        // name and version of the program that recorded
	Config    json.RawMessage   `json:"config,omitempty"`         // its configuration
	Extra     map[string]string `json:"extra,omitempty"`          // anything else the recorder wants to tell
}

// State of a segment.
type State string

// A segment goes through these states in this order. Only the last one is read by others than its recorder.
const (
	StatePrepared State = "prepared" // opened ahead of its use: holds no block
	StateActive   State = "active"   // being written, or left so by a recorder that died
	StateClosed   State = "closed"   // never written again
)

// SegmentInfo describes a segment. The times are the recorder's wall clock and serve retention and display only.
type SegmentInfo struct {
	Version   int       `json:"version"`
	Number    uint64    `json:"number"`
	State     State     `json:"state"`
	First     ID        `json:"first_id"` // Last+1 in a segment without a block
	Last      ID        `json:"last_id"`
	Blocks    uint64    `json:"blocks"`
	Bytes     int64     `json:"bytes"`               // of the blocks
	Opened    time.Time `json:"opened,omitzero"`     // when its first block could come
	FirstAt   time.Time `json:"first_at,omitzero"`   // when its first block was appended
	LastAt    time.Time `json:"last_at,omitzero"`    // when its last block was appended
	Closed    time.Time `json:"closed,omitzero"`     // when it was closed
	Recovered bool      `json:"recovered,omitempty"` // its recorder had not closed it
	LostTail  uint64    `json:"lost_tail,omitempty"` // blocks at its end that recovery found torn (power loss) and took out
	Encrypted bool      `json:"encrypted,omitempty"`
	Meta      *Meta     `json:"meta,omitempty"` // absent in an encrypted segment: it is inside
	Files     []File    `json:"files,omitempty"`

	Dir    string `json:"-"` // where it is
	Device int64  `json:"-"` // bytes that it takes of the device
	Err    error  `json:"-"` // why it cannot be read, nil if nothing is known to be wrong
}

// newest is when something last happened to the segment, for retention by age.
func (si *SegmentInfo) newest() time.Time {
	if si.LastAt.IsZero() { // it holds no block
		return si.Closed
	}
	return si.LastAt
}

// keyOf gives the key to open the segment with: a spool may hold both kinds.
func (si *SegmentInfo) keyOf(key []byte) []byte {
	if !si.Encrypted {
		return nil
	}
	return key
}

// File is one file of a closed segment.
type File struct {
	Name  string `json:"name"`
	Bytes int64  `json:"bytes"`
	CRC   string `json:"crc32c,omitempty"` // of the whole file, eight hexadecimal digits; value logs have a checksum for each block instead
}

type spoolFile struct {
	Format  string    `json:"format"` // spoolFormat
	Version int       `json:"version"`
	Created time.Time `json:"created"`
}

const spoolFormat = "tcbee-spool"

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// readSpoolFile tells what the directory is: nil for a spool that can be read, else an error for a person.
func readSpoolFile(dir string) (spoolFile, error) {
	var sf spoolFile
	text, err := os.ReadFile(filepath.Join(dir, spoolName))
	if errors.Is(err, fs.ErrNotExist) {
		return sf, notSpool(dir)
	}
	if errors.Is(err, fs.ErrPermission) {
		return sf, withHint(err, "read it as its owner or as root: sudo")
	}
	if fi, serr := os.Stat(dir); serr == nil && !fi.IsDir() {
		return sf, notSpool(dir)
	}
	if err != nil {
		return sf, err
	}
	if err := json.Unmarshal(text, &sf); err != nil || sf.Format != spoolFormat || sf.Version < 1 {
		return sf, withHint(fmt.Errorf("%w: %s does not describe one", ErrNotSpool, filepath.Join(dir, spoolName)),
			`if the spool was damaged, write {"format":"%s","version":%d} into that file`, spoolFormat, Version)
	}
	if sf.Version > Version {
		return sf, versionError(dir, sf.Version)
	}
	return sf, nil
}

func versionError(place string, version int) error {
	return withHint(fmt.Errorf("%w: %s has version %d, this program reads up to %d", ErrVersion, place, version, Version),
		"read it with a newer program")
}

// notSpool says what a directory without a spool file is.
func notSpool(dir string) error {
	fi, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return withHint(fmt.Errorf("no spool at %s: %w", dir, fs.ErrNotExist), "check the path; a recording makes one: tcbee-export record --spool %s", dir)
	}
	if err != nil {
		return withHint(err, "read it as its owner or as root: sudo")
	}
	if !fi.IsDir() {
		return withHint(fmt.Errorf("%w: %s is a file, a spool is a directory", ErrNotSpool, dir), "check the path")
	}
	entries, err := os.ReadDir(dir)
	switch {
	case err != nil:
		return withHint(err, "read it as its owner or as root: sudo")
	case len(entries) == 0:
		return withHint(fmt.Errorf("%w: %s is an empty directory", ErrNotSpool, dir), "check the path; a recording makes a spool: tcbee-export record --spool %s", dir)
	}
	if _, err := os.Stat(filepath.Join(dir, "MANIFEST")); err == nil {
		return withHint(fmt.Errorf("%w: %s is a Badger database of another program", ErrNotSpool, dir), "check the path")
	}
	return withHint(fmt.Errorf("%w: %s holds other files and no %s", ErrNotSpool, dir, spoolName), "check the path; to record, choose an empty or new directory")
}

func segmentDir(dir string, number uint64) string {
	return filepath.Join(dir, segmentsName, segmentBase(number))
}

func segmentBase(number uint64) string { return fmt.Sprintf("%08d", number) }

// listSegments lists the numbers of the segments that are there, in order. Other names are left alone.
func listSegments(dir string) ([]uint64, error) {
	entries, err := os.ReadDir(filepath.Join(dir, segmentsName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var ns []uint64
	for _, e := range entries {
		if n, err := strconv.ParseUint(e.Name(), 10, 64); err == nil && e.IsDir() && n > 0 && e.Name() == segmentBase(n) {
			ns = append(ns, n)
		}
	}
	slices.Sort(ns)
	return ns, nil
}

// errSidecar is inside the error for a sidecar that is there but says nothing reliable.
var errSidecar = errors.New("damaged")

// readSidecar reads what a segment says of itself. The last line of the file is the CRC-32C of all before it.
func readSidecar(dir string) (SegmentInfo, error) {
	var si SegmentInfo
	path := filepath.Join(dir, sidecarName)
	text, err := os.ReadFile(path)
	if err != nil {
		return si, err
	}
	body, crc := text, ""
	if i := bytes.LastIndexByte(bytes.TrimSuffix(text, []byte("\n")), '\n'); i >= 0 {
		body, crc = text[:i+1], string(bytes.TrimSuffix(text[i+1:], []byte("\n")))
	}
	if crc != crcLine(body) {
		return si, fmt.Errorf("%s is %w: its checksum does not fit", path, errSidecar)
	}
	if err := json.Unmarshal(body, &si); err != nil {
		return si, fmt.Errorf("%s is %w: %w", path, errSidecar, err)
	}
	if si.Version > Version {
		return si, versionError(dir, si.Version)
	}
	if si.Meta != nil && len(si.Meta.Config) > 0 { // as it was given, not as it was indented
		var b bytes.Buffer
		if err := json.Compact(&b, si.Meta.Config); err == nil {
			si.Meta.Config = b.Bytes()
		}
	}
	si.Dir = dir
	return si, nil
}

func crcLine(body []byte) string { return fmt.Sprintf("crc32c %08x", crc32.Checksum(body, castagnoli)) }

func writeSidecar(si SegmentInfo, sync bool) error {
	body, err := json.MarshalIndent(si, "", "\t")
	if err != nil {
		return fmt.Errorf("segment %d: %w", si.Number, err)
	}
	body = append(body, '\n')
	return writeAtomic(filepath.Join(si.Dir, sidecarName), append(body, crcLine(body)+"\n"...), sync)
}
