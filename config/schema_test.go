// SPDX-License-Identifier: Apache-2.0

package config

import (
	"reflect"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/collector/config/configopaque"
)

// fields has one field of every type that a Config may use.
type fields struct {
	Word    string                         `mapstructure:"word"`
	Mode    mode                           `mapstructure:"mode"`
	Flag    bool                           `mapstructure:"flag"`
	Count   int                            `mapstructure:"count"`
	Small   uint8                          `mapstructure:"small"`
	Ratio   float64                        `mapstructure:"ratio"`
	Age     time.Duration                  `mapstructure:"age"`
	Bytes   int64                          `mapstructure:"ring_bytes"`
	Memory  uint32                         `mapstructure:"memory_bytes"`
	List    []string                       `mapstructure:"list"`
	Ports   []uint16                       `mapstructure:"ports"`
	Map     map[string]string              `mapstructure:"map"`
	Headers map[string]configopaque.String `mapstructure:"headers"`
	Pointer *int                           `mapstructure:"pointer"`
	Trees   []tree                         `mapstructure:"trees"`
	Sub     section                        `mapstructure:"sub"`
	Inline  inline                         `mapstructure:",squash"`
	hidden  int                            // is no key
	Skipped int                            `mapstructure:"-"`
}

var _ = fields{}.hidden

type mode string

type tree struct {
	Name string        `mapstructure:"name"`
	Age  time.Duration `mapstructure:"age"`
}

type section struct {
	RingSize int    `mapstructure:"ring_size"`
	Deep     deeper `mapstructure:"deep"`
}

type deeper struct {
	Key string `mapstructure:"key"`
}

type inline struct {
	Squashed string `mapstructure:"squashed"`
}

func TestSchemaListsKeysInOrder(t *testing.T) {
	s := newSchema(reflect.TypeFor[fields]())
	var got [][2]string
	for _, k := range s.keys {
		got = append(got, [2]string{k.Path, k.Env})
	}
	require.Empty(t, cmp.Diff([][2]string{
		{"word", "TCBEE_WORD"}, {"mode", "TCBEE_MODE"}, {"flag", "TCBEE_FLAG"}, {"count", "TCBEE_COUNT"},
		{"small", "TCBEE_SMALL"}, {"ratio", "TCBEE_RATIO"}, {"age", "TCBEE_AGE"},
		{"ring_bytes", "TCBEE_RING_BYTES"}, {"memory_bytes", "TCBEE_MEMORY_BYTES"},
		{"list", "TCBEE_LIST"}, {"ports", "TCBEE_PORTS"}, {"map", "TCBEE_MAP"}, {"headers", "TCBEE_HEADERS"},
		{"pointer", "TCBEE_POINTER"}, {"trees", "TCBEE_TREES"},
		{"sub.ring_size", "TCBEE_SUB_RING_SIZE"}, {"sub.deep.key", "TCBEE_SUB_DEEP_KEY"},
		{"squashed", "TCBEE_SQUASHED"},
	}, got))
	require.Equal(t, map[string]bool{"sub": true, "sub.deep": true}, s.sections)
}

func TestSchemaRefusesAmbiguousKeys(t *testing.T) {
	type inner struct {
		B int `mapstructure:"b_c"`
	}
	type outer struct {
		A inner `mapstructure:"a"`
		X int   `mapstructure:"a_b_c"`
	}
	require.PanicsWithValue(t, "BUG: configuration key a_b_c or its variable TCBEE_A_B_C exists twice",
		func() { newSchema(reflect.TypeFor[outer]()) })
	type untagged struct{ A int }
	require.Panics(t, func() { newSchema(reflect.TypeFor[untagged]()) })
}

func TestSchemaOfTheProgramIsSound(t *testing.T) {
	require.NotEmpty(t, table().keys)
	for _, r := range reserved {
		require.Nil(t, table().byEnv[r], "%s is reserved and a setting", r)
	}
}

