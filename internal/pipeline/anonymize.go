// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"

	"github.com/tcbee/tcbee-export/bpf/event"
	"github.com/tcbee/tcbee-export/spool"
	"github.com/tcbee/tcbee-export/spool/block"
)

// Key decides which pseudonym an address gets. Who has it can tell the addresses again.
type Key [keySize]byte

// KeyError says what is wrong with a key.
type KeyError struct {
	what, hint string
	err        error // may be nil
}

func (e *KeyError) Error() string { return e.what }

// Unwrap gives the reason, if there is one.
func (e *KeyError) Unwrap() error { return e.err }

// Hint says what to do.
func (e *KeyError) Hint() string { return e.hint }

// ReadKey reads a key of 32 bytes from a file: as they are, or as hexadecimal or base64 digits. open says that others
// than the owner may read the file.
func ReadKey(path string) (key Key, open bool, err error) {
	f, err := os.Open(path)
	if err != nil {
		return key, false, keyError(err)
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, 1<<10))
	if err != nil {
		return key, false, keyError(err)
	}
	if st, err := f.Stat(); err == nil && runtime.GOOS != "windows" {
		open = st.Mode().Perm()&0o077 != 0
	}
	text := bytes.TrimRight(raw, "\r\n")
	b64 := base64.StdEncoding
	for _, parse := range []func() ([]byte, error){
		func() ([]byte, error) { return raw, nil },
		func() ([]byte, error) { return text, nil },
		func() ([]byte, error) { return hex.DecodeString(string(text)) },
		func() ([]byte, error) { return b64.DecodeString(string(text)) },
		func() ([]byte, error) { return base64.RawStdEncoding.DecodeString(string(text)) },
	} {
		if b, err := parse(); err == nil && len(b) == keySize {
			return Key(b), open, nil
		}
	}
	return key, open, &KeyError{
		what: fmt.Sprintf("%s holds no key of %d bytes, nor %d hexadecimal digits, nor base64 of that", path, keySize, 2*keySize),
		hint: "--generate-key makes one",
	}
}

// GenerateKey writes a new random key as hexadecimal digits into a file that only its owner may read. A file that is there is
// left as it is, and the error is fs.ErrExist.
func GenerateKey(path string) error {
	var key Key
	if _, err := rand.Read(key[:]); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return keyError(err)
	}
	_, err = f.WriteString(hex.EncodeToString(key[:]) + "\n")
	err = errors.Join(err, f.Sync(), f.Close())
	if err != nil {
		return errors.Join(keyError(err), os.Remove(path))
	}
	return nil
}

func keyError(err error) error {
	hint := ""
	switch {
	case errors.Is(err, fs.ErrNotExist):
		hint = "--generate-key makes one"
	case errors.Is(err, fs.ErrExist):
		hint = "leave out --generate-key to use the key that is there; another one gives other pseudonyms"
	}
	return &KeyError{what: err.Error(), hint: hint, err: err}
}

// AnonymizeOptions say what Anonymize does.
type AnonymizeOptions struct {
	Key         Key
	KeepProcess bool // keep process, thread and user ids, names of processes, cgroups
}

// Anonymize writes r to a new spool at dir in which nobody can be told: addresses are replaced by pseudonyms that keep
// prefixes (Crypto-PAn), also those within MPTCP options; ids and names of processes, users and cgroups, names of interfaces but lo, and what the
// metadata tells of the host, its configuration and earlier cuts are removed. Ports, times and everything of TCP stay, session and
// socket numbers too: who has both spools can put them side by side.
func Anonymize(ctx context.Context, r *spool.Reader, dir string, enc spool.Encryption, opts AnonymizeOptions, progress Progress) (result Derived, err error) {
	result = Derived{Dir: dir, Damaged: []Damage{}}
	t, err := newTarget(dir, enc)
	if err != nil {
		return result, err
	}
	defer func() { err = t.close(err) }()
	a := anonymizer{
		derived: derived{target: t, build: block.NewBuilder(block.Options{}), out: &result},
		pan:     newCryptoPAn((*[keySize]byte)(&opts.Key)), dec: block.NewDecoder(), keep: opts.KeepProcess, meta: metaOf(r),
	}
	err = eachBlock(ctx, r, progress, &result.Damaged, func(id spool.ID, src []byte) error { return a.block(ctx, id, src) })
	result.Blocks, result.Bytes = t.blocks, t.bytes
	return result, err
}

