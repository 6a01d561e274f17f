// SPDX-License-Identifier: Apache-2.0

package spool

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"os"
)

// Key reads the key. It is nil when no place is given: the spool is not encrypted.
func (e Encryption) Key() ([]byte, error) {
	switch {
	case e.KeyFile != "":
		raw, err := os.ReadFile(e.KeyFile)
		if err != nil {
			return nil, withHint(fmt.Errorf("%w: %w", ErrKey, err), "spool.encryption.key_file names the file that holds the key")
		}
		return parseKey(raw, "the file "+e.KeyFile)
	case e.KeyEnv != "":
		raw, ok := os.LookupEnv(e.KeyEnv)
		if !ok {
			return nil, withHint(fmt.Errorf("%w: the environment variable %s is not set", ErrKey, e.KeyEnv), "spool.encryption.key_env names the variable that holds the key")
		}
		return parseKey([]byte(raw), "the environment variable "+e.KeyEnv)
	}
	return nil, nil
}

func parseKey(raw []byte, place string) ([]byte, error) {
	fits := func(n int) bool { return n == 16 || n == 24 || n == 32 }
	text := bytes.TrimRight(raw, "\r\n")
	if key, err := hex.DecodeString(string(text)); err == nil && fits(len(key)) {
		return key, nil
	}
	if fits(len(raw)) {
		return raw, nil
	}
	if fits(len(text)) {
		return text, nil
	}
	if key, err := base64.StdEncoding.DecodeString(string(text)); err == nil && fits(len(key)) {
		return key, nil
	}
	return nil, withHint(fmt.Errorf("%w: %s holds no key of 16, 24 or 32 bytes", ErrKey, place),
		"make one with: openssl rand -hex 32")
}
