// SPDX-License-Identifier: Apache-2.0

package config

import (
	"encoding"
	"fmt"
	"reflect"
	"slices"
	"strings"
)

// envPrefix begins every environment variable that is a setting.
const envPrefix = "TCBEE_"

// Key is one setting that can be given.
type Key struct {
	Path  string       // "capture.ring_bytes"
	Env   string       // "TCBEE_CAPTURE_RING_BYTES"
	Type  reflect.Type // of the Go field
	index []int        // of the field, for reflect.Value.FieldByIndex
	owner reflect.Type // the struct that declares the field
	field string       // its Go name
}

// schema is the table of the valid keys of a configuration struct, in the order of its fields.
// It is made from the mapstructure tags, so that a package that adds a field to its Config has
// added a key, a variable and a line of "config show".
type schema struct {
	keys     []Key
	byPath   map[string]*Key
	byEnv    map[string]*Key
	sections map[string]bool // "capture", "export.tls": what holds keys
}

// newSchema reads the struct type t. Two keys that would have the same environment variable, a
// key that exists twice and a field without a tag are mistakes in the program, not in its input.
func newSchema(t reflect.Type) *schema {
	s := &schema{byPath: map[string]*Key{}, byEnv: map[string]*Key{}, sections: map[string]bool{}}
	s.walk(t, "", nil)
	for i := range s.keys {
		k := &s.keys[i]
		if s.byPath[k.Path] != nil || s.byEnv[k.Env] != nil {
			panic(fmt.Sprintf("BUG: configuration key %s or its variable %s exists twice", k.Path, k.Env))
		}
		s.byPath[k.Path], s.byEnv[k.Env] = k, k
	}
	return s
}

func (s *schema) walk(t reflect.Type, prefix string, index []int) {
	for i := range t.NumField() {
		f := t.Field(i)
		if !f.IsExported() {
			continue
		}
		name, opts, _ := strings.Cut(f.Tag.Get("mapstructure"), ",")
		at := append(slices.Clone(index), i)
		switch {
		case name == "-":
			continue
		case strings.Contains(opts, "squash"):
			s.walk(f.Type, prefix, at)
			continue
		case name == "":
			panic(fmt.Sprintf("BUG: %s.%s has no mapstructure tag", t, f.Name))
		}
		path := prefix + name
		if isSection(f.Type) {
			s.sections[path] = true
			s.walk(f.Type, path+".", at)
			continue
		}
		s.keys = append(s.keys, Key{
			Path: path, Env: envPrefix + strings.ToUpper(strings.ReplaceAll(path, ".", "_")),
			Type: f.Type, index: at, owner: t, field: f.Name,
		})
	}
}

var textUnmarshaler = reflect.TypeFor[encoding.TextUnmarshaler]()

// isSection tells whether a field of type t is a group of keys and not a value.
func isSection(t reflect.Type) bool {
	return t.Kind() == reflect.Struct && !reflect.PointerTo(t).Implements(textUnmarshaler)
}

// nearest returns the candidate with the smallest edit distance to name, or "" if none is near
// enough to be what was meant: more than a third of it would have to be changed.
func nearest(name string, candidates []string) string {
	best, bestAt := "", max(2, len(name)/3)+1
	for _, c := range candidates {
		if d := distance(name, c); d < bestAt {
			best, bestAt = c, d
		}
	}
	return best
}

// distance is the number of characters to insert, delete, replace or swap with their neighbour
// that turns a into b (optimal string alignment).
func distance(a, b string) int {
	if a == b {
		return 0
	}
	before, prev, cur := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		cur[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			cur[j] = min(prev[j]+1, cur[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				cur[j] = min(cur[j], before[j-2]+1)
			}
		}
		before, prev, cur = prev, cur, before
	}
	return prev[len(b)]
}

// paths returns all key paths and sections: what an unknown key may have been meant to be.
func (s *schema) paths() []string {
	var out []string
	for _, k := range s.keys {
		out = append(out, k.Path)
	}
	for sec := range s.sections {
		out = append(out, sec)
	}
	slices.Sort(out)
	return out
}

func (s *schema) envs() []string {
	var out []string
	for _, k := range s.keys {
		out = append(out, k.Env)
	}
	return append(out, reserved...)
}