// anonymizer is Anonymize at work.
type anonymizer struct {
	derived
	pan     *cryptoPAn
	dec     *block.Decoder
	raw     []byte
	keep    bool
	meta    func(spool.ID) spool.Meta
	any     bool
	session uint64
}

// block makes one block of one.
func (a *anonymizer) block(ctx context.Context, id spool.ID, src []byte) error {
	info, err := block.ReadInfo(src)
	if err != nil {
		return err
	}
	a.out.Source.add(&info)
	if a.raw, err = a.dec.Decode(a.raw[:0], src); err != nil {
		return err
	}
	if !a.any || info.Anchored && info.Anchor.Session != a.session {
		a.any, a.session = true, info.Anchor.Session
		a.out.Sessions++
		if err := a.target.as(ctx, a.who(a.meta(id)), a.target.w != nil); err != nil {
			return err
		}
		// The first blocks of a session may be gone, and its anchor with them.
		if h := event.At(a.raw); info.Anchored && (h.Kind != event.KindAnchor || h.Anchor().Phase != event.AnchorStart) {
			start := anchorOf(&info, info.Anchor.Time, event.AnchorStart)
			a.build.Add(event.Append(nil, &start))
		}
	}
	for h := range event.All(a.raw) {
		a.record(h)
	}
	if a.build.Full(len(a.raw)) {
		if err := a.seal(); err != nil {
			return err
		}
	}
	a.build.Add(a.raw)
	return a.seal()
}

// who is what may be told of the recorder.
func (a *anonymizer) who(meta spool.Meta) spool.Meta {
	extra := map[string]string{"anonymized": "addresses by Crypto-PAn"}
	if cookie := meta.Extra[metaNetns]; cookie != "" {
		extra[metaNetns] = cookie // the kernel's count of namespaces; with it, replay names connections as before
	}
	return spool.Meta{Kernel: meta.Kernel, HZ: meta.HZ, Program: meta.Program, Extra: extra}
}

// record changes the record in place.
func (a *anonymizer) record(h *event.Header) {
	if h.Family != 0 {
		h.Local, h.Peer = a.pan.map16(h.Local), a.pan.map16(h.Peer)
	}
	switch h.Kind {
	case event.KindSegment:
		s := h.Segment()
		a.options(s.Options[:min(int(s.OptionsLen), event.OptionsMax)])
	case event.KindIncident:
		if !a.keep {
			i := h.Incident()
			i.Cgroup, i.PID, i.TID, i.UID, i.Comm = 0, 0, 0, 0, [16]byte{}
			i.Present &^= event.HasProcess
		}
	case event.KindLink:
		l := h.Link()
		if name := string(bytes.TrimRight(l.Name[:], "\x00")); name != "lo" {
			l.Name = [16]byte{}
			copy(l.Name[:], fmt.Sprintf("if%d", l.Ifindex))
		}
	}
}

// TCP options that matter here (IANA; RFC 8684 section 3.4.1).
const (
	optEnd        = 0
	optNop        = 1
	optMPTCP      = 30
	mptcpAddAddr  = 3
	addAddrHeader = 4 // kind, length, subtype and flags, address id
)

// options replaces the addresses that MPTCP announces within the options.
func (a *anonymizer) options(o []byte) {
	for len(o) > 1 {
		if o[0] == optEnd {
			return
		}
		if o[0] == optNop {
			o = o[1:]
			continue
		}
		n := int(o[1])
		if n < 2 || n > len(o) {
			return
		}
		if o[0] == optMPTCP && n > addAddrHeader && o[2]>>4 == mptcpAddAddr {
			// What follows the address is a port (2 bytes), a truncated HMAC (8), both or neither.
			addr := o[addAddrHeader:n]
			switch len(addr) {
			case 4, 4 + 2, 4 + 8, 4 + 2 + 8:
				var v [16]byte
				v[10], v[11] = 0xff, 0xff
				copy(v[12:], addr)
				v = a.pan.map16(v)
				copy(addr, v[12:])
			case 16, 16 + 2, 16 + 8, 16 + 2 + 8:
				v := a.pan.map16([16]byte(addr[:16]))
				copy(addr, v[:])
			default:
				clear(addr)
			}
		}
		o = o[n:]
	}
}