func TestValues(t *testing.T) {
	seven := 7
	tests := map[string]struct {
		key  string
		raw  any
		want any
		err  string
	}{
		"word":                        {"word", "x", "x", ""},
		"number for a word":           {"word", 8, "8", ""},
		"list for a word":             {"word", []any{"a"}, nil, "[a] is not one word"},
		"named word":                  {"mode", "x", mode("x"), ""},
		"true":                        {"flag", true, true, ""},
		"on":                          {"flag", "On", true, ""},
		"0":                           {"flag", "0", false, ""},
		"maybe":                       {"flag", "maybe", nil, `"maybe" is neither true nor false`},
		"number for a flag":           {"flag", 1, nil, `1 is neither true nor false`},
		"count":                       {"count", 5, 5, ""},
		"count in words":              {"count", "1_000", 1000, ""},
		"hexadecimal":                 {"count", "0x10", 16, ""},
		"half a count":                {"count", 1.5, nil, "1.5 is not a whole number"},
		"letters":                     {"count", "abc", nil, `"abc" is not a whole number`},
		"negative for unsigned":       {"small", -1, nil, "-1 is below zero"},
		"too large":                   {"small", 256, nil, "256 is above 255"},
		"ratio":                       {"ratio", "0.25", 0.25, ""},
		"whole ratio":                 {"ratio", 2, 2.0, ""},
		"infinite ratio":              {"ratio", "inf", nil, `"inf" is not a number`},
		"duration":                    {"age", "1m30s", 90 * time.Second, ""},
		"days":                        {"age", "30d", 720 * time.Hour, ""},
		"days and hours":              {"age", "1d12h", 36 * time.Hour, ""},
		"zero duration":               {"age", 0, time.Duration(0), ""},
		"duration without unit":       {"age", 10, nil, "10 is not a duration, e.g. 250ms, 10s, 2h or 30d"},
		"duration in words":           {"age", "a day", nil, `"a day" is not a duration, e.g. 250ms, 10s, 2h or 30d`},
		"size":                        {"ring_bytes", "64MiB", int64(64 << 20), ""},
		"size with space":             {"ring_bytes", "64 MiB", int64(64 << 20), ""},
		"decimal unit":                {"ring_bytes", "2GB", int64(2e9), ""},
		"short unit":                  {"ring_bytes", "1G", int64(1 << 30), ""},
		"broken size":                 {"ring_bytes", "1.5GiB", int64(3 << 29), ""},
		"plain size":                  {"ring_bytes", 4096, int64(4096), ""},
		"size in words":               {"ring_bytes", "abc", nil, `"abc" is not a size, e.g. 64MiB`},
		"negative size":               {"ring_bytes", "-1MiB", nil, `"-1MiB" is not a size, e.g. 64MiB`},
		"size too large":              {"ring_bytes", "9999999999TiB", nil, `"9999999999TiB" is not a size, e.g. 64MiB`},
		"size above the field":        {"memory_bytes", "5GiB", nil, "5368709120 is above 4294967295"},
		"list":                        {"list", []any{"a", "b"}, []string{"a", "b"}, ""},
		"list with commas":            {"list", "a, b,", []string{"a", "b"}, ""},
		"empty list":                  {"list", "", []string{}, ""},
		"one for a list":              {"ports", 80, []uint16{80}, ""},
		"numbers":                     {"ports", "80,443", []uint16{80, 443}, ""},
		"bad numbers":                 {"ports", "80,x,70000", nil, "element 2: \"x\" is not a whole number\nelement 3: 70000 is above 65535"},
		"mapping for a list":          {"list", map[string]any{"a": 1}, nil, "is a group of keys, not a list"},
		"map":                         {"map", map[string]any{"a": "b"}, map[string]string{"a": "b"}, ""},
		"map in words":                {"map", "a=b, c = d=e", map[string]string{"a": "b", "c": "d=e"}, ""},
		"map without values":          {"map", "a", nil, "is not a list of name=value with commas between"},
		"list for a map":              {"map", []any{"a"}, nil, "[a] is not a mapping of names to values"},
		"opaque map":                  {"headers", "a=b", map[string]configopaque.String{"a": "b"}, ""},
		"pointer":                     {"pointer", 7, &seven, ""},
		"trees":                       {"trees", []any{map[string]any{"name": "x", "age": "2s"}}, []tree{{"x", 2 * time.Second}}, ""},
		"trees from the environment":  {"trees", "x", nil, "can be given in a configuration file only"},
		"unknown key within the tree": {"trees", []any{map[string]any{"nam": "x"}}, nil, "invalid keys: nam"},
	}
	s := newSchema(reflect.TypeFor[fields]())
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var f fields
			k := s.byPath[tt.key]
			v := reflect.ValueOf(&f).Elem().FieldByIndex(k.index)
			err := k.set(v, tt.raw)
			if tt.err != "" {
				require.ErrorContains(t, err, tt.err)
				return
			}
			require.NoError(t, err)
			require.Empty(t, cmp.Diff(tt.want, v.Interface()))
		})
	}
}

func TestNearest(t *testing.T) {
	names := []string{"capture.ring_bytes", "capture.interfaces", "spool.dir", "log.level"}
	tests := map[string]string{
		"capture.ring_byte":  "capture.ring_bytes",
		"capture.rign_bytes": "capture.ring_bytes",
		"capture.interface":  "capture.interfaces",
		"spol.dir":           "spool.dir",
		"log.lvl":            "log.level",
		"something.else":     "",
		"x":                  "",
	}
	for in, want := range tests {
		t.Run(in, func(t *testing.T) { require.Equal(t, want, nearest(in, names)) })
	}
	require.Equal(t, 1, distance("ab", "ba"))
	require.Equal(t, 3, distance("kitten", "sitting"))
	require.Equal(t, 4, distance("", "abcd"))
}

func TestFormatIsReadBack(t *testing.T) {
	seven := 7
	in := fields{
		Word: "a: b # c", Mode: "x", Flag: true, Count: -3, Small: 9, Ratio: 0.5, Age: 36 * time.Hour,
		Bytes: 64 << 20, Memory: 1000, List: []string{"a", "b,c"}, Ports: []uint16{1, 2},
		Map: map[string]string{"a": "b"}, Pointer: &seven, Trees: []tree{{"n", time.Second}},
		Sub: section{RingSize: 4, Deep: deeper{Key: "k"}}, Inline: inline{Squashed: "s"},
	}
	s := newSchema(reflect.TypeFor[fields]())
	text := YAML(settings(s, reflect.ValueOf(in), Origins{}))
	file := write(t, text)
	l := loader{schema: s, values: map[string]value{}}
	l.readFile(file)
	require.Empty(t, l.faults)
	var out fields
	l.apply(reflect.ValueOf(&out).Elem())
	require.Empty(t, l.faults)
	out.Headers = nil
	require.Empty(t, cmp.Diff(in, out, cmp.AllowUnexported(fields{})), text)
}
