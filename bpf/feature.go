// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"

	"github.com/tcbee/tcbee-export/bpf/event"
)

// ErrUnsupported is returned by Open where there is no capture, as on other systems than Linux.
var ErrUnsupported = errors.New("capturing is not supported on this system")

// ErrNoInterface is in the error of Open if the configuration names an interface that is not there.
var ErrNoInterface = errors.New("no such interface")

// hinted is an error that says what to do about it.
type hinted struct {
	error
	hint string
}

// Hint says what the person who reads the error can do.
func (e *hinted) Hint() string { return e.hint }

// Unwrap returns the error without its hint.
func (e *hinted) Unwrap() error { return e.error }

// hint adds advice to an error.
func hint(err error, advice string) error {
	if err == nil {
		return nil
	}
	return &hinted{err, advice}
}

// Feature is what Probe found out about one part of the capture.
type Feature struct {
	Group    string   `json:"group"`              // rights, transport, packets, sockets, events
	Name     string   `json:"name"`               // of the capability, hook or kernel feature
	Enabled  bool     `json:"enabled"`            // the configuration asks for it
	Usable   bool     `json:"usable"`             // it works here and now
	Through  string   `json:"through,omitempty"`  // the kernel's feature that does it, where there is more than one
	Reason   string   `json:"reason,omitempty"`   // why it does not
	Missing  []string `json:"missing,omitempty"`  // what the recording lacks without it
	Fallback string   `json:"fallback,omitempty"` // what is done instead
	Hint     string   `json:"hint,omitempty"`     // what a person can do about it
}

// Capability is one that a capture can use.
type Capability struct {
	Name     string // as capabilities(7) has it
	Bit      uint   // its number
	Required bool   // nothing can be captured without it
	For      string // what it is used for
}

// Accounting holds the counters of all hooks since the start of a session. For each hook
// and CPU Seen = stored + Dropped + Missed + Filtered, where stored is the number of its
// records that Next has returned by the end. The kernel counts Missed for a program, not for a CPU:
// it is in the counters of CPU 0.
type Accounting struct {
	Total [event.Hooks]event.Counters
	CPUs  [][event.Hooks]event.Counters // by CPU number

	Limited uint64 // samples among the filtered that SamplesLimited left out
}
