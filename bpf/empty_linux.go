// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"io"
	"log/slog"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// OpenEmpty attaches programs that do nothing at the very hooks where Open attaches those that record:
// what the hooks themselves cost, for measurements. Closing the result detaches them.
func OpenEmpty(cfg Config, log *slog.Logger) (io.Closer, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	cfg.RingBytes = minRing // nothing is ever in it
	c := &Capture{cfg: cfg, log: log, event: -1}
	if err := c.openEmpty(); err != nil {
		_ = c.Close()
		return nil, err
	}
	return c, nil
}

func (c *Capture) openEmpty() (err error) {
	if c.ns, err = openNamespace(c.cfg.netnsPath()); err != nil {
		return err
	}
	if c.obj, err = loadObject(c.cfg, settings{hz: 1}); err != nil {
		return err
	}
	for _, p := range c.obj.spec.Programs {
		p.Instructions = emptyProgram(p.Type)
	}
	if err := c.attachTraced(false); err != nil {
		return err
	}
	if err := c.attachTransmit(false); err != nil {
		return err
	}
	if err := c.attachInterfaces(); err != nil {
		return err
	}
	c.obj.cache = nil // no more programs to load
	return nil
}

// emptyProgram lets everything pass.
func emptyProgram(kind ebpf.ProgramType) asm.Instructions {
	verdict := int32(0)
	switch kind {
	case ebpf.SchedCLS:
		verdict = -1 // TCX_NEXT
	case ebpf.XDP:
		verdict = 2 // XDP_PASS
	}
	return asm.Instructions{asm.Mov.Imm(asm.R0, verdict), asm.Return()}
}
