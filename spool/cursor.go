// SPDX-License-Identifier: Apache-2.0

package spool

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// A Cursor is a reader's place in a spool, kept in the spool's directory. It outlives the segments.
type Cursor struct {
	Name  string    `json:"-"`
	ID    ID        `json:"id"` // the last block that is done with
	Saved time.Time `json:"saved"`
}

func cursorPath(dir, name string) (string, error) {
	ok := name != "" && len(name) <= 64 && name[0] != '.'
	for _, c := range name {
		ok = ok && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("._-", c))
	}
	if !ok {
		return "", fmt.Errorf("cursor name %q: want 1 to 64 letters, digits, dots, dashes or underscores, no dot first", name)
	}
	return filepath.Join(dir, cursorsName, name+".json"), nil
}

// LoadCursor returns the ID that was saved last under the name: the last block that is done with. It is 0 if none
// was ever saved, so that Seek(id+1) is right in both cases.
func LoadCursor(dir, name string) (ID, error) {
	path, err := cursorPath(dir, name)
	if err != nil {
		return 0, err
	}
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	var c Cursor
	if err := json.Unmarshal(text, &c); err != nil {
		return 0, withHint(fmt.Errorf("cursor %s: %w", path, err), "remove the file to begin with the oldest block")
	}
	return c.ID, nil
}

// SaveCursor keeps the ID of the last block that is done with, under the name. The file is replaced as a
// whole and survives the loss of power.
func SaveCursor(dir, name string, id ID) error {
	path, err := cursorPath(dir, name)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return err
	}
	text, err := json.Marshal(Cursor{ID: id, Saved: time.Now().UTC()})
	if err != nil {
		return err
	}
	return writeAtomic(path, append(text, '\n'), true)
}

// Cursors lists the cursors of the spool by name.
func Cursors(dir string) ([]Cursor, error) {
	entries, err := os.ReadDir(filepath.Join(dir, cursorsName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var cs []Cursor
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok || strings.HasPrefix(name, ".") {
			continue
		}
		text, err := os.ReadFile(filepath.Join(dir, cursorsName, e.Name()))
		if err != nil {
			return nil, err
		}
		c := Cursor{Name: name}
		if err := json.Unmarshal(text, &c); err != nil {
			return nil, fmt.Errorf("cursor %s: %w", e.Name(), err)
		}
		cs = append(cs, c)
	}
	return cs, nil
}
