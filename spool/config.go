// SPDX-License-Identifier: Apache-2.0

package spool

import (
	"errors"
	"fmt"
	"time"
)

// MaxBlock is the size in bytes of the largest block that Append takes.
const MaxBlock = 16 << 20

const (
	minSegmentBytes = 1 << 20
	maxSegmentBytes = 1 << 30 // Badger bounds a value log file by 2 GiB
	minSegmentAge   = time.Second
	minMaxAge       = time.Minute
	minSyncInterval = 10 * time.Millisecond

	// segmentsPerLimit is how many segments max_bytes must hold at least: one is written, one
	// is prepared or being closed, and what is left is worth keeping.
	segmentsPerLimit = 4

	// fixedBytes is what a spool takes beside its segments: directories, cursors and the like.
	fixedBytes = 1 << 20
)

// SyncMode says when blocks are forced to the device. Whatever the mode, an appended block survives
// the death of the process; the modes differ in what the loss of power (or a kernel crash) may take.
type SyncMode string

// The modes of synchronisation.
const (
	SyncBlock    SyncMode = "block"    // every Append returns after the device has the block: nothing appended is ever lost
	SyncInterval SyncMode = "interval" // every Config.SyncInterval: at most that much is lost with the power
	SyncOff      SyncMode = "off"      // when a segment is closed; in between the kernel decides (on Linux within about 30 s)
)

// FullMode says what happens when the file system has no room left for a block.
type FullMode string

// The modes for a full file system.
const (
	FullStop       FullMode = "stop"        // Append returns ErrFull until there is room again
	FullDropOldest FullMode = "drop_oldest" // the oldest closed segments are removed to make room; ErrFull only if there is none
)

// Config is the configuration of a spool that is written. Sizes are in bytes as the file system counts
// them (allocated blocks, what du tells), not apparent sizes.
type Config struct {
	// Dir is the spool's directory. It is made if it does not exist; a directory that holds
	// anything else is refused.
	Dir string `mapstructure:"dir"`

	// SegmentBytes bounds the blocks of one segment. Retention removes whole segments, and a damaged
	// one can cost no more than this.
	SegmentBytes int64 `mapstructure:"segment_bytes"`

	// SegmentAge bounds how long one segment is written, counted from its first block.
	SegmentAge time.Duration `mapstructure:"segment_age"`

	// MaxBytes bounds the whole directory: the oldest segments are removed. 0 keeps everything.
	MaxBytes int64 `mapstructure:"max_bytes"`

	// MaxAge removes segments whose last block is older. 0 keeps everything.
	MaxAge time.Duration `mapstructure:"max_age"`

	// Sync says when blocks are forced to the device, see SyncMode.
	Sync SyncMode `mapstructure:"sync"`

	// SyncInterval is the time between two synchronisations where these are made at an interval. An idle
	// spool is not synchronised at all.
	SyncInterval time.Duration `mapstructure:"sync_interval"`

	// OnFull says what happens when the file system is full, see FullMode.
	OnFull FullMode `mapstructure:"on_full"`

	// MinFreeBytes of the file system are left to others: it counts as full below that.
	MinFreeBytes int64 `mapstructure:"min_free_bytes"`

	// Encryption encrypts the blocks at rest.
	Encryption Encryption `mapstructure:"encryption"`
}

// Encryption names the place of the key that encrypts a spool at rest (AES in counter mode, by Badger). At most one place
// may be given; the key itself never appears in a configuration or on a command line. A key is 16, 24 or 32 bytes, written in
// hexadecimal or base64 digits, or as they are.
type Encryption struct {
	KeyFile string `mapstructure:"key_file"` // a file that holds the key; one newline at its end is ignored
	KeyEnv  string `mapstructure:"key_env"`  // the name of the environment variable that holds the key
}

// DefaultConfig returns the configuration of a spool that is safe to leave on: it keeps the newest 10 GiB (about
// two thousand million packet events), loses at most a second with the power, and leaves 64 MiB of the file system to others.
func DefaultConfig() Config {
	return Config{
		SegmentBytes: 128 << 20,
		SegmentAge:   time.Hour,
		MaxBytes:     10 << 30,
		Sync:         SyncInterval,
		SyncInterval: time.Second,
		OnFull:       FullStop,
		MinFreeBytes: 64 << 20,
	}
}

// Validate reports all faults, each by its key path. An empty Dir is no fault here, since a command may do without
// a spool; Create refuses it.
func (c Config) Validate() error {
	var errs []error
	fault := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("spool."+key+": "+format, args...))
	}
	if c.SegmentBytes < minSegmentBytes || c.SegmentBytes > maxSegmentBytes {
		fault("segment_bytes", "%d is outside %d to %d", c.SegmentBytes, minSegmentBytes, maxSegmentBytes)
	}
	if c.SegmentAge < minSegmentAge {
		fault("segment_age", "%v is below the minimum %v", c.SegmentAge, minSegmentAge)
	}
	if least := segmentsPerLimit*c.SegmentBytes + fixedBytes; c.MaxBytes != 0 && c.MaxBytes < least {
		fault("max_bytes", "%d is below the minimum %d (%d segments of spool.segment_bytes = %d, and %d beside them); raise it, lower spool.segment_bytes, or give 0 for no limit",
			c.MaxBytes, least, segmentsPerLimit, c.SegmentBytes, fixedBytes)
	}
	if c.MaxAge != 0 && c.MaxAge < minMaxAge {
		fault("max_age", "%v is below the minimum %v; give 0 for no limit", c.MaxAge, minMaxAge)
	}
	switch c.Sync {
	case SyncBlock, SyncInterval, SyncOff:
	default:
		fault("sync", "%q is none of block, interval, off", string(c.Sync))
	}
	if c.Sync == SyncInterval && c.SyncInterval < minSyncInterval {
		fault("sync_interval", "%v is below the minimum %v", c.SyncInterval, minSyncInterval)
	}
	switch c.OnFull {
	case FullStop, FullDropOldest:
	default:
		fault("on_full", "%q is none of stop, drop_oldest", string(c.OnFull))
	}
	if c.MinFreeBytes < 0 {
		fault("min_free_bytes", "%d is negative", c.MinFreeBytes)
	}
	if c.Encryption.KeyFile != "" && c.Encryption.KeyEnv != "" {
		fault("encryption", "key_file and key_env are both given; give one")
	}
	return errors.Join(errs...)
}
